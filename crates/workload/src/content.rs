//! The contents of the load's pages, and their checks.
//!
//! Each 64-byte line of a page holds one word, computed from the owner, the page's position at the owner, and the line.
//! If a page was lost, confused with another, copied in part, or used while the host held it (it then reads as zeroes),
//! its check fails.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use dirigible_frames::{LINES_PER_FRAME, PageTables, Pfn, WORDS_PER_LINE};
use spin::Mutex;

use crate::rng::mix;

/// Lines of 64 bytes in a page.
pub const LINES: usize = LINES_PER_FRAME;
/// How many errors are kept with all details; the others are only counted.
const KEPT: usize = 8;

/// The pattern of one page: a mix of owner and position, with one addition for each line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// The pattern of page `position` of the owner with key `owner`.
    pub const fn new(owner: u64, position: u64) -> Self {
        Self(mix(owner.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ position))
    }

    /// The word of `line`.
    pub const fn word(self, line: usize) -> u64 {
        self.0
            .wrapping_add((line as u64).wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// Writes the pattern into every line of `frame`.
    pub fn write<P: PageTables>(self, platform: &P, frame: Pfn) {
        platform.write_lines(frame, &core::array::from_fn(|line| self.word(line)));
    }

    /// The first line of `frame` that does not hold the pattern.
    pub fn first_wrong<P: PageTables>(self, platform: &P, frame: Pfn) -> Option<Wrong> {
        let mut found = [0; LINES];
        platform.read_lines(frame, &mut found);
        self.first_wrong_read(&found)
    }

    /// The first of a page's lines, given as read, that does not hold the pattern.
    pub fn first_wrong_read(self, found: &[u64; LINES]) -> Option<Wrong> {
        (0..LINES).find_map(|line| self.wrong_read(line, found[line]))
    }

    /// The error in `line`, which reads as `found`, if there is one.
    pub fn wrong_read(self, line: usize, found: u64) -> Option<Wrong> {
        (found != self.word(line)).then_some(Wrong { line, found })
    }

    /// The first wrong line of the four that `draw` selects, six bits each.
    pub fn first_wrong_of_four<P: PageTables>(
        self,
        platform: &P,
        frame: Pfn,
        draw: u32,
    ) -> Option<Wrong> {
        four_lines(draw).into_iter().find_map(|line| {
            self.wrong_read(line, platform.read_word(frame, line * WORDS_PER_LINE))
        })
    }
}

/// The four lines that `draw` selects.
pub const fn four_lines(draw: u32) -> [usize; 4] {
    const fn line(draw: u32) -> usize {
        draw as usize % LINES
    }
    [
        line(draw),
        line(draw >> 6),
        line(draw >> 12),
        line(draw >> 18),
    ]
}

/// A line with wrong contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The line.
    pub line: usize,
    /// What it holds.
    pub found: u64,
}

/// The occasion of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// The page had just been moved.
    Moved,
    /// The owner used it again.
    Used,
    /// The owner gave it back.
    Ended,
}

/// A page with wrong contents.
#[derive(Clone, Copy, Debug)]
pub struct ContentError {
    /// Its frame.
    pub frame: Pfn,
    /// The wrong line.
    pub wrong: Wrong,
    /// The check that found it.
    pub when: When,
    /// The owner in words: a program's memory (`program`), a `file`, a `pipe`, a `stack` in the kernel, or the probe.
    pub owner: &'static str,
    /// Its position at that owner.
    pub position: u64,
}

/// Counts the checks and keeps the first errors.
#[derive(Debug, Default)]
pub struct ContentLog {
    errors: AtomicU64,
    checked_whole: AtomicU64,
    first: Mutex<Vec<ContentError>>,
}

impl ContentLog {
    /// An empty log.
    pub fn new() -> Self {
        Self {
            first: Mutex::new(Vec::with_capacity(KEPT)),
            ..Self::default()
        }
    }

    // Relaxed: the counts are sums for the report and publish nothing.

    /// Checks every line of `frame`.
    pub fn check_whole<P: PageTables>(
        &self,
        platform: &P,
        frame: Pfn,
        pattern: Pattern,
        note: (When, &'static str, u64),
    ) {
        self.count_whole();
        if let Some(wrong) = pattern.first_wrong(platform, frame) {
            self.record(frame, wrong, note);
        }
    }

    /// Counts one more page that was checked whole.
    pub fn count_whole(&self) {
        self.checked_whole.fetch_add(1, Ordering::Relaxed);
    }

    /// Checks the four lines of `frame` that `draw` selects.
    pub fn check_four<P: PageTables>(
        &self,
        platform: &P,
        frame: Pfn,
        pattern: Pattern,
        draw: u32,
        note: (When, &'static str, u64),
    ) {
        if let Some(wrong) = pattern.first_wrong_of_four(platform, frame, draw) {
            self.record(frame, wrong, note);
        }
    }

    /// Records an error.
    pub fn record(&self, frame: Pfn, wrong: Wrong, note: (When, &'static str, u64)) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let (when, owner, position) = note;
        let mut first = self.first.lock();
        if first.len() < KEPT {
            first.push(ContentError {
                frame,
                wrong,
                when,
                owner,
                position,
            });
        }
    }

    /// Pages found wrong.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Pages checked whole.
    pub fn checked_whole(&self) -> u64 {
        self.checked_whole.load(Ordering::Relaxed)
    }

    /// The first errors, with all details.
    pub fn first_errors(&self) -> Vec<ContentError> {
        self.first.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_tell_owner_position_and_line_apart() {
        let mut words = Vec::new();
        for owner in 1..5 {
            for position in 0..50 {
                words.extend((0..LINES).map(|line| Pattern::new(owner, position).word(line)));
            }
        }
        assert!(!words.contains(&0), "a discarded page reads as zeroes");
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 4 * 50 * LINES);
    }
}
