//! Pages in buffers: what goes into files and pipes, and comes out of them.

use dirigible_workload::{
    calls::Check,
    content::{LINES, Pattern, Wrong, four_lines},
};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of a line.
const LINE: usize = PAGE / LINES;

/// Fills a page with a pattern.
pub fn fill(page: &mut [u8], pattern: Pattern) {
    page.fill(0);
    for (line, bytes) in page.chunks_exact_mut(LINE).enumerate() {
        bytes[..8].copy_from_slice(&pattern.word(line).to_le_bytes());
    }
}

/// The first line of a page that is compared and is wrong.
pub fn compare(page: &[u8], pattern: Pattern, check: Check) -> Option<Wrong> {
    wrong_line(pattern, check, |line| {
        let bytes = page.get(line * LINE..line * LINE + 8);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    })
}

/// The first line that is compared and is wrong; `word` reads one.
pub fn wrong_line(pattern: Pattern, check: Check, word: impl Fn(usize) -> u64) -> Option<Wrong> {
    let wrong = |line| pattern.wrong_read(line, word(line));
    match check {
        Check::Four(draw) => four_lines(draw).into_iter().find_map(wrong),
        Check::Whole => (0..LINES).find_map(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_line_is_found() {
        let pattern = Pattern::new(3, 4);
        let mut page = vec![0xff; PAGE];
        fill(&mut page, pattern);
        let four = Check::Four(5 | 9 << 6 | 9 << 12 | 63 << 18);
        assert_eq!(compare(&page, pattern, Check::Whole), None);
        assert_eq!(compare(&page, pattern, four), None);
        assert!(compare(&page, Pattern::new(3, 5), four).is_some());
        page[63 * LINE] ^= 1;
        for check in [Check::Whole, four] {
            assert_eq!(
                compare(&page, pattern, check).map(|wrong| wrong.line),
                Some(63)
            );
        }
        assert_eq!(compare(&page, pattern, Check::Four(1)), None);
        // A page that is not there is wrong.
        assert!(compare(&[], pattern, four).is_some());
    }
}
