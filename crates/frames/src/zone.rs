//! Zones: their blocks, watermarks, the whole-block reserve, and their own share of the sums.

use crate::{
    BlockId, FRAMES_PER_BLOCK, FrameAllocator, Ledger, Pfn, Watermark, Watermarks, ZoneId,
    config::ZoneConfig,
    cpu::CpuGuard,
    index::{Index, Place},
    place::{cost_place, evacuation_cost, heal_place, room_place},
    sync::{AtomicU32, AtomicU64, Ordering, fence},
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

/// Memory with marks of its own. Marks, drift and what is managed are relaxed throughout: each is a number on its own, and
/// nothing else is read by it.
#[derive(Debug)]
pub(crate) struct Zone<'m> {
    pub share: Share,
    /// The first block, and how many there are.
    pub first: u32,
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

/// A mark beyond this is this: sums are signed.
const HIGHEST_MARK: u64 = i64::MAX as u64 / 4;

impl<'m> Zone<'m> {
    pub fn new(
        config: &ZoneConfig<'_>,
        first: u32,
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
            first: 0,
            present: AtomicU32::new(0),
            capacity: 0,
            reserve: 0,
            min: AtomicU64::new(0),
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
            drift: AtomicU64::new(0),
            slack: AtomicU64::new(0),
            by_room: Index::default(),
            by_cost: Index::default(),
            by_heal: Index::default(),
            name: "",
        }
    }

    /// How many blocks there are, from `first` on.
    pub fn present(&self) -> u32 {
        // Acquire: pairs with `set_present`.
        self.present.load(Ordering::Acquire)
    }

    pub fn set_present(&self, blocks: u32) {
        // Release: who counts a block finds its tables.
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

    /// Divides what may drift among `cpus`, by the zone's size. It only grows, since what CPUs keep was bounded by what it was.
    pub fn set_drift(&self, cpus: usize) {
        let frames = u64::from(self.present()) * FRAMES_PER_BLOCK as u64;
        let drift = (frames / (64 * cpus as u64)).min(4096);
        // First, and Release below: who keeps more of the sum already is seen with the slack that allows for it.
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

impl<'m> FrameAllocator<'m> {
    /// How many zones there are.
    pub fn zones(&self) -> impl Iterator<Item = ZoneId> + use<> {
        (0..self.zone_count as u8).map(ZoneId::new)
    }

    /// Zone numbers in the order in which requests try them.
    pub(crate) fn zone_order(&self) -> core::iter::Rev<core::ops::Range<usize>> {
        (0..self.zone_count).rev()
    }

    /// The zone of `pfn`'s block; `None` where this allocator has no memory.
    pub fn zone_of(&self, pfn: Pfn) -> Option<ZoneId> {
        self.block_of(pfn).map(|block| self.zone_of_block(block))
    }

    /// All blocks, zone by zone in the order of [`Config::zones`](crate::Config::zones), in each ascending.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = BlockId> + use<> {
        let present = |zone: &Zone<'_>| (zone.first, zone.first + zone.present());
        let zones: [(u32, u32); crate::MAX_ZONES] =
            core::array::from_fn(|z| present(&self.zones[z]));
        zones
            .into_iter()
            .flat_map(|(first, end)| (first..end).map(BlockId::new))
    }

    /// How many blocks there are.
    pub fn block_count(&self) -> usize {
        self.zones.iter().map(|zone| zone.present() as usize).sum()
    }

    /// Whether there is such a block.
    pub fn has_block(&self, block: BlockId) -> bool {
        let inside = |zone: &Zone<'_>| {
            (block.index() as u32)
                .checked_sub(zone.first)
                .is_some_and(|at| at < zone.present())
        };
        self.zones.iter().any(inside)
    }

    #[inline]
    pub(crate) fn zone_at(&self, block: BlockId) -> &Zone<'m> {
        &self.zones[self.zone_of_block(block).index()]
    }

    /// What compaction pays for `block`.
    #[inline]
    pub(crate) fn cost_of(&self, block: BlockId, ledger: Ledger) -> usize {
        self.cost_with(ledger, self.block_tally(block))
    }

    #[inline]
    fn cost_with(&self, ledger: Ledger, tally: u64) -> usize {
        match self.cost {
            None => evacuation_cost(ledger),
            Some(cost) => cost(ledger, tally) as usize,
        }
    }

    #[inline]
    fn cost_place_of(&self, block: BlockId, ledger: Ledger) -> Place {
        cost_place(ledger, self.cost_of(block, ledger))
    }

    /// Where the three indexes should have `block`.
    pub(crate) fn places(&self, block: BlockId) -> [Place; 3] {
        let ledger = self.ledger(block);
        [
            room_place(ledger),
            self.cost_place_of(block, ledger),
            heal_place(ledger),
        ]
    }

    /// Moves the block in the indexes whose order it left when its ledger changed from `old` to `new`.
    pub(crate) fn reindex(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        old: Ledger,
        new: Ledger,
    ) {
        let zone = self.zone_at(block);
        let (from, to) = (room_place(old), room_place(new));
        if from != to {
            self.move_by_room(block, guard, from, to);
        } else {
            // Whoever brought the block to this place may not have come to file it yet, and what it freed is ours to find.
            zone.by_room
                .ensure(block, to, &|| room_place(self.ledger(block)));
        }
        self.reindex_by_cost(block, old, new);
        let (from, to) = (heal_place(old), heal_place(new));
        if from != to {
            zone.by_heal
                .moved(block, from, to, &|| heal_place(self.ledger(block)));
        }
    }

    fn reindex_by_cost(&self, block: BlockId, old: Ledger, new: Ledger) {
        if self.cost.is_some() {
            // One half of Dekker's argument with `refile_by_cost`: the ledger is changed, then the tally is read.
            fence(Ordering::SeqCst);
        }
        let tally = self.block_tally(block);
        let place = |ledger| cost_place(ledger, self.cost_with(ledger, tally));
        let (from, to) = (place(old), place(new));
        if from != to {
            let wanted = || self.cost_place_of(block, self.ledger(block));
            self.zone_at(block).by_cost.moved(block, from, to, &wanted);
        }
        if self.cost.is_some() && self.block_tally(block) != tally {
            // The block may have been filed by either tally.
            self.refile_by_cost(block);
        }
    }

    /// Files `block` by its cost after its tally changed.
    pub(crate) fn refile_by_cost(&self, block: BlockId) {
        if self.cost.is_some() {
            // The other half: the tally is changed, then the ledger is read.
            fence(Ordering::SeqCst);
            let wanted = || self.cost_place_of(block, self.ledger(block));
            self.zone_at(block).by_cost.refile(block, &wanted);
        }
    }

    #[inline(never)]
    pub(crate) fn move_by_room(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        from: Place,
        to: Place,
    ) {
        let zone = self.zone_of_block(block).index();
        self.begin_move(zone, guard);
        self.zones[zone]
            .by_room
            .moved(block, from, to, &|| room_place(self.ledger(block)));
        self.end_move(zone, guard);
    }

    /// Moves a block that a search found in row `found` although its ledger says otherwise: the one that changed the ledger
    /// has not come to it yet.
    pub(crate) fn refile(&self, block: BlockId, found: usize) {
        let (found, right) = (Place::row(found), room_place(self.ledger(block)));
        if found != right {
            self.move_by_room(block, None, found, right);
        }
    }
}
