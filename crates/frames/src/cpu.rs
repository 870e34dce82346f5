//! What belongs to one CPU, behind a lock that is normally free.
//!
//! The first cache line holds the lock and everything that other CPUs read. The lock's holder changes all of it by
//! plain loads and stores. The lock is a leaf: its holder takes no other. Interrupts are masked while it is held, so
//! that a handler that allocates or frees never waits for the code that it interrupted.

use crate::{
    BlockId, Event, Interrupts, Migratetype, ZoneId,
    cache::TypeCache,
    config::MAX_ZONES,
    sync::{AtomicU32, AtomicU64, Ordering, spin_hint},
};

/// Counters of events: room for all, whole cache lines.
const COUNTERS: usize = 80;
const _: () = assert!(Event::COUNT <= COUNTERS);
/// Spare blocks that there is room for.
pub(crate) const SPARES: usize = 16;

/// Everything of one CPU.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[repr(C, align(64))]
pub(crate) struct CpuSlot {
    lock: AtomicU32,
    /// Moves in the room index that this CPU began, and those among them that have ended.
    begun: AtomicU32,
    ended: AtomicU32,
    /// How many spare blocks it keeps.
    pub spare_count: AtomicU32,
    /// Bit n: the caches may hold frames of, or be refilled from, blocks whose number ends in n.
    filter: AtomicU64,
    /// By zone: what the CPU changed in the sums of free frames and of whole blocks, signed; see [`sums`](crate::sums).
    delta: [AtomicU32; MAX_ZONES],
    whole: [AtomicU32; MAX_ZONES],
    /// How many more refused requests for several frames may pass without a drain, and how many passed the last time.
    pub skip: AtomicU32,
    pub skipped: AtomicU32,
    /// Where the CPU begins to look for whole free blocks of each zone, so that two CPUs do not walk the same cache
    /// lines.
    home: [AtomicU32; MAX_ZONES],
    pad: [u32; 12],
    pub events: [AtomicU64; COUNTERS],
    pub spares: [AtomicU32; SPARES],
    pub caches: [TypeCache; 3],
}

#[cfg(not(shuttle))]
const _: () = assert!(
    size_of::<CpuSlot>().is_multiple_of(64)
        && core::mem::offset_of!(CpuSlot, home) == 64
        && core::mem::offset_of!(CpuSlot, caches).is_multiple_of(64)
);

#[cfg(shuttle)]
impl Default for CpuSlot {
    fn default() -> Self {
        fn zeroes<const N: usize>() -> [AtomicU32; N] {
            core::array::from_fn(|_| AtomicU32::new(0))
        }
        Self {
            lock: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            spare_count: AtomicU32::new(0),
            filter: AtomicU64::new(0),
            delta: zeroes(),
            whole: zeroes(),
            skip: AtomicU32::new(0),
            skipped: AtomicU32::new(0),
            home: zeroes(),
            pad: [0; 12],
            events: core::array::from_fn(|_| AtomicU64::new(0)),
            spares: zeroes(),
            caches: core::array::from_fn(|_| TypeCache::default()),
        }
    }
}

