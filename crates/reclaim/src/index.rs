//! A bit for each block, with a summary: where frames of one generation may be.

use alloc::boxed::Box;

use dirigible_frames::{
    BlockId,
    sync::{AtomicU64, Ordering, fence},
};

/// Blocks that may have frames of one generation.
///
/// Whoever gives a frame the generation does that first and then sets the block's bit, if it is clear; whoever looks
/// through a block clears the bit first and then looks. With a fence between the two steps on both sides, one of them
/// sees the other: the frame is found, or its bit is set. The summary is kept in the same way.
#[derive(Debug)]
pub(crate) struct Blocks {
    words: Box<[AtomicU64]>,
    /// A bit for each word that is not 0.
    summary: Box<[AtomicU64]>,
}

impl Blocks {
    /// No block of `count`.
    pub fn new(count: usize) -> Self {
        let zeroes = |count: usize| (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: zeroes(count),
            summary: zeroes(count.div_ceil(64)),
        }
    }

    /// Sets the bit of `block`, a frame of which was given the generation just before.
    #[inline]
    pub fn set(&self, block: BlockId) {
        let Some(word) = self.words.get(block.index() / 64) else {
            debug_assert!(false, "{block:?} is beyond the tables");
            return;
        };
        let bit = 1 << (block.index() % 64);
        // One half of Dekker's argument: the frame's word is changed, then the bit is read. Pairs with `clear`.
        fence(Ordering::SeqCst);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
            self.summarize(block.index() / 64);
        }
    }

    /// The word has become other than 0.
    fn summarize(&self, word: usize) {
        let bit = 1 << (word % 64);
        fence(Ordering::SeqCst);
        if self.summary[word / 64].load(Ordering::Relaxed) & bit == 0 {
            self.summary[word / 64].fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Clears the bit of `block`; all frames of it are looked at next.
    pub fn clear(&self, block: BlockId) {
        let (at, bit) = (block.index() / 64, 1 << (block.index() % 64));
        let Some(word) = self.words.get(at) else {
            return;
        };
        if word.fetch_and(!bit, Ordering::SeqCst) & !bit == 0 {
            self.summary[at / 64].fetch_and(!(1 << (at % 64)), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if word.load(Ordering::Relaxed) != 0 {
                self.summarize(at);
            }
        }
        // The other half: the bit is cleared, then the words are read.
        fence(Ordering::SeqCst);
    }

    /// Whether [`next`](Self::next) finds `block`: its bit is set, and that of its word.
    pub fn finds(&self, block: BlockId) -> bool {
        self.has(block) && self.next(block.index()) == Some(block) && {
            let at = block.index() / 64;
            self.summary[at / 64].load(Ordering::Relaxed) >> (at % 64) & 1 == 1
        }
    }

    /// Whether the bit of `block` is set.
    fn has(&self, block: BlockId) -> bool {
        let word = self.words.get(block.index() / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (block.index() % 64) & 1 == 1)
    }

    /// The first block from `from` on whose bit is set; after the last one comes the first.
    pub fn next(&self, from: usize) -> Option<BlockId> {
        self.next_up(from).or_else(|| self.next_up(0))
    }

    fn next_up(&self, from: usize) -> Option<BlockId> {
        let mut at = from / 64;
        let mut mask = u64::MAX << (from % 64);
        loop {
            let found = self.words.get(at)?.load(Ordering::Relaxed) & mask;
            if found != 0 {
                return Some(BlockId::new((at * 64) as u32 + found.trailing_zeros()));
            }
            // The next word that is not 0, by the summary.
            (at, mask) = (at + 1, u64::MAX);
            loop {
                let words = self.summary.get(at / 64)?.load(Ordering::Relaxed) >> (at % 64);
                if words != 0 {
                    at += words.trailing_zeros() as usize;
                    break;
                }
                at = (at / 64 + 1) * 64;
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_next_block_is_found_and_the_first_follows_the_last() {
        let blocks = Blocks::new(10_000);
        assert_eq!(blocks.next(0), None);
        for number in [3, 64, 4095, 4096, 9999] {
            blocks.set(BlockId::new(number));
        }
        let mut seen = alloc::vec::Vec::new();
        let mut at = 4;
        for _ in 0..6 {
            let block = blocks.next(at).unwrap();
            seen.push(block.index());
            at = block.index() + 1;
        }
        assert_eq!(seen, [64, 4095, 4096, 9999, 3, 64]);
        blocks.clear(BlockId::new(64));
        blocks.clear(BlockId::new(4095));
        assert_eq!(blocks.next(4).unwrap().index(), 4096);
        assert!(!blocks.has(BlockId::new(64)) && blocks.has(BlockId::new(3)));
        for number in [3, 4096, 9999] {
            blocks.clear(BlockId::new(number));
        }
        assert_eq!(blocks.next(77), None);
    }

    #[test]
    fn a_start_beyond_the_end_is_the_beginning() {
        let blocks = Blocks::new(64);
        blocks.set(BlockId::new(63));
        assert_eq!(blocks.next(64), Some(BlockId::new(63)));
        assert_eq!(blocks.next(1 << 20), Some(BlockId::new(63)));
        assert!(!blocks.has(BlockId::new(5000)));
        assert_eq!(Blocks::new(0).next(0), None);
    }
}
