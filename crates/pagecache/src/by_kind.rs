//! Counts of pages, apart by what they hold.

use dirigible_frames::sync::{AtomicU64, Ordering};
use dirigible_reclaim::Kind;

/// A count for each [`Kind`]: what is dirty of programs is for reclaim to get rid of, and must not hold up who writes
/// files. Exact while nothing is under way.
#[derive(Default)]
pub(crate) struct ByKind([AtomicU64; Kind::COUNT]);

impl ByKind {
    /// Gives the count after.
    pub fn add(&self, kind: Kind, pages: u64) -> u64 {
        // Relaxed, here and below: a number on its own.
        self.0[kind as usize].fetch_add(pages, Ordering::Relaxed) + pages
    }

    pub fn sub(&self, kind: Kind, pages: u64) {
        self.0[kind as usize].fetch_sub(pages, Ordering::Relaxed);
    }

    pub fn get(&self, kind: Kind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    pub fn sum(&self) -> u64 {
        self.get(Kind::File) + self.get(Kind::Anonymous)
    }
}
