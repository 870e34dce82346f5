//! A hash table whose chains go through slab objects, with a hand that goes over all of them.

use alloc::boxed::Box;

use dirigible_frames::FrameContents;
use dirigible_slab::{Object, SlabCache};

/// The word of an object that names the next one in its chain.
pub(crate) const CHAIN: usize = 0;

/// The heads, allocated once. The objects' words are protected by the lock that this is in.
pub(crate) struct Chains {
    heads: Box<[u64]>,
    /// Objects in all chains.
    len: u64,
    /// The chain that the hand is in, and how many objects of it are behind it.
    hand: (usize, usize),
}

/// What the hand does with an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Leaves it.
    Keep,
    /// Takes it out of its chain.
    Take,
}

impl Chains {
    /// A table with `chains` chains; at least one.
    pub fn new(chains: usize) -> Self {
        Self {
            heads: (0..chains.max(1)).map(|_| 0).collect(),
            len: 0,
            hand: (0, 0),
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    fn index(&self, hash: u64) -> usize {
        // The high bits of a product depend on all bits of the hash; they scale to any number of chains.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((mixed * self.heads.len() as u64) >> 32) as usize
    }

    /// The first object of `hash`'s chain that `is` is true for.
    pub fn find<P: FrameContents>(
        &self,
        cache: &SlabCache<'_, P>,
        hash: u64,
        mut is: impl FnMut(Object) -> bool,
    ) -> Option<Object> {
        let mut at = Object::from_bits(self.heads[self.index(hash)]);
        while let Some(object) = at {
            if is(object) {
                return Some(object);
            }
            at = Object::from_bits(cache.read(object, CHAIN));
        }
        None
    }

    /// Puts an object at the head of its chain.
    pub fn insert<P: FrameContents>(
        &mut self,
        cache: &SlabCache<'_, P>,
        hash: u64,
        object: Object,
    ) {
        let index = self.index(hash);
        cache.write(object, CHAIN, self.heads[index]);
        self.heads[index] = object.bits();
        self.len += 1;
    }

    /// Takes out the first object of `hash`'s chain that `is` is true for.
    pub fn remove<P: FrameContents>(
        &mut self,
        cache: &SlabCache<'_, P>,
        hash: u64,
        mut is: impl FnMut(Object) -> bool,
    ) -> Option<Object> {
        let index = self.index(hash);
        let (mut before, mut at) = (None, Object::from_bits(self.heads[index]));
        while let Some(object) = at {
            if is(object) {
                self.unlink(cache, index, before, object);
                return Some(object);
            }
            (before, at) = (at, Object::from_bits(cache.read(object, CHAIN)));
        }
        None
    }

    fn unlink<P: FrameContents>(
        &mut self,
        cache: &SlabCache<'_, P>,
        index: usize,
        before: Option<Object>,
        object: Object,
    ) {
        let next = cache.read(object, CHAIN);
        match before {
            Some(before) => cache.write(before, CHAIN, next),
            None => self.heads[index] = next,
        }
        self.len -= 1;
    }

    /// Moves the hand on until an object is taken, or `objects` have been looked at, or all chains: takes what was looked
    /// at off `objects`.
    pub fn sweep<P: FrameContents>(
        &mut self,
        cache: &SlabCache<'_, P>,
        objects: &mut u64,
        mut judge: impl FnMut(Object) -> Verdict,
    ) -> Option<Object> {
        for _ in 0..=self.heads.len() {
            let (index, depth) = self.hand;
            let (mut before, mut at) = (None, Object::from_bits(self.heads[index]));
            let mut passed = 0;
            while let Some(object) = at {
                if passed >= depth {
                    if *objects == 0 {
                        self.hand = (index, passed);
                        return None;
                    }
                    *objects -= 1;
                    if judge(object) == Verdict::Take {
                        self.unlink(cache, index, before, object);
                        self.hand = (index, passed);
                        return Some(object);
                    }
                }
                passed += 1;
                (before, at) = (at, Object::from_bits(cache.read(object, CHAIN)));
            }
            self.hand = ((index + 1) % self.heads.len(), 0);
        }
        None
    }

    /// Calls `with` for each object.
    pub fn for_each<P: FrameContents>(
        &self,
        cache: &SlabCache<'_, P>,
        mut with: impl FnMut(Object),
    ) {
        for &head in &self.heads {
            let mut at = Object::from_bits(head);
            while let Some(object) = at {
                at = Object::from_bits(cache.read(object, CHAIN));
                with(object);
            }
        }
    }
}
