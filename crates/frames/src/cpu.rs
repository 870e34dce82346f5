//! Per-CPU caches of single frames, one for each migratetype, behind a lock that is normally free.

use crate::{
    Migratetype,
    counters::ROW,
    sync::{AtomicU32, AtomicU64, Ordering, spin_hint},
};

/// Frames that one cache holds at most.
pub(crate) const CACHE_FRAMES: usize = 192;
/// Frames that a refill takes and a flush gives back at most: one word of the field.
pub(crate) const BATCH: usize = 64;
/// No block is reserved.
pub(crate) const NO_BLOCK: u32 = 0;

/// The cache of one migratetype.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[repr(C)]
pub(crate) struct TypeCache {
    len: AtomicU32,
    /// The block that the next refill looks at first, plus one.
    reserved: AtomicU32,
    pad: [u32; 14],
    /// Frame indexes; the first `len` count.
    stack: [AtomicU32; CACHE_FRAMES],
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
                len: AtomicU32::new(0),
                reserved: AtomicU32::new(0),
                pad: [0; 14],
                stack: core::array::from_fn(|_| AtomicU32::new(0)),
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
        self.cache(migratetype).len.load(Ordering::Relaxed) as usize
    }

    #[inline]
    pub fn pop(&self, migratetype: Migratetype) -> Option<u32> {
        let cache = self.cache(migratetype);
        let len = cache.len.load(Ordering::Relaxed).checked_sub(1)?;
        let frame = cache.stack.get(len as usize)?.load(Ordering::Relaxed);
        cache.len.store(len, Ordering::Relaxed);
        Some(frame)
    }

    /// False if the cache is full.
    #[inline]
    pub fn push(&self, migratetype: Migratetype, frame: u32) -> bool {
        let cache = self.cache(migratetype);
        let len = cache.len.load(Ordering::Relaxed);
        let Some(place) = cache.stack.get(len as usize) else {
            return false;
        };
        place.store(frame, Ordering::Relaxed);
        cache.len.store(len + 1, Ordering::Relaxed);
        true
    }

    /// Cached frame `position`, from the oldest.
    pub fn peek(&self, migratetype: Migratetype, position: usize) -> u32 {
        self.cache(migratetype).stack[position].load(Ordering::Relaxed)
    }

    /// Takes up to [`BATCH`] frames for which `wanted` holds out of the cache; gives how many.
    pub fn extract(
        &self,
        migratetype: Migratetype,
        out: &mut [u32; BATCH],
        wanted: impl Fn(u32) -> bool,
    ) -> usize {
        let cache = self.cache(migratetype);
        let len = self.len(migratetype);
        let (mut kept, mut taken) = (0, 0);
        for position in 0..len {
            let frame = cache.stack[position].load(Ordering::Relaxed);
            if taken < BATCH && wanted(frame) {
                out[taken] = frame;
                taken += 1;
            } else {
                cache.stack[kept].store(frame, Ordering::Relaxed);
                kept += 1;
            }
        }
        cache.len.store(kept as u32, Ordering::Relaxed);
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
