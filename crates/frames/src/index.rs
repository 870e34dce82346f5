//! The occupancy index: blocks findable by what is in them, without a walk over memory.
//!
//! Blocks are sorted into classes, each a bitmap over blocks with a summary above it. The index is a hint, the ledger
//! decides. When nothing is under way, each block is in the class that its ledger asks for.

use crate::{
    BlockId,
    sync::{AtomicU64, Ordering, spin_hint},
};

/// Classes in each category.
pub(crate) const CLASSES: usize = 18;
const NOWHERE: u32 = 0;

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
    bits: &'m [AtomicU64],
    summary: &'m [AtomicU64],
    words: usize,
    summary_words: usize,
}

/// Words that an index over `blocks` blocks needs: bits, summary.
pub(crate) fn sizes(blocks: usize, categories: usize) -> (usize, usize) {
    let words = blocks.div_ceil(64);
    (
        categories * CLASSES * words,
        categories * CLASSES * words.div_ceil(64),
    )
}

impl<'m> ClassIndex<'m> {
    pub fn new(bits: &'m [AtomicU64], summary: &'m [AtomicU64], blocks: usize) -> Self {
        let words = blocks.div_ceil(64);
        Self {
            bits,
            summary,
            words,
            summary_words: words.div_ceil(64),
        }
    }

    /// Moves `block` from place `old` to place `new` after its ledger changed that way. `wanted` reads the ledger anew.
    ///
    /// Changes of a ledger race, and so do the moves after them. Therefore each bit is set or cleared first and the ledger
    /// looked at second, until both agree: whoever is last at a bit leaves it as the last ledger wants it, for a later change
    /// would bring its changer here. New place before old, so that the block can be found all the while.
    #[inline]
    pub fn moved(&self, block: BlockId, old: Place, new: Place, wanted: impl Fn() -> Place) {
        for place in [new, old] {
            if place == Place::NONE {
                continue;
            }
            let mut inside = place == new;
            loop {
                self.file(place, block, inside);
                if (wanted() == place) == inside {
                    break;
                }
                inside = !inside;
                spin_hint();
            }
        }
    }

    #[inline]
    fn file(&self, place: Place, block: BlockId, inside: bool) {
        let (row, number) = (place.0 as usize - 1, block.index() / 64);
        let mask = 1 << (block.index() % 64);
        let word = &self.bits[row * self.words + number];
        // SeqCst, as the ledger's changes and the look at it that follows: no look may pass the bit it checks.
        let edge = if inside {
            word.fetch_or(mask, Ordering::SeqCst) == 0
        } else {
            word.fetch_and(!mask, Ordering::SeqCst) == mask
        };
        if edge {
            self.summarise(row, number);
        }
    }

    /// Sets or clears the summary bit of a word that was empty or became so, by the same rule as in [`moved`](Self::moved).
    fn summarise(&self, row: usize, number: usize) {
        let word = &self.bits[row * self.words + number];
        let summary = &self.summary[row * self.summary_words + number / 64];
        let mask = 1 << (number % 64);
        loop {
            let empty = word.load(Ordering::SeqCst) == 0;
            if empty {
                summary.fetch_and(!mask, Ordering::SeqCst);
            } else {
                summary.fetch_or(mask, Ordering::SeqCst);
            }
            if (word.load(Ordering::SeqCst) == 0) == empty {
                return;
            }
            spin_hint();
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

    /// For `verify()`: whether the bitmaps have the block where `expected` says and nowhere else.
    pub fn check(&self, block: BlockId, expected: Place) -> bool {
        let (word, mask) = (block.index() / 64, 1u64 << (block.index() % 64));
        (0..self.rows()).all(|row| {
            let set = self.bits[row * self.words + word].load(Ordering::Acquire) & mask != 0;
            set == (expected.0 == row as u32 + 1)
        })
    }

    /// For `verify()`: whether the summaries have a bit for each word that is not empty, and no other.
    pub fn check_summary(&self) -> bool {
        (0..self.rows()).all(|row| {
            (0..self.words).all(|number| {
                let filled = self.bits[row * self.words + number].load(Ordering::Acquire) != 0;
                let summary = &self.summary[row * self.summary_words + number / 64];
                (summary.load(Ordering::Acquire) >> (number % 64) & 1 == 1) == filled
            })
        })
    }

    fn rows(&self) -> usize {
        self.bits.len() / self.words.max(1)
    }
}
