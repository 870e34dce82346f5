//! Per-CPU caches of single frames, one for each migratetype, behind a lock that is normally free.

use crate::{
    Migratetype,
    counters::ROW,
    sync::{AtomicU32, AtomicU64, Ordering, spin_hint},
};

/// Frames that one cache holds at most.
pub(crate) const CACHE_FRAMES: u32 = 192;
/// Places in a cache's ring, a power of two.
const RING: u32 = 256;
/// Frames that a refill takes and a flush gives back at most: one word of the field.
pub(crate) const BATCH: usize = 64;
/// No block is reserved.
pub(crate) const NO_BLOCK: u32 = 0;

/// The cache of one migratetype: a ring of frame indexes. The newest is handed out first, the oldest given back first.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[repr(C)]
pub(crate) struct TypeCache {
    /// One past the newest frame. Both ends count up and down without bound; their difference is what is cached.
    newest: AtomicU32,
    /// The oldest frame.
    oldest: AtomicU32,
    /// The block that the next refill looks at first, plus one.
    reserved: AtomicU32,
    pad: [u32; 13],
    ring: [AtomicU32; RING as usize],
}

impl TypeCache {
    #[inline]
    fn place(&self, position: u32) -> &AtomicU32 {
        &self.ring[(position % RING) as usize]
    }

    /// Both ends: the oldest, and one past the newest.
    #[inline]
    fn ends(&self) -> (u32, u32) {
        (
            self.oldest.load(Ordering::Relaxed),
            self.newest.load(Ordering::Relaxed),
        )
    }
}

/// Everything of one CPU.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[repr(C, align(64))]
pub(crate) struct CpuSlot {
    lock: AtomicU32,
    pad: [u32; 15],
    pub events: [AtomicU64; ROW],
    caches: [TypeCache; 3],
}

#[cfg(not(shuttle))]
const _: () =
    assert!(size_of::<CpuSlot>().is_multiple_of(64) && size_of::<TypeCache>().is_multiple_of(64));

#[cfg(shuttle)]
impl Default for CpuSlot {
    fn default() -> Self {
        Self {
            lock: AtomicU32::new(0),
            pad: [0; 15],
            events: core::array::from_fn(|_| AtomicU64::new(0)),
            caches: core::array::from_fn(|_| TypeCache {
                newest: AtomicU32::new(0),
                oldest: AtomicU32::new(0),
                reserved: AtomicU32::new(0),
                pad: [0; 13],
                ring: core::array::from_fn(|_| AtomicU32::new(0)),
            }),
        }
    }
}

impl CpuSlot {
    /// Waits for the lock. Only block isolation and a migrating thread ever contend for it.
    #[inline]
    pub fn lock(&self) -> CpuGuard<'_> {
        // Acquire: pairs with the release in `drop`, so everything inside may be plain loads and stores.
        while self.lock.swap(1, Ordering::Acquire) != 0 {
            while self.lock.load(Ordering::Relaxed) != 0 {
                spin_hint();
            }
        }
        CpuGuard { slot: self }
    }
}

impl CpuSlot {
    /// Frames in the CPU's caches, without the lock: a hint. Both ends of a ring are read one after the other, so that
    /// what changes in between is bounded.
    pub fn cached(&self) -> u64 {
        let count = |cache: &TypeCache| {
            let (oldest, newest) = cache.ends();
            u64::from(newest.wrapping_sub(oldest).min(CACHE_FRAMES))
        };
        self.caches.iter().map(count).sum()
    }
}

/// The right to use a CPU's caches.
#[derive(Debug)]
pub(crate) struct CpuGuard<'a> {
    pub slot: &'a CpuSlot,
}

impl Drop for CpuGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: pairs with the acquire in `lock`.
        self.slot.lock.store(0, Ordering::Release);
    }
}

impl CpuGuard<'_> {
    #[inline]
    fn cache(&self, migratetype: Migratetype) -> &TypeCache {
        &self.slot.caches[migratetype as usize]
    }

    #[inline]
    pub fn len(&self, migratetype: Migratetype) -> usize {
        let (oldest, newest) = self.cache(migratetype).ends();
        newest.wrapping_sub(oldest) as usize
    }

    /// The newest frame.
    #[inline]
    pub fn pop(&self, migratetype: Migratetype) -> Option<u32> {
        let cache = self.cache(migratetype);
        let (oldest, newest) = cache.ends();
        if oldest == newest {
            return None;
        }
        let last = newest.wrapping_sub(1);
        cache.newest.store(last, Ordering::Relaxed);
        Some(cache.place(last).load(Ordering::Relaxed))
    }

    /// False if the cache is full.
    #[inline]
    pub fn push(&self, migratetype: Migratetype, frame: u32) -> bool {
        let cache = self.cache(migratetype);
        let (oldest, newest) = cache.ends();
        if newest.wrapping_sub(oldest) >= CACHE_FRAMES {
            return false;
        }
        cache.place(newest).store(frame, Ordering::Relaxed);
        cache
            .newest
            .store(newest.wrapping_add(1), Ordering::Relaxed);
        true
    }

    /// Cached frame `position`, from the oldest.
    pub fn peek(&self, migratetype: Migratetype, position: usize) -> u32 {
        let cache = self.cache(migratetype);
        let at = cache.ends().0.wrapping_add(position as u32);
        cache.place(at).load(Ordering::Relaxed)
    }

    /// Takes the oldest frames, up to [`BATCH`]; gives how many.
    pub fn take_oldest(&self, migratetype: Migratetype, out: &mut [u32; BATCH]) -> usize {
        let cache = self.cache(migratetype);
        let count = self.len(migratetype).min(BATCH);
        let oldest = cache.ends().0;
        for (frame, at) in out[..count].iter_mut().zip(0..) {
            *frame = cache.place(oldest.wrapping_add(at)).load(Ordering::Relaxed);
        }
        let left = oldest.wrapping_add(count as u32);
        cache.oldest.store(left, Ordering::Relaxed);
        count
    }

    /// Takes up to [`BATCH`] frames for which `wanted` holds out of the cache; gives how many.
    pub fn extract(
        &self,
        migratetype: Migratetype,
        out: &mut [u32; BATCH],
        wanted: impl Fn(u32) -> bool,
    ) -> usize {
        let cache = self.cache(migratetype);
        let (oldest, newest) = cache.ends();
        let (mut kept, mut taken) = (oldest, 0);
        for step in 0..newest.wrapping_sub(oldest) {
            let frame = cache
                .place(oldest.wrapping_add(step))
                .load(Ordering::Relaxed);
            if taken < BATCH && wanted(frame) {
                out[taken] = frame;
                taken += 1;
            } else {
                cache.place(kept).store(frame, Ordering::Relaxed);
                kept = kept.wrapping_add(1);
            }
        }
        cache.newest.store(kept, Ordering::Relaxed);
        taken
    }

    pub fn reserved(&self, migratetype: Migratetype) -> u32 {
        self.cache(migratetype).reserved.load(Ordering::Relaxed)
    }

    pub fn set_reserved(&self, migratetype: Migratetype, block_plus_one: u32) {
        self.cache(migratetype)
            .reserved
            .store(block_plus_one, Ordering::Relaxed);
    }
}
