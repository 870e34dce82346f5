//! What each CPU has to itself, behind a lock that is normally free.
//!
//! The first cache line holds the lock and everything that others look at; with the lock held all of it is changed by plain
//! loads and stores. The lock is a leaf: its holder takes no other. Interrupts are masked while it is held, so that a handler
//! that allocates or frees never waits for the code that it interrupted.

use crate::{
    BlockId, CpuId, FrameAllocator, Interrupts, Migratetype,
    cache::TypeCache,
    config::MAX_ZONES,
    counters::ROW,
    spare::SPARES,
    sync::{AtomicU32, AtomicU64, Ordering, spin_hint},
};

/// No block is reserved.
pub(crate) const NO_BLOCK: u32 = 0;

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
    /// Refused requests of several frames that may still pass without a drain, and how many passed the last time.
    pub skip: AtomicU32,
    pub skipped: AtomicU32,
    /// Where the CPU begins to look for whole free blocks of each zone, so that two do not walk the same cache lines.
    home: [AtomicU32; MAX_ZONES],
    pad: [u32; 12],
    pub events: [AtomicU64; ROW],
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
    /// The CPU's part of the sum of free frames of a zone. Acquire: see [`sums`](crate::sums).
    #[inline]
    pub fn delta(&self, zone: usize) -> i64 {
        i64::from(self.delta[zone].load(Ordering::Acquire) as i32)
    }

    /// By the lock's holder.
    #[inline]
    pub fn set_delta(&self, zone: usize, frames: i64) {
        self.delta[zone].store(frames as u32, Ordering::Release);
    }

    /// The CPU's part of the sum of whole blocks.
    #[inline]
    pub fn whole(&self, zone: usize) -> i64 {
        i64::from(self.whole[zone].load(Ordering::Acquire) as i32)
    }

    /// By the lock's holder.
    #[inline]
    pub fn set_whole(&self, zone: usize, blocks: i64) {
        self.whole[zone].store(blocks as u32, Ordering::Release);
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
    pub fn home(&self, zone: usize) -> usize {
        self.home[zone].load(Ordering::Relaxed) as usize
    }

    pub fn set_home(&self, zone: usize, block: u32) {
        self.home[zone].store(block, Ordering::Relaxed);
    }

    /// Frames in the CPU's caches, without the lock: a hint.
    pub fn cached(&self) -> u64 {
        self.caches.iter().map(TypeCache::len).sum::<usize>() as u64
    }

    /// Whether nothing of the CPU's can have to do with the blocks of `residues` (bit n: their number ends in n). The caller has
    /// said before, by a sequentially consistent step, what whoever gets the lock later must see.
    ///
    /// Dekker's argument with [`FrameAllocator::lock`]: this side has told, then looks at the lock; the other has taken the lock,
    /// then looks at what was told. At least one sees the other's. So if the lock looks free here, whoever takes it later sees what
    /// was told, and the filter, published by the last release of the lock, is complete.
    pub fn is_clear_of(&self, residues: u64) -> bool {
        self.lock.load(Ordering::SeqCst) == 0 && self.is_clear_of_by_filter(residues)
    }

    /// The same by the filter alone: for those who know that nothing changes.
    pub fn is_clear_of_by_filter(&self, residues: u64) -> bool {
        self.filter.load(Ordering::Relaxed) & residues == 0
    }

    /// Whether somebody holds the lock now.
    pub fn is_locked(&self) -> bool {
        self.lock.load(Ordering::Acquire) != 0
    }

    /// Whether a drain would find nothing to do, as far as can be told without the lock.
    pub fn is_drained(&self) -> bool {
        let nothing = |parts: &[AtomicU32]| parts.iter().all(|p| p.load(Ordering::Acquire) == 0);
        self.is_clear_of(u64::MAX)
            && self.spare_count.load(Ordering::Acquire) == 0
            && nothing(&self.delta)
            && nothing(&self.whole)
            // Once more: what somebody is just giving back is in none of these, and not yet anywhere else.
            && !self.is_locked()
    }
}

/// The bit of a block in a filter.
#[inline]
pub(crate) fn residue(block: BlockId) -> u64 {
    1 << (block.index() % 64)
}

impl FrameAllocator<'_> {
    /// Masks the interrupts of the CPU that calls and waits for the lock of `cpu`. Only isolation, a drain, whoever wants its
    /// spare blocks, and a migrating thread ever contend for it.
    pub(crate) fn lock(&self, cpu: CpuId) -> CpuGuard<'_> {
        self.lock_slot(&self.cpus[cpu.index()])
    }

    /// The same, for the shortest ways.
    #[inline]
    pub(crate) fn lock_inline(&self, cpu: CpuId) -> CpuGuard<'_> {
        self.lock_slot_inline(&self.cpus[cpu.index()])
    }

    #[inline(never)]
    pub(crate) fn lock_slot<'a>(&'a self, slot: &'a CpuSlot) -> CpuGuard<'a> {
        self.lock_slot_inline(slot)
    }

    #[inline]
    fn lock_slot_inline<'a>(&'a self, slot: &'a CpuSlot) -> CpuGuard<'a> {
        let masked = self
            .interrupts
            .map(|interrupts| (interrupts, interrupts.mask()));
        // SeqCst: pairs with the release in `drop`, so that everything inside may be plain loads and stores, and with
        // `is_clear_of`.
        while slot.lock.swap(1, Ordering::SeqCst) != 0 {
            while slot.lock.load(Ordering::Relaxed) != 0 {
                spin_hint();
            }
        }
        CpuGuard { slot, masked }
    }
}

/// The right to use what a CPU has to itself.
#[derive(Debug)]
pub(crate) struct CpuGuard<'a> {
    pub slot: &'a CpuSlot,
    /// Who masked the interrupts, and what they were before.
    masked: Option<(&'static dyn Interrupts, bool)>,
}

impl Drop for CpuGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: pairs with the swap in `lock_slot`.
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

    /// Says that the caches may have to do with `block` from now on.
    #[inline]
    pub fn note_block(&self, block: BlockId) {
        let filter = self.slot.filter.load(Ordering::Relaxed);
        let with = filter | residue(block);
        if with != filter {
            self.slot.filter.store(with, Ordering::Relaxed);
        }
    }

    /// Says which blocks they have to do with, after a look at all of them.
    pub fn set_filter(&self, residues: u64) {
        self.slot.filter.store(residues, Ordering::Relaxed);
    }
}
