//! The occupancy index: finds the blocks of a zone by what is in them, without a walk over memory.
//!
//! Blocks are sorted into *buckets*, each a bitmap over the zone's blocks with two levels of summary above it. The
//! words of all buckets for the same 64 blocks, a *group*, lie together, so that CPUs that work in different groups
//! share no cache line. The index is a hint; the ledger decides. At rest, each block is in the bucket that its ledger
//! determines.
//!
//! # How changes race
//!
//! After a change of a ledger, its changer sets the bit in the new bucket and then clears that in the old one, so that
//! the block can be found all the time. Two changers may reach a bit in the wrong order; so each reads the ledger again
//! *after* its read-modify-write of the bit, and repeats until both agree. Acquire and release suffice: by the chain of
//! read-modify-writes the last writer of a bit has read from every earlier one, so it sees all changes that they saw,
//! and leaves the bit as the last ledger wants it. A later change brings its own changer here. The summaries follow
//! their words by the same rule; they are written only when a word becomes empty or ceases to be. Whoever files a block
//! also checks that they are set, since the CPU that set the word's first bit may be late.

use crate::{
    BlockId,
    sync::{AtomicU64, Ordering, spin_hint},
};

/// Blocks in a group.
pub(crate) const GROUP: usize = 64;

/// Where a block belongs: in a bucket, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u32);

impl Place {
    pub const NONE: Self = Self(0);

    pub const fn bucket(number: usize) -> Self {
        Self(number as u32 + 1)
    }

    /// The bucket's number. There must be one.
    #[inline]
    const fn number(self) -> usize {
        self.0 as usize - 1
    }
}

/// One way of sorting the blocks of a zone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Index<'m> {
    /// The zone's first block.
    first: BlockId,
    buckets: usize,
    /// By group, then by bucket.
    bits: &'m [AtomicU64],
    /// A bit for each word of `bits` that is not empty: by 64 groups, then by bucket.
    summary: &'m [AtomicU64],
    /// A bit for each word of `summary` that is not empty: by bucket, then by 64 times 64 groups.
    top: &'m [AtomicU64],
}

/// Words of the three levels for `blocks` blocks.
pub(crate) fn sizes(blocks: usize, buckets: usize) -> [usize; 3] {
    let groups = blocks.div_ceil(GROUP);
    let summaries = groups.div_ceil(64);
    [
        groups * buckets,
        summaries * buckets,
        summaries.div_ceil(64) * buckets,
    ]
}

impl<'m> Index<'m> {
    /// An index over no blocks.
    pub const EMPTY: Self = Self {
        first: BlockId::new(0),
        buckets: 0,
        bits: &[],
        summary: &[],
        top: &[],
    };

