//! A CPU's cache of single frames for one migratetype.
//!
//! Frames that were freed lie in a ring: the newest is handed out first, the oldest given back first. Frames that came
//! by a refill all belong to one word of a field, so a mask of them is enough; they are handed out, lowest first, when
//! the ring is empty. All methods are for the holder of the CPU's lock, unless they say otherwise.

use crate::{
    BlockId,
    position::FrameIndex,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Frames that a ring holds at most.
pub(crate) const CACHE_FRAMES: u32 = 192;
/// Places in a ring, a power of two.
const RING: u32 = 256;
/// Frames that a refill takes and a flush gives back at most: one word of the field.
pub(crate) const BATCH: usize = 64;

/// The cache of one migratetype.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[repr(C)]
pub(crate) struct TypeCache {
    /// One past the newest frame. Both ends count up and down without bound; their difference is what is in the ring.
    newest: AtomicU32,
    /// The oldest frame.
    oldest: AtomicU32,
    /// The frames that came by a refill: the first of the word, and which are left.
    left: AtomicU64,
    base: AtomicU32,
    /// The block that the next refill looks at first, plus one; 0 if there is none.
    refill_block: AtomicU32,
    pad: [u32; 10],
    ring: [AtomicU32; RING as usize],
}

#[cfg(not(shuttle))]
const _: () = assert!(size_of::<TypeCache>().is_multiple_of(64));

#[cfg(shuttle)]
impl Default for TypeCache {
    fn default() -> Self {
        Self {
            newest: AtomicU32::new(0),
            oldest: AtomicU32::new(0),
            left: AtomicU64::new(0),
            base: AtomicU32::new(0),
            refill_block: AtomicU32::new(0),
            pad: [0; 10],
            ring: core::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl TypeCache {
    #[inline]
    fn place(&self, position: u32) -> &AtomicU32 {
        &self.ring[(position % RING) as usize]
    }

    #[inline]
    fn frame(&self, position: u32) -> FrameIndex {
        FrameIndex::new(self.place(position).load(Ordering::Relaxed))
    }

    /// Both ends: the oldest, and one past the newest.
    #[inline]
    fn ends(&self) -> (u32, u32) {
        (
            self.oldest.load(Ordering::Relaxed),
            self.newest.load(Ordering::Relaxed),
        )
    }

    #[inline]
    fn word(&self) -> (FrameIndex, u64) {
        (
            FrameIndex::new(self.base.load(Ordering::Relaxed)),
            self.left.load(Ordering::Relaxed),
        )
    }

    /// Frames in the cache. Without the lock a hint: the ends are read one after the other, so that what changes in
    /// between is bounded.
    pub fn len(&self) -> usize {
        let (oldest, newest) = self.ends();
        let ring = newest.wrapping_sub(oldest).min(CACHE_FRAMES) as usize;
        ring + self.word().1.count_ones() as usize
    }

    /// The newest frame.
    #[inline]
    pub fn pop(&self) -> Option<FrameIndex> {
        let (oldest, newest) = self.ends();
        if oldest == newest {
            let (base, left) = self.word();
            if left == 0 {
                return None;
            }
            self.left.store(left & (left - 1), Ordering::Relaxed);
            return Some(base.plus(left.trailing_zeros()));
        }
        let last = newest.wrapping_sub(1);
        self.newest.store(last, Ordering::Relaxed);
        Some(self.frame(last))
    }

    /// False if the ring is full.
    #[inline]
    pub fn push(&self, frame: FrameIndex) -> bool {
        let (oldest, newest) = self.ends();
        if newest.wrapping_sub(oldest) >= CACHE_FRAMES {
            return false;
        }
        self.place(newest).store(frame.get(), Ordering::Relaxed);
        self.newest.store(newest.wrapping_add(1), Ordering::Relaxed);
        true
    }

    /// Makes `left` of the word that begins with frame `base` what a refill brought. Nothing may be left of the refill
    /// before.
    pub fn fill(&self, base: FrameIndex, left: u64) {
        debug_assert_eq!(self.word().1, 0, "only an empty cache is refilled");
        self.base.store(base.get(), Ordering::Relaxed);
        self.left.store(left, Ordering::Relaxed);
    }

    /// Takes the oldest frames, up to [`BATCH`]: the ring's, then those of the word. Gives how many.
    #[inline(never)]
    pub fn take_oldest(&self, out: &mut [FrameIndex; BATCH]) -> usize {
        let (oldest, newest) = self.ends();
        let count = (newest.wrapping_sub(oldest) as usize).min(BATCH);
        if count == 0 {
            return self.take_word(out);
        }
        for (frame, at) in out[..count].iter_mut().zip(0..) {
            *frame = self.frame(oldest.wrapping_add(at));
        }
        let left = oldest.wrapping_add(count as u32);
        self.oldest.store(left, Ordering::Relaxed);
        count
    }

    fn take_word(&self, out: &mut [FrameIndex; BATCH]) -> usize {
        let (base, mut left) = self.word();
        let mut count = 0;
        while left != 0 {
            out[count] = base.plus(left.trailing_zeros());
            left &= left - 1;
            count += 1;
        }
        self.left.store(0, Ordering::Relaxed);
        count
    }

    /// Takes up to [`BATCH`] frames for which `wanted` holds out of the cache; gives how many. `wanted` decides by the
    /// frame's block: the frames of the word go together.
    #[inline(never)]
    pub fn extract(
        &self,
        out: &mut [FrameIndex; BATCH],
        wanted: &dyn Fn(FrameIndex) -> bool,
    ) -> usize {
        let (base, left) = self.word();
        if left != 0 && wanted(base) {
            return self.take_word(out);
        }
        let (oldest, newest) = self.ends();
        let (mut kept, mut taken) = (oldest, 0);
        for step in 0..newest.wrapping_sub(oldest) {
            let frame = self.frame(oldest.wrapping_add(step));
            if taken < BATCH && wanted(frame) {
                out[taken] = frame;
                taken += 1;
            } else {
                self.place(kept).store(frame.get(), Ordering::Relaxed);
                kept = kept.wrapping_add(1);
            }
        }
        self.newest.store(kept, Ordering::Relaxed);
        taken
    }

    /// Calls `each` with every frame in the cache.
    #[inline(never)]
    pub fn for_each(&self, each: &mut dyn FnMut(FrameIndex)) {
        let (oldest, newest) = self.ends();
        for step in 0..newest.wrapping_sub(oldest) {
            each(self.frame(oldest.wrapping_add(step)));
        }
        let (base, mut left) = self.word();
        while left != 0 {
            each(base.plus(left.trailing_zeros()));
            left &= left - 1;
        }
    }

    /// The block that the next refill looks at first.
    #[inline]
    pub fn refill_block(&self) -> Option<BlockId> {
        let stored = self.refill_block.load(Ordering::Relaxed);
        stored.checked_sub(1).map(BlockId::new)
    }

    pub fn set_refill_block(&self, block: Option<BlockId>) {
        let stored = block.map_or(0, |block| block.get() + 1);
        self.refill_block.store(stored, Ordering::Relaxed);
    }
}
