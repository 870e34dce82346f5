//! A set of page numbers, of which most come in ranges.

use std::{collections::BTreeMap, ops::Range};

/// A set of numbers below 2^64: a word of bits for each 64 of them of which some are there.
#[derive(Debug, Default)]
pub struct PageSet(BTreeMap<u64, u64>);

impl PageSet {
    /// Whether all of `pages` are there.
    pub fn contains(&self, pages: Range<u64>) -> bool {
        words(pages).all(|(word, mask)| self.0.get(&word).is_some_and(|bits| bits & mask == mask))
    }

    /// Adds pages.
    pub fn insert(&mut self, pages: Range<u64>) {
        for (word, mask) in words(pages) {
            *self.0.entry(word).or_default() |= mask;
        }
    }

    /// Takes pages out.
    pub fn remove(&mut self, pages: Range<u64>) {
        for (word, mask) in words(pages) {
            if let Some(bits) = self.0.get_mut(&word) {
                *bits &= !mask;
                if *bits == 0 {
                    self.0.remove(&word);
                }
            }
        }
    }
}

/// The words that a range lies in, with its bits in each.
fn words(pages: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let last = match pages.is_empty() {
        true => pages.start / 64,
        false => pages.end.div_ceil(64),
    };
    (pages.start / 64..last).map(move |word| {
        let from = pages.start.max(word * 64) % 64;
        let bits = pages
            .end
            .min(word * 64 + 64)
            .saturating_sub(pages.start.max(word * 64));
        let mask = match bits {
            64 => u64::MAX,
            bits => ((1 << bits) - 1) << from,
        };
        (word, mask)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::PageSet;

    #[test]
    fn it_is_a_set() {
        let (mut set, mut model) = (PageSet::default(), BTreeSet::new());
        let mut draw = 1u64;
        for _ in 0..3_000 {
            draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let first = (draw >> 33) % 300;
            let pages = first..first + (draw >> 50) % 140;
            match draw >> 63 {
                0 => {
                    set.insert(pages.clone());
                    model.extend(pages);
                }
                _ => {
                    set.remove(pages.clone());
                    model.retain(|page| !pages.contains(page));
                }
            }
            for page in 0..450 {
                assert_eq!(set.contains(page..page + 1), model.contains(&page));
            }
            let all = (10..130).all(|page| model.contains(&page));
            assert_eq!(set.contains(10..130), all);
        }
        set.remove(0..1_000);
        assert!(set.0.is_empty());
        for page in 0..130 {
            assert!(set.contains(page..page));
            set.insert(page..page);
        }
        assert!(set.0.is_empty());
    }
}