    /// An index over the blocks from `first` on, with tables of the [`sizes`] for them, all zero.
    pub fn new(first: BlockId, buckets: usize, tables: [&'m [AtomicU64]; 3]) -> Self {
        let [bits, summary, top] = tables;
        Self {
            first,
            buckets,
            bits,
            summary,
            top,
        }
    }

    /// The block's group, and its bit there.
    #[inline]
    pub fn position(&self, block: BlockId) -> (usize, u64) {
        let at = block.index() - self.first.index();
        (at / GROUP, 1 << (at % GROUP))
    }

    /// The reverse: the block with number `bit` of a group.
    #[inline]
    fn block_at(&self, group: usize, bit: u32) -> BlockId {
        self.first.plus((group * GROUP) as u32 + bit)
    }

    fn word(&self, bucket: usize, group: usize) -> &AtomicU64 {
        &self.bits[group * self.buckets + bucket]
    }

    /// Moves `block` from place `old` to place `new` after its ledger changed that way. `wanted` reads the ledger anew.
    #[inline(never)]
    pub fn moved(&self, block: BlockId, old: Place, new: Place, wanted: &dyn Fn() -> Place) {
        for place in [new, old] {
            if place != Place::NONE {
                self.file(block, place, place == new, wanted);
            }
        }
    }

    /// Files `block` at `place`, where its ledger wants it, if it is not there yet: the CPU that changed the ledger may
    /// be late.
    #[inline]
    pub fn ensure(&self, block: BlockId, place: Place, wanted: &dyn Fn() -> Place) {
        if place == Place::NONE {
            return;
        }
        if !self.holds(block, place) {
            self.file(block, place, true, wanted);
        } else if let (group, _) = self.position(block)
            && !self.is_summarised(place.number(), group)
        {
            self.lift(place.number(), group);
        }
    }

    /// Whether `block` is filed at `place`.
    #[inline]
    pub fn holds(&self, block: BlockId, place: Place) -> bool {
        let (group, mask) = self.position(block);
        // Acquire: a search that finds a block finds the ledger by which it was filed, or a later one.
        self.word(place.number(), group).load(Ordering::Acquire) & mask != 0
    }

    /// Files `block` where `wanted` gives, wherever it is filed now: for changes of something other than its ledger.
    #[inline(never)]
    pub fn refile(&self, block: BlockId, wanted: &dyn Fn() -> Place) {
        for bucket in 0..self.buckets {
            let place = Place::bucket(bucket);
            self.file(block, place, wanted() == place, wanted);
        }
    }

    fn file(&self, block: BlockId, place: Place, inside: bool, wanted: &dyn Fn() -> Place) {
        let (group, mask) = self.position(block);
        let bucket = place.number();
        let mut inside = inside;
        loop {
            self.write(bucket, group, mask, inside);
            if (wanted() == place) == inside {
                return;
            }
            inside = !inside;
            spin_hint();
        }
    }

    /// Puts all blocks of `mask`, in the group of `block`, into a bucket, or takes them out. The caller then looks at
    /// each one's ledger again, as [`moved`](Self::moved) does.
    pub fn write_group(&self, place: Place, block: BlockId, mask: u64, inside: bool) {
        let (group, _) = self.position(block);
        self.write(place.number(), group, mask, inside);
    }

    fn write(&self, bucket: usize, group: usize, mask: u64, inside: bool) {
        let word = self.word(bucket, group);
        // SeqCst: acquire and release would do for the bits, see the module's head; the summaries need more.
        let edge = if inside {
            word.fetch_or(mask, Ordering::SeqCst) == 0
        } else {
            let old = word.fetch_and(!mask, Ordering::SeqCst);
            old & !mask == 0 && old != 0
        };
        // The CPU that set the word's first bit may not have written the summary yet, but what this call files must be
        // found when it returns.
        if edge || inside && !self.is_summarised(bucket, group) {
            self.lift(bucket, group);
        }
    }

    fn levels(&self, bucket: usize, group: usize) -> (&AtomicU64, &AtomicU64) {
        let tops = self.top.len() / self.buckets;
        (
            &self.summary[group / 64 * self.buckets + bucket],
            &self.top[bucket * tops + group / 4096],
        )
    }

    /// Whether both summaries have the group, so that a search finds it.
    #[inline]
    fn is_summarised(&self, bucket: usize, group: usize) -> bool {
        let (summary, top) = self.levels(bucket, group);
        // SeqCst, after the write of the word: either this sees that the bit is missing, or the CPU that clears it sees
        // the word.
        summary.load(Ordering::SeqCst) >> (group % 64) & 1 == 1
            && top.load(Ordering::SeqCst) >> (group / 64 % 64) & 1 == 1
    }

    /// Brings the summaries in line with the word of a group.
    fn lift(&self, bucket: usize, group: usize) {
        let (summary, top) = self.levels(bucket, group);
        summarise(self.word(bucket, group), summary, group % 64);
        let bit = group / 64 % 64;
        let full = summary.load(Ordering::SeqCst) != 0;
        if (top.load(Ordering::SeqCst) >> bit & 1 == 1) != full {
            summarise(summary, top, bit);
        }
    }

    /// The blocks of one bucket, lowest first, from `start` on; a `start` below the zone is its first block.
    pub fn blocks(&self, bucket: usize, start: BlockId) -> Blocks<'_> {
        let at = start.index().saturating_sub(self.first.index());
        let group = at / GROUP;
        let left = if group * self.buckets < self.bits.len() {
            self.word(bucket, group).load(Ordering::Acquire) & (u64::MAX << (at % GROUP))
        } else {
            0
        };
        Blocks {
            index: *self,
            bucket,
            group,
            left,
        }
    }

