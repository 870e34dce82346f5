//! Zones: watermarks, the whole-block reserve, and the sums that both are tested against.

use crate::{
    Watermarks,
    config::ZoneConfig,
    sync::{AtomicU64, Ordering},
};

/// A zone's own share of its sums, see [`account`](crate::account).
#[derive(Debug, Default)]
#[repr(align(64))]
struct Sums {
    /// Frames that can be taken, in open blocks. Signed, since a freer may be late.
    free: AtomicU64,
    /// Wholly free open blocks. Signed.
    whole: AtomicU64,
    managed: AtomicU64,
    /// Moves of blocks in the room index that were begun.
    begun: AtomicU64,
    /// And those among them that have ended.
    ended: AtomicU64,
}

/// A zone. Relaxed, but for the moves: each is a number on its own, and the ledgers decide.
#[derive(Debug)]
pub(crate) struct Zone {
    /// In a cache line apart from what is only read.
    sums: Sums,
    min: AtomicU64,
    low: AtomicU64,
    high: AtomicU64,
    pub reserve: u32,
    pub name: &'static str,
}

impl Zone {
    pub fn new(config: &ZoneConfig<'_>) -> Self {
        let marks = config.watermarks;
        Self {
            min: AtomicU64::new(marks.min),
            low: AtomicU64::new(marks.low),
            high: AtomicU64::new(marks.high),
            reserve: config.reserve_blocks,
            name: config.name,
            ..Self::absent()
        }
    }

    pub fn absent() -> Self {
        Self {
            sums: Sums::default(),
            min: AtomicU64::new(0),
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
            reserve: 0,
            name: "",
        }
    }

    pub fn free(&self) -> i64 {
        self.sums.free.load(Ordering::Relaxed) as i64
    }

    pub fn whole(&self) -> i64 {
        self.sums.whole.load(Ordering::Relaxed) as i64
    }

    pub fn managed(&self) -> i64 {
        self.sums.managed.load(Ordering::Relaxed) as i64
    }

    pub fn add_free(&self, frames: i64) {
        if frames != 0 {
            self.sums.free.fetch_add(frames as u64, Ordering::Relaxed);
        }
    }

    pub fn add_whole(&self, blocks: i64) {
        if blocks != 0 {
            self.sums.whole.fetch_add(blocks as u64, Ordering::Relaxed);
        }
    }

    /// The counts of moves begun and ended that no CPU's lock covers.
    pub fn moves(&self) -> (&AtomicU64, &AtomicU64) {
        (&self.sums.begun, &self.sums.ended)
    }

    pub fn add_managed(&self, frames: i64) {
        self.sums
            .managed
            .fetch_add(frames as u64, Ordering::Relaxed);
    }

    /// Books `want` frames if that leaves `mark`.
    pub fn book_all(&self, want: usize, mark: u64) -> bool {
        self.sums
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                let left = free as i64 - want as i64;
                (left >= mark as i64).then_some(left as u64)
            })
            .is_ok()
    }

    /// Books up to `want` frames, leaving `mark`; what is not taken from a block must be given back by [`Self::add_free`].
    pub fn book(&self, want: usize, mark: u64) -> usize {
        let mut granted = 0;
        let _ = self
            .sums
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                let above = (free as i64).saturating_sub(mark as i64).max(0) as u64;
                granted = above.min(want as u64);
                (granted > 0).then(|| free.wrapping_sub(granted))
            });
        granted as usize
    }

    pub fn marks(&self) -> Watermarks {
        Watermarks {
            min: self.min.load(Ordering::Relaxed),
            low: self.low.load(Ordering::Relaxed),
            high: self.high.load(Ordering::Relaxed),
        }
    }

    pub fn set_marks(&self, marks: Watermarks) {
        self.min.store(marks.min, Ordering::Relaxed);
        self.low.store(marks.low, Ordering::Relaxed);
        self.high.store(marks.high, Ordering::Relaxed);
    }
}
