//! Runs of clear bits in a block of a bitmap. A set bit is in use.

use core::ops::Range;

/// Once something was found, no more words than these are looked at for something longer.
const PATIENCE: usize = 128;

/// A run of clear bits of `bits`, as long as `want` if there is one: from `from` on, then before it. With `adjacent` a
/// run that begins at `from` is taken whatever its length. `word` reads a word.
pub(crate) fn find_run(
    word: impl Fn(usize) -> u64,
    bits: Range<usize>,
    from: usize,
    want: usize,
    adjacent: bool,
) -> Option<Range<usize>> {
    let adjacent = adjacent && bits.contains(&from);
    let from = from.clamp(bits.start, bits.end);
    let mut looks = 0;
    let mut best: Option<Range<usize>> = None;
    // A run across `from` is found in two pieces by the first part of the second search, which may go on over it.
    for (begin, end) in [(from, bits.end), (bits.start, from)] {
        let mut at = begin;
        while at < end {
            looks += 1;
            let clear = !word(at / 64) >> (at % 64);
            if clear == 0 {
                at = (at / 64 + 1) * 64;
            } else {
                at += clear.trailing_zeros() as usize;
                if at >= end {
                    break;
                }
                let run = at..run_end(&word, at, bits.end, want);
                at = run.end;
                let enough = run.len() >= want || adjacent && run.start == from;
                if best.as_ref().is_none_or(|best| run.len() > best.len()) {
                    best = Some(run);
                }
                if enough {
                    return best;
                }
            }
            if looks > PATIENCE && best.is_some() {
                return best;
            }
        }
    }
    best
}

/// Where the run of clear bits that begins at `start` ends, at most `want` bits on.
fn run_end(word: &impl Fn(usize) -> u64, start: usize, end: usize, want: usize) -> usize {
    let limit = end.min(start + want);
    let mut at = start;
    while at < limit {
        let clear = (word(at / 64) >> (at % 64)).trailing_zeros() as usize;
        let clear = clear.min(64 - at % 64);
        at += clear;
        if clear == 0 || !at.is_multiple_of(64) {
            break;
        }
    }
    at.min(limit)
}

/// The words that a range of bits covers, with the bits of each that are in it.
pub(crate) fn masks(bits: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let words = bits.start / 64..bits.end.div_ceil(64);
    words.map(move |word| {
        let low = bits.start.saturating_sub(word * 64).min(63);
        let high = (bits.end - word * 64).min(64);
        (word, u64::MAX << low & u64::MAX >> (64 - high))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use proptest::{prelude::*, test_runner::FileFailurePersistence};

    fn bit(words: &[u64], at: usize) -> bool {
        words[at / 64] >> (at % 64) & 1 == 1
    }

    #[test]
    fn masks_cover_exactly_their_bits() {
        for start in 0..200 {
            for end in start + 1..260 {
                let mut words = [0u64; 5];
                for (word, mask) in masks(start..end) {
                    words[word] |= mask;
                }
                for at in 0..320 {
                    assert_eq!(bit(&words, at), (start..end).contains(&at));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
            ..ProptestConfig::default()
        })]

        #[test]
        fn what_is_found_is_clear_and_something_is_found_if_there_is_any(
            words in prop::collection::vec(
                prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), Just(!(1 << 63)), Just(!1)], 6),
            start in 0usize..384, len in 0usize..384, from in 0usize..400, want in 1usize..200, adjacent: bool,
        ) {
            let bits = start..(start + len).min(384);
            let found = find_run(|word| words[word], bits.clone(), from, want, adjacent);
            match found {
                None => prop_assert!(bits.clone().all(|at| bit(&words, at))),
                Some(run) => {
                    prop_assert!(!run.is_empty() && run.len() <= want);
                    prop_assert!(bits.start <= run.start && run.end <= bits.end);
                    prop_assert!(run.clone().all(|at| !bit(&words, at)));
                    if adjacent && bits.contains(&from) && !bit(&words, from) {
                        prop_assert_eq!(run.start, from);
                    } else if run.len() < want {
                        // No longer run lies after `from`: six words end no search early.
                        let first = from.clamp(bits.start, bits.end);
                        for begin in first..bits.end.saturating_sub(run.len()) {
                            prop_assert!((begin..=begin + run.len()).any(|at| bit(&words, at)));
                        }
                    }
                }
            }
        }
    }
}