    /// The first group from the one of block `start` on that has blocks in the bucket: its first block, and which of
    /// the 64.
    pub fn group(&self, bucket: usize, start: BlockId) -> Option<(BlockId, u64)> {
        let mut blocks = self.blocks(bucket, start);
        blocks.next()?;
        let mask = self.word(bucket, blocks.group).load(Ordering::Acquire);
        (mask != 0).then(|| (self.block_at(blocks.group, 0), mask))
    }

    /// For `verify()`: whether the bitmaps have the block where `expected` says and nowhere else.
    #[inline(never)]
    pub fn check(&self, block: BlockId, expected: Place) -> bool {
        let (group, mask) = self.position(block);
        (0..self.buckets).all(|bucket| {
            let set = self.word(bucket, group).load(Ordering::Acquire) & mask != 0;
            set == (expected == Place::bucket(bucket))
        })
    }

    /// For `verify()`: whether the summaries have a bit for each word that is not empty, and no other.
    pub fn check_summaries(&self) -> bool {
        let set =
            |word: &AtomicU64, bit: usize| word.load(Ordering::Acquire) >> (bit % 64) & 1 == 1;
        let full = |word: &AtomicU64| word.load(Ordering::Acquire) != 0;
        let groups = self.bits.len().checked_div(self.buckets).unwrap_or(0);
        let tops = self.top.len().checked_div(self.buckets).unwrap_or(0);
        (0..self.buckets).all(|bucket| {
            let summary = |group: usize| &self.summary[group / 64 * self.buckets + bucket];
            let words = (0..groups)
                .all(|group| set(summary(group), group) == full(self.word(bucket, group)));
            let summaries = (0..groups).step_by(64).all(|group| {
                set(&self.top[bucket * tops + group / 4096], group / 64) == full(summary(group))
            });
            words && summaries
        })
    }
}

/// Sets or clears the bit of `word` in its summary, as the word is.
fn summarise(word: &AtomicU64, summary: &AtomicU64, bit: usize) {
    let mask = 1 << bit;
    loop {
        let empty = word.load(Ordering::SeqCst) == 0;
        if empty {
            summary.fetch_and(!mask, Ordering::SeqCst);
        } else {
            summary.fetch_or(mask, Ordering::SeqCst);
        }
        // SeqCst: see `Index::is_summarised`.
        if (word.load(Ordering::SeqCst) == 0) == empty {
            return;
        }
        spin_hint();
    }
}

/// The blocks of a bucket, ascending, as they are at the time of the look.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    index: Index<'a>,
    bucket: usize,
    group: usize,
    left: u64,
}

impl Blocks<'_> {
    /// The next group from `from` on that has a block in the bucket.
    fn next_group(&self, from: usize) -> Option<usize> {
        let Index {
            buckets,
            summary,
            top,
            ..
        } = self.index;
        let groups = self.index.bits.len() / buckets;
        if from >= groups {
            return None;
        }
        let word = summary[from / 64 * buckets + self.bucket].load(Ordering::Acquire)
            & (u64::MAX << (from % 64));
        if word != 0 {
            return Some(from / 64 * 64 + word.trailing_zeros() as usize);
        }
        let (tops, summaries) = (top.len() / buckets, summary.len() / buckets);
        let mut at = from / 64 + 1;
        while at < summaries {
            let above =
                top[self.bucket * tops + at / 64].load(Ordering::Acquire) & (u64::MAX << (at % 64));
            if above == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            at = at / 64 * 64 + above.trailing_zeros() as usize;
            let word = summary[at * buckets + self.bucket].load(Ordering::Acquire);
            if word != 0 {
                return Some(at * 64 + word.trailing_zeros() as usize);
            }
            at += 1;
        }
        None
    }
}

