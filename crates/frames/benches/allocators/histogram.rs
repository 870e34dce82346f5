//! Counts of durations, one writer each, read when all is over.

use std::sync::atomic::{AtomicU64, Ordering};

/// Values below this have a bucket each; above, each doubling has so many: 1.6 % of the value.
const FINE: u64 = 64;
const BUCKETS: usize = (FINE * 59) as usize;

/// A histogram. Its writer needs no lock, and it has no other.
pub struct Histogram {
    counts: Vec<AtomicU64>,
    max: AtomicU64,
}

impl Histogram {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            max: AtomicU64::new(0),
        }
    }

    /// Counts `value`. One thread does this.
    #[inline]
    pub fn add(&self, value: u64) {
        // Relaxed, and no read-modify-write: the reader joins the writer's thread first.
        let count = &self.counts[bucket(value)];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if value > self.max.load(Ordering::Relaxed) {
            self.max.store(value, Ordering::Relaxed);
        }
    }

    /// Adds the counts of `other`.
    pub fn merge(&self, other: &Self) {
        for (count, more) in self.counts.iter().zip(&other.counts) {
            count.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.max.fetch_max(other.max(), Ordering::Relaxed);
    }

    /// How many values were counted.
    pub fn len(&self) -> u64 {
        self.counts.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }

    /// The largest.
    pub fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    /// The least value that `share` of all values do not exceed, to the precision of the buckets; `None` of nothing.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let wanted = (self.len() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count.load(Ordering::Relaxed);
            seen >= wanted
        })?;
        Some(highest(at).min(self.max()))
    }
}

fn bucket(value: u64) -> usize {
    if value < FINE {
        return value as usize;
    }
    let doublings = u64::from(value.ilog2() - FINE.ilog2());
    (FINE * doublings + (value >> doublings)) as usize
}

/// The largest value of a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doublings = (bucket / FINE).saturating_sub(1);
    let first = (bucket - FINE * doublings) << doublings;
    first + ((1 << doublings) - 1)
}