impl CpuSlot {
    /// Masks the interrupts of the CPU that calls, by `interrupts` if given, and waits for the lock.
    #[inline]
    pub fn lock(&self, interrupts: Option<&'static dyn Interrupts>) -> CpuGuard<'_> {
        let masked = interrupts.map(|interrupts| (interrupts, interrupts.mask()));
        // SeqCst: pairs with the release in `drop`, so that everything inside may be plain loads and stores, and with
        // `is_clear_of`.
        while self.lock.swap(1, Ordering::SeqCst) != 0 {
            while self.lock.load(Ordering::Relaxed) != 0 {
                spin_hint();
            }
        }
        CpuGuard { slot: self, masked }
    }

    /// The CPU's part of the sum of free frames of a zone. Acquire: see [`sums`](crate::sums).
    #[inline]
    pub fn delta(&self, zone: ZoneId) -> i64 {
        i64::from(self.delta[zone.index()].load(Ordering::Acquire) as i32)
    }

    /// For the lock's holder.
    #[inline]
    pub fn set_delta(&self, zone: ZoneId, frames: i64) {
        self.delta[zone.index()].store(frames as u32, Ordering::Release);
    }

    /// The CPU's part of the sum of whole blocks.
    #[inline]
    pub fn whole(&self, zone: ZoneId) -> i64 {
        i64::from(self.whole[zone.index()].load(Ordering::Acquire) as i32)
    }

    /// For the lock's holder.
    #[inline]
    pub fn set_whole(&self, zone: ZoneId, blocks: i64) {
        self.whole[zone.index()].store(blocks as u32, Ordering::Release);
    }

    #[inline]
    pub fn begin_move(&self) {
        let begun = self.begun.load(Ordering::Relaxed);
        self.begun.store(begun.wrapping_add(1), Ordering::Relaxed);
    }

    #[inline]
    pub fn end_move(&self) {
        let ended = self.ended.load(Ordering::Relaxed);
        self.ended.store(ended.wrapping_add(1), Ordering::Release);
    }

    pub fn moves_begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    pub fn moves_ended(&self) -> u32 {
        self.ended.load(Ordering::Acquire)
    }

    /// The first block to look at for a whole one.
    pub fn home(&self, zone: ZoneId) -> BlockId {
        BlockId::new(self.home[zone.index()].load(Ordering::Relaxed))
    }

    pub fn set_home(&self, zone: ZoneId, block: BlockId) {
        self.home[zone.index()].store(block.get(), Ordering::Relaxed);
    }

    /// Frames in the CPU's caches, without the lock: a hint.
    pub fn cached(&self) -> u64 {
        self.caches.iter().map(TypeCache::len).sum::<usize>() as u64
    }

    /// Whether nothing that the CPU keeps can be of the blocks of `residues` (bit n: their number ends in n). Before
    /// the call the caller publishes, by a sequentially consistent step, what later holders of the lock must see.
    ///
    /// Dekker's argument with [`lock`](Self::lock): this side has published, then reads the lock; the other has taken
    /// the lock, then reads what was published. At least one sees the other. So if the lock looks free here, whoever
    /// takes it later sees what was published, and the filter, published by the last release of the lock, is complete.
    pub fn is_clear_of(&self, residues: u64) -> bool {
        self.lock.load(Ordering::SeqCst) == 0 && self.is_clear_of_by_filter(residues)
    }

    /// The same by the filter alone: for callers who know that nothing changes.
    pub fn is_clear_of_by_filter(&self, residues: u64) -> bool {
        self.filter.load(Ordering::Relaxed) & residues == 0
    }

    /// Whether somebody holds the lock now.
    pub fn is_locked(&self) -> bool {
        self.lock.load(Ordering::Acquire) != 0
    }

    /// Whether a drain would find nothing to do, as far as it shows without the lock.
    pub fn is_drained(&self) -> bool {
        let nothing = |parts: &[AtomicU32]| parts.iter().all(|p| p.load(Ordering::Acquire) == 0);
        self.is_clear_of(u64::MAX)
            && self.spare_count.load(Ordering::Acquire) == 0
            && nothing(&self.delta)
            && nothing(&self.whole)
            // Once more: what a holder of the lock is just giving back is in none of these, and not yet anywhere else.
            && !self.is_locked()
    }
}

/// The bit of a block in a filter.
#[inline]
pub(crate) fn residue(block: BlockId) -> u64 {
    1 << (block.index() % 64)
}

/// The right to use what belongs to a CPU.
#[derive(Debug)]
pub(crate) struct CpuGuard<'a> {
    pub slot: &'a CpuSlot,
    /// Who masked the interrupts, and what they were before.
    masked: Option<(&'static dyn Interrupts, bool)>,
}

impl Drop for CpuGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: pairs with the swap in `CpuSlot::lock`.
        self.slot.lock.store(0, Ordering::Release);
        if let Some((interrupts, before)) = self.masked {
            interrupts.restore(before);
        }
    }
}

impl CpuGuard<'_> {
    #[inline]
    pub fn cache(&self, migratetype: Migratetype) -> &TypeCache {
        &self.slot.caches[migratetype as usize]
    }

    /// Counts `event` by plain loads and stores.
    #[inline]
    pub fn count(&self, event: Event, times: u64) {
        let counter = &self.slot.events[event as usize];
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(times), Ordering::Relaxed);
    }

    /// Adds `block` to the filter: from now on the caches may hold frames of it, or be refilled from it.
    #[inline]
    pub fn add_to_filter(&self, block: BlockId) {
        let filter = self.slot.filter.load(Ordering::Relaxed);
        let with = filter | residue(block);
        if with != filter {
            self.slot.filter.store(with, Ordering::Relaxed);
        }
    }

    /// Replaces the filter, after a look at all caches.
    pub fn set_filter(&self, residues: u64) {
        self.slot.filter.store(residues, Ordering::Relaxed);
    }
}