impl Iterator for Blocks<'_> {
    type Item = BlockId;

    fn next(&mut self) -> Option<BlockId> {
        while self.left == 0 {
            if self.index.buckets == 0 {
                return None;
            }
            self.group = self.next_group(self.group + 1)?;
            let word = &self.index.bits[self.group * self.index.buckets + self.bucket];
            self.left = word.load(Ordering::Acquire);
        }
        let block = self.index.block_at(self.group, self.left.trailing_zeros());
        self.left &= self.left - 1;
        Some(block)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::{collections::BTreeSet, vec::Vec};

    use super::*;

    fn table(words: usize) -> &'static [AtomicU64] {
        Vec::leak((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Two buckets over so many blocks that all three levels have several words.
    #[test]
    fn blocks_are_found_through_every_level() {
        const BLOCKS: usize = 64 * 64 * 64 + 5000;
        let index = Index::new(BlockId::new(7), 2, sizes(BLOCKS, 2).map(table));
        let mut model = BTreeSet::new();
        let mut state = 1u64;
        for step in 0..6000 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Few places, far apart, so that words empty and fill.
            let far = [0, 1, 63, 64, 4095, 4096, 262_143, 262_144, BLOCKS - 1];
            let at = match state >> 60 {
                0..8 => far[(state >> 33) as usize % far.len()],
                _ => (state >> 33) as usize % BLOCKS,
            };
            let block = BlockId::new(7 + at as u32);
            let (old, new) = if model.contains(&at) {
                model.remove(&at);
                (Place::bucket(1), Place::NONE)
            } else {
                model.insert(at);
                (Place::NONE, Place::bucket(1))
            };
            index.moved(block, old, new, &|| new);
            assert_eq!(index.holds(block, Place::bucket(1)), new != Place::NONE);
            assert!(index.check(block, new));
            if step % 100 == 0 {
                assert!(index.check_summaries());
                let found: Vec<usize> = index
                    .blocks(1, BlockId::new(0))
                    .map(|b| b.index() - 7)
                    .collect();
                assert!(found.iter().eq(model.iter()), "step {step}");
                let from: Vec<usize> = index.blocks(1, block).map(|b| b.index() - 7).collect();
                assert!(from.iter().eq(model.range(at..)), "from {at}");
                assert_eq!(index.blocks(0, BlockId::new(0)).next(), None);
            }
        }
    }

    #[test]
    fn a_group_is_written_at_once() {
        let index = Index::new(BlockId::new(0), 1, sizes(200, 1).map(table));
        index.write_group(Place::bucket(0), BlockId::new(70), 0b1001 << 6, true);
        assert_eq!(
            index.group(0, BlockId::new(0)),
            Some((BlockId::new(64), 0b1001 << 6))
        );
        assert_eq!(index.group(0, BlockId::new(74)), None);
        index.write_group(Place::bucket(0), BlockId::new(100), 0b1001 << 6, false);
        assert_eq!(index.group(0, BlockId::new(0)), None);
        assert!(index.check_summaries());
    }

    #[test]
    fn a_block_that_is_not_filed_is_helped() {
        let index = Index::new(BlockId::new(0), 3, sizes(3, 3).map(table));
        let (block, place) = (BlockId::new(2), Place::bucket(2));
        index.ensure(block, place, &|| place);
        assert!(index.holds(block, place) && index.check(block, place));
        // It left meanwhile: the last look decides.
        index.ensure(BlockId::new(1), place, &|| Place::NONE);
        assert!(index.check(BlockId::new(1), Place::NONE) && index.check_summaries());
    }
}
