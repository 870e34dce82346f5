//! Zones: watermarks, the whole-block reserve, and the sums that both are tested against.

use crate::{
    Watermarks,
    config::ZoneConfig,
    sync::{AtomicU64, Mutex, Ordering},
};

/// A zone's sums. Relaxed, but for the moves: each is a number on its own, and the ledgers decide.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Zone {
    /// Frames that can be taken, in open blocks. Signed, since a freer may be late.
    free: AtomicU64,
    /// Wholly free open blocks.
    whole: AtomicU64,
    managed: AtomicU64,
    /// Moves of blocks in the room index that were begun.
    begun: AtomicU64,
    /// And those among them that have ended.
    ended: AtomicU64,
    min: AtomicU64,
    low: AtomicU64,
    high: AtomicU64,
    pub reserve: u32,
    /// Held while a block is claimed that must not be one of the reserve.
    claiming: Mutex<()>,
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
            free: AtomicU64::new(0),
            whole: AtomicU64::new(0),
            managed: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            min: AtomicU64::new(0),
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
            reserve: 0,
            claiming: Mutex::new(()),
            name: "",
        }
    }

    pub fn free(&self) -> i64 {
        self.free.load(Ordering::Relaxed) as i64
    }

    pub fn whole(&self) -> i64 {
        self.whole.load(Ordering::Relaxed) as i64
    }

    pub fn managed(&self) -> i64 {
        self.managed.load(Ordering::Relaxed) as i64
    }

    pub fn add_free(&self, frames: i64) {
        if frames != 0 {
            self.free.fetch_add(frames as u64, Ordering::Relaxed);
        }
    }

    pub fn add_whole(&self, blocks: i64) {
        self.whole.fetch_add(blocks as u64, Ordering::Relaxed);
    }

    /// Runs `claim`, which takes a whole block, unless that would leave fewer of the `whole` ones than the reserve keeps.
    pub fn sparing<R>(
        &self,
        whole: impl FnOnce() -> i64,
        claim: impl FnOnce() -> Option<R>,
    ) -> Option<R> {
        if self.reserve == 0 {
            // The sum follows the ledgers late; where nothing is kept the search alone decides.
            return claim();
        }
        // One after the other, so that two CPUs do not both take the last block to spare. Nothing else is locked inside.
        let _claiming = self.claiming.lock();
        if whole() <= i64::from(self.reserve) {
            return None;
        }
        claim()
    }

    /// Before the bitmaps of the room index change. Relaxed: who sees a change of them, by their acquire, sees this.
    pub fn begin_move(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// After the bitmaps changed. Release: pairs with [`moves_ended`](Self::moves_ended).
    pub fn end_move(&self) {
        self.ended.fetch_add(1, Ordering::Release);
    }

    pub fn moves_begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Acquire: all moves counted are in the bitmaps that the caller looks at next.
    pub fn moves_ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    pub fn add_managed(&self, frames: i64) {
        self.managed.fetch_add(frames as u64, Ordering::Relaxed);
    }

    /// Books up to `want` frames, leaving `mark`; what is not taken from a block must be given back by [`Self::add_free`].
    pub fn book(&self, want: usize, mark: u64) -> usize {
        let mut granted = 0;
        let _ = self
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                let above = (free as i64).saturating_sub(mark as i64).max(0) as u64;
                granted = above.min(want as u64);
                (granted > 0).then(|| free.wrapping_sub(granted))
            });
        granted as usize
    }

    /// Books all of `frames`, leaving `mark`, or none; whether it did.
    pub fn book_all(&self, frames: u64, mark: u64) -> bool {
        frames == 0
            || self
                .free
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                    let above = (free as i64).saturating_sub(mark as i64);
                    (above >= frames as i64).then(|| free.wrapping_sub(frames))
                })
                .is_ok()
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
