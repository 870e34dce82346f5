//! Bit tricks inside a block's field.

use crate::{
    metadata::{Field, WORDS},
    sync::{AtomicU64, Ordering, spin_hint},
};

/// Takes `count` set bits out of `field`, lowest first, and stores `first` plus their position.
///
/// The caller has lowered the ledger by `count`, so that many bits are its own; a bit that another taker holds for a
/// moment comes back, hence the loop.
pub(crate) fn take_bits(field: &Field, count: usize, out: &mut [u32], first: u32) {
    let mut taken = 0;
    while taken < count {
        for (number, word) in field.0.iter().enumerate() {
            // AcqRel: pairs with the release of the freer that set the bits, and of the taker that put some back.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut found = take_word(word, count - taken);
            while found != 0 {
                out[taken] = first + number as u32 * 64 + found.trailing_zeros();
                taken += 1;
                found &= found - 1;
            }
            if taken == count {
                return;
            }
        }
        if taken < count {
            spin_hint();
        }
    }
}

/// Takes up to `want` bits of one word: all of it by a swap where that is not too much.
fn take_word(word: &AtomicU64, want: usize) -> u64 {
    let mut now = word.load(Ordering::Relaxed);
    loop {
        let take = lowest(now, want);
        match word.compare_exchange_weak(now, now & !take, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return take,
            Err(found) => now = found,
        }
    }
}

/// The lowest `count` set bits of `bits`.
fn lowest(bits: u64, count: usize) -> u64 {
    if bits.count_ones() as usize <= count {
        return bits;
    }
    let mut rest = bits;
    for _ in 0..count {
        rest &= rest - 1;
    }
    bits & !rest
}

/// Takes an aligned run of 2^`order` bits (order 1 to 8); gives its position.
pub(crate) fn take_run(field: &Field, order: u8) -> Option<u32> {
    if order <= 6 {
        for (number, word) in field.0.iter().enumerate() {
            let mut now = word.load(Ordering::Relaxed);
            while let Some(at) = find_run(now, order) {
                let mask = run_mask(order) << at;
                match word.compare_exchange(now, now & !mask, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => return Some(number as u32 * 64 + at),
                    Err(found) => now = found,
                }
            }
        }
        return None;
    }
    let words = 1usize << (order - 6);
    (0..WORDS).step_by(words).find_map(|start| {
        let run = &field.0[start..start + words];
        let mut held = 0;
        for word in run {
            if word
                .compare_exchange(u64::MAX, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                break;
            }
            held += 1;
        }
        if held == words {
            return Some(start as u32 * 64);
        }
        for word in &run[..held] {
            word.store(u64::MAX, Ordering::Release);
        }
        None
    })
}

/// Whether [`take_run`] would find something now.
pub(crate) fn has_run(field: &Field, order: u8) -> bool {
    if order <= 6 {
        return field
            .0
            .iter()
            .any(|word| find_run(word.load(Ordering::Relaxed), order).is_some());
    }
    let words = 1usize << (order - 6);
    field.0.chunks(words).any(|run| {
        run.iter()
            .all(|word| word.load(Ordering::Relaxed) == u64::MAX)
    })
}

const fn run_mask(order: u8) -> u64 {
    if order >= 6 {
        u64::MAX
    } else {
        (1 << (1 << order)) - 1
    }
}

/// The position of the lowest aligned run of 2^`order` set bits, order 0 to 6.
fn find_run(bits: u64, order: u8) -> Option<u32> {
    // Bit positions at which a run of this order may begin.
    const STARTS: [u64; 7] = [
        u64::MAX,
        0x5555_5555_5555_5555,
        0x1111_1111_1111_1111,
        0x0101_0101_0101_0101,
        0x0001_0001_0001_0001,
        0x0000_0001_0000_0001,
        1,
    ];
    let mut runs = bits;
    let mut width = 1;
    for _ in 0..order {
        runs &= runs >> width;
        width *= 2;
    }
    let runs = runs & STARTS[order as usize];
    (runs != 0).then(|| runs.trailing_zeros())
}

/// How many maximal aligned runs of each order (0 to 8) the eight words hold, added to `counts`.
pub(crate) fn count_runs(words: &[u64; WORDS], counts: &mut [u32; 11]) {
    let mut rest = *words;
    for order in [8u8, 7] {
        let wide = 1usize << (order - 6);
        for run in rest.chunks_mut(wide) {
            if run.iter().all(|word| *word == u64::MAX) {
                counts[order as usize] += 1;
                run.fill(0);
            }
        }
    }
    for word in &mut rest {
        for order in (0..=6u8).rev() {
            while let Some(at) = find_run(*word, order) {
                counts[order as usize] += 1;
                *word &= !(run_mask(order) << at);
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn runs_are_aligned_and_lowest() {
        assert_eq!(
            find_run(0b0110, 1),
            None,
            "bits 1 and 2 are no aligned pair"
        );
        assert_eq!(find_run(0b1100, 1), Some(2));
        assert_eq!(find_run(u64::MAX, 6), Some(0));
        assert_eq!(find_run(u64::MAX << 32, 5), Some(32));
        assert_eq!(find_run(u64::MAX << 1, 6), None);
        assert_eq!(find_run(1 << 63, 0), Some(63));
    }

    #[test]
    fn lowest_bits() {
        assert_eq!(lowest(0b1011_0000, 2), 0b0011_0000);
        assert_eq!(lowest(0b1, 5), 0b1);
        assert_eq!(lowest(u64::MAX, 64), u64::MAX);
    }

    #[test]
    fn maximal_runs_are_counted_once() {
        let mut words = [0u64; WORDS];
        words[0] = u64::MAX;
        words[1] = u64::MAX;
        words[2] = 0b1111_0001;
        let mut counts = [0; 11];
        count_runs(&words, &mut counts);
        assert_eq!(counts, [1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
