//! Zones: their blocks, watermarks, the whole-block reserve, and their own share of the sums.

use crate::{
    BlockId, FRAMES_PER_BLOCK, Watermark, Watermarks,
    config::ZoneConfig,
    index::Index,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// A zone's own share of its sums, see [`sums`](crate::sums). In a cache line apart from what is only read.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Share {
    /// Frames that can be taken, in open blocks. Signed, since a freer may be late.
    pub free: AtomicU64,
    /// Wholly free blocks. Signed.
    pub whole: AtomicU64,
    pub managed: AtomicU64,
    /// Moves of blocks in the room index that were begun by those who hold no CPU's lock.
    pub begun: AtomicU64,
    /// And those among them that have ended.
    pub ended: AtomicU64,
}

/// Memory with marks of its own. Marks, drift and what is managed are relaxed throughout: each is a number on its own,
/// and nothing else is read by it.
#[derive(Debug)]
pub(crate) struct Zone<'m> {
    pub share: Share,
    /// The first block, and how many there are.
    pub first: BlockId,
    present: AtomicU32,
    /// How many there may be.
    pub capacity: u32,
    pub reserve: u32,
    min: AtomicU64,
    low: AtomicU64,
    high: AtomicU64,
    /// The most that a CPU keeps of the sum of free frames to itself, and that for all CPUs.
    drift: AtomicU64,
    slack: AtomicU64,
    pub by_room: Index<'m>,
    pub by_cost: Index<'m>,
    pub by_heal: Index<'m>,
    pub name: &'static str,
}

/// Larger marks are cut to this: sums are signed.
const HIGHEST_MARK: u64 = i64::MAX as u64 / 4;

impl<'m> Zone<'m> {
    #[inline(never)]
    pub fn new(
        config: &ZoneConfig<'_>,
        first: BlockId,
        capacity: u32,
        indexes: [Index<'m>; 3],
    ) -> Self {
        let [by_room, by_cost, by_heal] = indexes;
        let zone = Self {
            first,
            capacity,
            reserve: config.reserve_blocks,
            by_room,
            by_cost,
            by_heal,
            name: config.name,
            ..Self::absent()
        };
        zone.set_marks(config.watermarks);
        zone
    }

    pub fn absent() -> Self {
        Self {
            share: Share::default(),
            first: BlockId::new(0),
            present: AtomicU32::new(0),
            capacity: 0,
            reserve: 0,
            min: AtomicU64::new(0),
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
            drift: AtomicU64::new(0),
            slack: AtomicU64::new(0),
            by_room: Index::EMPTY,
            by_cost: Index::EMPTY,
            by_heal: Index::EMPTY,
            name: "",
        }
    }

    /// How many blocks there are, from `first` on.
    pub fn present(&self) -> u32 {
        // Acquire: pairs with `set_present`.
        self.present.load(Ordering::Acquire)
    }

    /// The blocks that there are, ascending.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = BlockId> + Clone + use<> {
        self.first.run(self.present())
    }

    pub fn set_present(&self, blocks: u32) {
        // Release: a reader that counts a block finds its tables.
        self.present.store(blocks, Ordering::Release);
    }

    pub fn managed(&self) -> i64 {
        self.share.managed.load(Ordering::Relaxed) as i64
    }

    pub fn add_managed(&self, frames: i64) {
        // Relaxed: a number on its own.
        self.share
            .managed
            .fetch_add(frames as u64, Ordering::Relaxed);
    }

    /// Sets the drift by the zone's size and the number of CPUs. It only grows, since what CPUs keep is bounded by the
    /// drift of the time.
    pub fn set_drift(&self, cpus: usize) {
        let frames = u64::from(self.present()) * FRAMES_PER_BLOCK as u64;
        let drift = (frames / (64 * cpus as u64)).min(4096);
        // First, and Release below: a reader that sees a CPU keep more of the sum sees the slack that allows for it.
        self.slack.store(drift * cpus as u64, Ordering::Relaxed);
        self.drift.store(drift, Ordering::Release);
    }

    #[inline]
    pub fn drift(&self) -> i64 {
        self.drift.load(Ordering::Acquire) as i64
    }

    #[inline]
    pub fn slack(&self) -> i64 {
        self.slack.load(Ordering::Relaxed) as i64
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

    /// What a request must leave.
    #[inline]
    pub fn mark(&self, watermark: Watermark) -> i64 {
        let mark = match watermark {
            Watermark::None => return 0,
            Watermark::Min => &self.min,
            Watermark::Low => &self.low,
            Watermark::High => &self.high,
        };
        mark.load(Ordering::Relaxed).min(HIGHEST_MARK) as i64
    }
}
