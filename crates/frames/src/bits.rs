//! Bit tricks inside a block's field.

use crate::{
    metadata::{Field, WORDS},
    sync::{AtomicU64, Ordering, spin_hint},
};

/// Takes `count` set bits out of `field`, lowest first; gives them as masks, one for each word.
///
/// The caller has lowered the ledger by `count`, so as many bits are its own. It loops because a bit that another taker
/// holds for a moment comes back.
#[inline(never)]
pub(crate) fn take_bits(field: &Field, count: usize) -> [u64; WORDS] {
    let mut masks = [0; WORDS];
    let mut left = count;
    loop {
        for (mask, word) in masks.iter_mut().zip(&field.0) {
            // AcqRel in `take_word`: pairs with the release of the freer that set the bits, and of the taker that put
            // some back.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let found = take_word(word, left);
            *mask |= found;
            left -= found.count_ones() as usize;
            if left == 0 {
                return masks;
            }
        }
        spin_hint();
    }
}

/// Takes up to `want` bits of one word, lowest first.
#[inline(never)]
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

/// The lowest position at which `count` bits in a row are set that begins at a multiple of `align`, 1 to 512.
pub(crate) fn find_span(field: &Field, count: usize, align: usize) -> Option<u32> {
    let words: [u64; WORDS] = core::array::from_fn(|word| field.0[word].load(Ordering::Relaxed));
    let bits = WORDS * 64;
    // How far set, or clear, bits go on from `at`.
    let stretch = |at: usize, set: bool| {
        let mut end = at;
        while end < bits {
            let word = words[end / 64] ^ if set { u64::MAX } else { 0 };
            let more = (word >> (end % 64)).trailing_zeros() as usize;
            let more = more.min(64 - end % 64);
            end += more;
            if more == 0 || !end.is_multiple_of(64) {
                break;
            }
        }
        end
    };
    let mut at = 0;
    while at + count <= bits {
        let end = stretch(at, true);
        let first = at.next_multiple_of(align);
        if first + count <= end {
            return Some(first as u32);
        }
        at = stretch(end, false).max(at + 1);
    }
    None
}

/// Takes the `count` bits from `at` on, or none; gives whether it did.
pub(crate) fn take_span(field: &Field, at: u32, count: usize) -> bool {
    let (first, end) = (at as usize / 64, (at as usize + count).div_ceil(64));
    for word in first..end {
        let mask = span_mask(word, at, count);
        // AcqRel, here and below: a taker sees what the freer of these bits did before it set them (the release of
        // `set_bits`), and who takes bits that come back sees what was done before.
        let old = field.0[word].fetch_and(!mask, Ordering::AcqRel);
        if old & mask != mask {
            field.0[word].fetch_or(old & mask, Ordering::AcqRel);
            for word in first..word {
                field.0[word].fetch_or(span_mask(word, at, count), Ordering::AcqRel);
            }
            return false;
        }
    }
    true
}

/// The `count` bits from `at` on, by word.
pub(crate) fn span_masks(at: u32, count: usize) -> [u64; WORDS] {
    core::array::from_fn(|word| span_mask(word, at, count))
}

/// Those of one word.
#[inline(never)]
pub(crate) fn span_mask(word: usize, at: u32, count: usize) -> u64 {
    let (begin, end) = (at as usize, at as usize + count);
    let (low, high) = (word * 64, word * 64 + 64);
    let (from, to) = (begin.max(low), end.min(high));
    if from >= to {
        0
    } else {
        (u64::MAX >> (64 - (to - from))) << (from - low)
    }
}

const fn run_mask(order: u8) -> u64 {
    if order >= 6 {
        u64::MAX
    } else {
        (1 << (1 << order)) - 1
    }
}

/// The position of the lowest aligned run of 2^`order` set bits, order 0 to 6.
#[inline(never)]
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
    fn spans_are_found_as_bit_by_bit() {
        let mut state = 3u64;
        let mut next = |below: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for _ in 0..3000 {
            let field = Field(core::array::from_fn(|_| AtomicU64::new(u64::MAX)));
            for _ in 0..next(9) {
                field.0[next(WORDS)].fetch_and(!(1 << next(64)), Ordering::Relaxed);
            }
            if next(4) == 0 {
                field.0[next(WORDS)].store(0, Ordering::Relaxed);
            }
            let (count, align) = (1 + next(512), 1 << next(10));
            let set = |at: usize| field.0[at / 64].load(Ordering::Relaxed) >> (at % 64) & 1 == 1;
            let fits = |at: &usize| at + count <= 512 && (*at..at + count).all(set);
            let expected = (0..512).step_by(align).find(fits).map(|at| at as u32);
            let found = find_span(&field, count, align);
            assert_eq!(found, expected, "{count} at {align}: {field:?}");
            if let Some(at) = found {
                let before: std::vec::Vec<bool> = (0..512).map(set).collect();
                assert!(take_span(&field, at, count));
                let taken = at as usize..at as usize + count;
                assert!((0..512).all(|b| set(b) == (before[b] && !taken.contains(&b))));
                assert!(!take_span(&field, at, count), "they are gone");
                assert!((0..512).all(|b| set(b) == (before[b] && !taken.contains(&b))));
            }
        }
    }

    #[test]
    fn masks_cover_exactly_the_span() {
        for (at, count) in [(0, 512), (0, 1), (511, 1), (70, 130), (63, 2), (64, 64)] {
            let masks = span_masks(at, count);
            for bit in 0..512 {
                let inside = (at as usize..at as usize + count).contains(&bit);
                let set = masks[bit / 64] >> (bit % 64) & 1 == 1;
                assert_eq!(set, inside, "{count} from {at}: {bit}");
            }
        }
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
