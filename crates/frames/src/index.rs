//! The occupancy index: blocks findable by what is in them, without a walk over memory.
//!
//! Blocks are sorted into classes, each a bitmap over blocks with a summary above it. The index is a hint, the ledger
//! decides. When nothing is under way, each block is in the class that its ledger asks for.

use crate::{
    BlockId,
    sync::{AtomicU32, AtomicU64, Ordering, spin_hint},
};

/// Classes in each category.
pub(crate) const CLASSES: usize = 18;
const NOWHERE: u32 = 0;
const BUSY: u32 = 1 << 31;
const DIRTY: u32 = 1 << 30;

/// Where a block belongs: category and class, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u32);

impl Place {
    pub const NONE: Self = Self(NOWHERE);

    pub fn new(category: usize, class: usize) -> Self {
        Self((category * CLASSES + class.min(CLASSES - 1)) as u32 + 1)
    }
}

/// One way of sorting blocks.
#[derive(Debug)]
pub(crate) struct ClassIndex<'m> {
    /// Per block: the place it is in, and the two marks of an update under way.
    slots: &'m [AtomicU32],
    bits: &'m [AtomicU64],
    summary: &'m [AtomicU64],
    words: usize,
    summary_words: usize,
}

/// Words that an index over `blocks` blocks needs: slots (u32), bits, summary (u64).
pub(crate) fn sizes(blocks: usize, categories: usize) -> (usize, usize, usize) {
    let words = blocks.div_ceil(64);
    (
        blocks,
        categories * CLASSES * words,
        categories * CLASSES * words.div_ceil(64),
    )
}

impl<'m> ClassIndex<'m> {
    pub fn new(
        slots: &'m [AtomicU32],
        bits: &'m [AtomicU64],
        summary: &'m [AtomicU64],
        blocks: usize,
    ) -> Self {
        let words = blocks.div_ceil(64);
        Self {
            slots,
            bits,
            summary,
            words,
            summary_words: words.div_ceil(64),
        }
    }

    /// Brings the block to where `wanted` says, which reads the ledger anew each time.
    ///
    /// One thread at a time moves a block; one that comes meanwhile leaves a mark, and the mover looks again. So the last
    /// change of the ledger is always seen by somebody.
    pub fn update(&self, block: BlockId, wanted: impl Fn() -> Place) {
        let slot = &self.slots[block.index()];
        // Acquire and release: the winner sees the bitmaps as the last mover left them.
        let mut now = slot.load(Ordering::Acquire);
        loop {
            let (next, mine) = if now & BUSY != 0 {
                (now | DIRTY, false)
            } else {
                (now | BUSY, true)
            };
            match slot.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if mine => break,
                Ok(_) => return,
                Err(found) => now = found,
            }
        }
        let mut place = now;
        loop {
            let to = wanted().0;
            if to != place {
                if place != NOWHERE {
                    self.clear(place - 1, block);
                }
                if to != NOWHERE {
                    self.set(to - 1, block);
                }
                place = to;
            }
            // Release: pairs with the acquire above. Fails only if somebody left the mark.
            let held = now & !(BUSY | DIRTY) | BUSY;
            match slot.compare_exchange(held, place, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(_) => {
                    // A swap, not a store: it acquires what the leaver of the mark did before.
                    slot.swap(place | BUSY, Ordering::AcqRel);
                    now = place;
                    spin_hint();
                }
            }
        }
    }

    /// Whether the block is filed at `place` and nobody is moving it.
    pub fn holds(&self, block: BlockId, place: Place) -> bool {
        // Acquire: pairs with the mover's last step, so the bitmaps are seen as it left them.
        self.slots[block.index()].load(Ordering::Acquire) == place.0
    }

    fn set(&self, row: u32, block: BlockId) {
        let (row, word) = (row as usize, block.index() / 64);
        self.bits[row * self.words + word].fetch_or(1 << (block.index() % 64), Ordering::AcqRel);
        // After the bit: whoever clears the summary looks at the word again.
        self.summary[row * self.summary_words + word / 64]
            .fetch_or(1 << (word % 64), Ordering::AcqRel);
    }

    fn clear(&self, row: u32, block: BlockId) {
        let (row, word) = (row as usize, block.index() / 64);
        let bits = &self.bits[row * self.words + word];
        let mask = 1 << (block.index() % 64);
        if bits.fetch_and(!mask, Ordering::AcqRel) & !mask != 0 {
            return;
        }
        let summary = &self.summary[row * self.summary_words + word / 64];
        summary.fetch_and(!(1 << (word % 64)), Ordering::AcqRel);
        // A bit set between the two steps must not stay hidden; pairs with the order in `set`.
        if bits.load(Ordering::Acquire) != 0 {
            summary.fetch_or(1 << (word % 64), Ordering::AcqRel);
        }
    }

    /// The blocks of one class, lowest number first, from block `start` on.
    pub fn blocks(
        &self,
        category: usize,
        class: usize,
        start: usize,
    ) -> impl Iterator<Item = BlockId> + '_ {
        let row = category * CLASSES + class;
        let mut word = start / 64;
        let mut left = if word < self.words {
            self.bits[row * self.words + word].load(Ordering::Acquire) & (u64::MAX << (start % 64))
        } else {
            0
        };
        core::iter::from_fn(move || {
            while left == 0 {
                word = self.next_word(row, word + 1)?;
                left = self.bits[row * self.words + word].load(Ordering::Acquire);
            }
            let block = word * 64 + left.trailing_zeros() as usize;
            left &= left - 1;
            Some(BlockId::new(block as u32))
        })
    }

    fn next_word(&self, row: usize, from: usize) -> Option<usize> {
        let mut at = from;
        while at < self.words {
            let summary = self.summary[row * self.summary_words + at / 64].load(Ordering::Acquire)
                & (u64::MAX << (at % 64));
            if summary != 0 {
                return Some(at / 64 * 64 + summary.trailing_zeros() as usize);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// For `verify()`: where the block is filed, and whether the bitmaps say the same.
    pub fn check(&self, block: BlockId, expected: Place) -> bool {
        let slot = self.slots[block.index()].load(Ordering::Acquire);
        let rows = self.bits.len() / self.words.max(1);
        let (word, mask) = (block.index() / 64, 1u64 << (block.index() % 64));
        slot == expected.0
            && (0..rows).all(|row| {
                let set = self.bits[row * self.words + word].load(Ordering::Acquire) & mask != 0;
                set == (slot == row as u32 + 1)
            })
    }
}
