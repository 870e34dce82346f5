//! A histogram of times for several CPUs: fixed size, no lock, no allocation after its construction.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// Each doubling has this many buckets of equal width, so the ends of a bucket differ by at most 1 part in 32.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 5;
/// Times below [`STEPS`] have a bucket each; the doublings above follow.
const BUCKETS: usize = (STEPS as usize) * (u64::BITS - STEP_BITS + 1) as usize;

/// Counts of times in nanoseconds.
///
/// All counters are relaxed: they are sums for a report and publish nothing. A concurrent reader sees the counts so
/// far.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    longest: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    pub fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            longest: AtomicU64::new(0),
        }
    }

    /// Counts one time.
    pub fn add(&self, ns: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(ns)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.longest.fetch_max(ns, Ordering::Relaxed);
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .sum()
    }

    /// The longest time, or 0 if there is none.
    pub fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    /// A time that `thousandths` of 1000 did not exceed: the upper end of a bucket, so up to 3 % too long, but at most
    /// the longest time. 0 if there is none.
    pub fn quantile(&self, thousandths: u64) -> u64 {
        let wanted = (u128::from(self.count()) * u128::from(thousandths)).div_ceil(1000) as u64;
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= wanted.max(1) {
                return end_of(index).min(self.longest());
            }
        }
        self.longest()
    }
}

/// The bucket of `ns`.
const fn bucket_of(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    // The highest bit selects the doubling, the five bits below it the step.
    let doubling = u64::BITS - 1 - STEP_BITS - ns.leading_zeros();
    (STEPS * (doubling as u64 + 1) + (ns >> doubling) - STEPS) as usize
}

/// The longest time of bucket `index`.
const fn end_of(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index;
    }
    let (doubling, step) = (index / STEPS - 1, index % STEPS);
    // Computed in this order because the last bucket ends with the largest number.
    ((STEPS + step) << doubling) + ((1 << doubling) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(end_of(BUCKETS - 1), u64::MAX);
        let mut last = None;
        for index in 0..BUCKETS {
            let end = end_of(index);
            let start = last.map_or(0, |last: u64| last + 1);
            assert_eq!((bucket_of(start), bucket_of(end)), (index, index));
            assert!(end - start <= start / 32, "{start} to {end}");
            last = Some(end);
        }
    }

    #[test]
    fn quantiles_are_at_most_a_step_too_long() {
        let histogram = Histogram::new();
        assert_eq!((histogram.quantile(999), histogram.longest()), (0, 0));
        for ns in 1..=10_000u64 {
            histogram.add(ns * 1000);
        }
        assert_eq!(
            (histogram.count(), histogram.longest()),
            (10_000, 10_000_000)
        );
        for (thousandths, exact) in [(1, 10_000), (500, 5_000_000), (999, 9_990_000)] {
            let found = histogram.quantile(thousandths);
            assert!(
                (exact..=exact + exact / 32).contains(&found),
                "{thousandths}: {found}"
            );
        }
        assert_eq!(histogram.quantile(1000), 10_000_000);
    }

    #[test]
    fn a_single_time_is_all_its_quantiles() {
        let histogram = Histogram::new();
        histogram.add(123_456_789);
        for thousandths in [0, 1, 500, 999, 1000] {
            assert_eq!(histogram.quantile(thousandths), 123_456_789);
        }
    }
}
