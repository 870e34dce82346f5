//! Sets of blocks, in the order of the disk.

use alloc::boxed::Box;

use dirigible_frames::sync::{AtomicU64, Ordering};

const BITS: u64 = 64;

/// A bit for each block, and a summary: a bit for each 64 of them that is set if any of these may be.
///
/// The summary is a hint: while a member leaves, its bit may be clear for a moment though there are others.
/// [`next`](Self::next) relies on it, [`next_of_all`](Self::next_of_all) does not.
///
/// Each block's bit is set by whoever holds the page, perhaps several at a time, and cleared by who has it alone;
/// neighbours in a word change at any time.
pub(crate) struct BlockSet {
    words: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
}

fn zeroes(bits: u64) -> Box<[AtomicU64]> {
    (0..bits.div_ceil(BITS))
        .map(|_| AtomicU64::new(0))
        .collect()
}

const fn place(at: u64) -> (usize, u64) {
    ((at / BITS) as usize, 1 << (at % BITS))
}

impl BlockSet {
    /// The empty set of blocks below `blocks`.
    pub fn new(blocks: u64) -> Self {
        Self {
            words: zeroes(blocks),
            summary: zeroes(blocks.div_ceil(BITS)),
        }
    }

    /// Gives whether the block is new.
    pub fn insert(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        // AcqRel, here and below: who finds the word empty after clearing its summary bit, or sets the summary bit
        // after that, sees the other's step (see `remove`).
        let before = self.words[word].fetch_or(bit, Ordering::AcqRel);
        if before == 0 {
            let (word, bit) = place(word as u64);
            self.summary[word].fetch_or(bit, Ordering::AcqRel);
        }
        before & bit == 0
    }

    /// Gives whether the block was a member.
    pub fn remove(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        // Relaxed: the caller alone changes this bit.
        if self.words[word].load(Ordering::Relaxed) & bit == 0 {
            return false;
        }
        if self.words[word].fetch_and(!bit, Ordering::AcqRel) != bit {
            return true;
        }
        let (at, mask) = place(word as u64);
        self.summary[at].fetch_and(!mask, Ordering::AcqRel);
        // An insertion whose summary bit we cleared came before in the order of the summary's word, so its block is
        // seen here; one whose summary bit comes after keeps it.
        if self.words[word].load(Ordering::Acquire) != 0 {
            self.summary[at].fetch_or(mask, Ordering::AcqRel);
        }
        true
    }

    pub fn contains(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.words[word].load(Ordering::Acquire) & bit != 0
    }

    /// The first member in `block..end`, whatever the summary says: none is left out whose insertion has ended before.
    /// Looks at each word of the range.
    pub fn next_of_all(&self, block: u64, end: u64) -> Option<u64> {
        let end = end.min(self.words.len() as u64 * BITS);
        let mut from = block;
        while from < end {
            let (word, _) = place(from);
            let bits = self.words[word].load(Ordering::Acquire) & (u64::MAX << (from % BITS));
            if bits != 0 {
                let found = word as u64 * BITS + u64::from(bits.trailing_zeros());
                return (found < end).then_some(found);
            }
            from = (word as u64 + 1) * BITS;
        }
        None
    }

    /// The first member in `block..end`, or a later one. While others of its 64 are inserted or removed, a member may
    /// be left out.
    pub fn next(&self, block: u64, end: u64) -> Option<u64> {
        if block >= end {
            return None;
        }
        let in_word = |word: usize, from: u64| {
            let bits = self.words.get(word)?.load(Ordering::Acquire) & (u64::MAX << from);
            (bits != 0).then(|| word as u64 * BITS + u64::from(bits.trailing_zeros()))
        };
        let first = (block / BITS) as usize;
        let mut found = in_word(first, block % BITS);
        let mut word = first as u64 + 1;
        while found.is_none() && word * BITS < end {
            let at = (word / BITS) as usize;
            let bits = self.summary.get(at)?.load(Ordering::Acquire) & (u64::MAX << (word % BITS));
            if bits == 0 {
                word = (at as u64 + 1) * BITS;
                continue;
            }
            word = at as u64 * BITS + u64::from(bits.trailing_zeros());
            found = in_word(word as usize, 0);
            word += 1;
        }
        found.filter(|&found| found < end)
    }

    /// Adds all members of `other`, as far as they do not change meanwhile.
    pub fn insert_all(&self, other: &Self) {
        for (word, members) in other.words.iter().enumerate() {
            let members = members.load(Ordering::Acquire);
            if members != 0 && self.words[word].fetch_or(members, Ordering::AcqRel) == 0 {
                let (at, bit) = place(word as u64);
                self.summary[at].fetch_or(bit, Ordering::AcqRel);
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_set_is_what_a_tree_is() {
        let blocks = 20_000;
        let (set, mut tree) = (BlockSet::new(blocks), BTreeSet::new());
        let mut random = 1u64;
        for turn in 0..6_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let block = (random >> 33) % blocks;
            if turn % 3 == 2 {
                let near = tree.range(block..).next().copied();
                assert_eq!(set.next(block, blocks), near);
                assert_eq!(set.next_of_all(block, blocks), near);
                assert_eq!(
                    set.next_of_all(block, block + 100),
                    near.filter(|&b| b < block + 100)
                );
                assert_eq!(
                    set.next(block, block + 100),
                    near.filter(|&b| b < block + 100)
                );
                if let Some(near) = near {
                    set.remove(near);
                    tree.remove(&near);
                }
            } else {
                set.insert(block);
                tree.insert(block);
            }
            assert_eq!(set.contains(block), tree.contains(&block));
        }
        let mut walked = Vec::new();
        let mut at = 0;
        while let Some(block) = set.next(at, blocks) {
            walked.push(block);
            at = block + 1;
        }
        assert!(walked.iter().eq(tree.iter()) && walked.len() > 500);
        let copy = BlockSet::new(blocks);
        copy.insert_all(&set);
        assert!((0..blocks).all(|block| copy.contains(block) == tree.contains(&block)));
        for block in walked {
            copy.remove(block);
        }
        assert_eq!(copy.next(0, blocks), None);
    }

    /// As it is for a moment while a member leaves.
    #[test]
    fn what_the_summary_leaves_out_is_found() {
        let (set, copy) = (BlockSet::new(200), BlockSet::new(200));
        set.insert(150);
        set.summary[0].store(0, Ordering::Relaxed);
        assert_eq!(set.next_of_all(3, 200), Some(150));
        copy.insert_all(&set);
        assert_eq!(copy.next(3, 200), Some(150));
    }

    #[test]
    fn the_end_of_the_disk_is_the_end() {
        let set = BlockSet::new(65);
        set.insert(64);
        assert_eq!(
            (set.next(0, 65), set.next_of_all(0, 65)),
            (Some(64), Some(64))
        );
        assert_eq!(
            (set.next_of_all(0, 64), set.next_of_all(65, 500)),
            (None, None)
        );
        assert_eq!((set.next(0, 64), set.next(65, 65)), (None, None));
        assert_eq!(set.next(65, 500), None);
        assert_eq!(BlockSet::new(0).next(0, 0), None);
    }
}
