//! Swap as address spaces see it: slots over the blocks of a page cache.

use core::ops::Range;

use dirigible_frames::sync::{AtomicBool, Ordering};
use dirigible_frames::{FrameContents, Pfn};
use dirigible_pagecache::{CacheError, PageCache};
use dirigible_paging::{SwapError, SwapSpace};

use crate::slots::Slots;

/// Free slots with which swap that was full has room again, unless half of it is less: pages come in batches, and one
/// that finds a few slots goes back for the most part.
const ROOM_AGAIN: u64 = 32;

/// Swap on the blocks of a page cache that are [swap](PageCache::swap_blocks): slot `n` is the `n`th of them. Without
/// such blocks it never has room.
///
/// A cache has one.
pub struct Swap<'c, 'a, P> {
    pub(crate) cache: &'c PageCache<'a, P>,
    pub(crate) slots: Slots,
    blocks: Range<u64>,
    /// Whether the last batch found too few slots. Relaxed throughout: a hint.
    full: AtomicBool,
}

impl<'c, 'a, P: FrameContents> Swap<'c, 'a, P> {
    /// Swap over `cache`, all of it free. Allocates its table from the heap.
    pub fn new(cache: &'c PageCache<'a, P>) -> Self {
        let blocks = cache.swap_blocks();
        Self {
            cache,
            slots: Slots::new(blocks.end.saturating_sub(blocks.start)),
            blocks,
            full: AtomicBool::new(false),
        }
    }

    /// How many slots there are.
    pub fn size(&self) -> u64 {
        self.slots.size()
    }

    /// How many slots are in use.
    pub fn used(&self) -> u64 {
        self.slots.used()
    }

    /// The block of `slot`; `None` if there is no such slot.
    pub(crate) fn block(&self, slot: u64) -> Option<u64> {
        (slot < self.size()).then(|| self.blocks.start + slot)
    }
}

impl<P: FrameContents> SwapSpace for Swap<'_, '_, P> {
    fn has_room(&self) -> bool {
        let size = self.size();
        let free = size.saturating_sub(self.used());
        let enough = match self.full.load(Ordering::Relaxed) {
            true => ROOM_AGAIN.min(size.div_ceil(2)),
            false => 1,
        };
        free >= enough.max(1) && self.cache.takes_swap()
    }

    fn take_slots(&self, slots: &mut [u64]) -> usize {
        let taken = self.slots.take(slots);
        let full = taken < slots.len();
        if full != self.full.load(Ordering::Relaxed) {
            self.full.store(full, Ordering::Relaxed);
        }
        taken
    }

    fn promise(&self, slot: u64, frame: Pfn) -> bool {
        self.block(slot)
            .is_some_and(|block| self.cache.promise(block, frame))
    }

    fn withdraw(&self, slot: u64, frame: Pfn) {
        if let Some(block) = self.block(slot) {
            self.cache.withdraw(block, frame);
        }
    }

    fn adopt(&self, slot: u64, frame: Pfn) {
        if let Some(block) = self.block(slot) {
            self.cache.adopt(block, frame);
        }
    }

    fn write_out(&self, slots: &[u64]) {
        let blocks = slots.iter().filter_map(|&slot| self.block(slot));
        self.cache.write_out(blocks);
    }

    fn fetch(&self, slot: u64) -> Result<(), SwapError> {
        let block = self.block(slot).ok_or(SwapError::Io { slot })?;
        self.cache.fetch(block).map_err(|error| match error {
            CacheError::OutOfMemory => SwapError::OutOfMemory,
            CacheError::Io { .. } | CacheError::Beyond { .. } => SwapError::Io { slot },
        })
    }

    fn take(&self, slot: u64) -> Option<Pfn> {
        let frame = self.cache.take(self.block(slot)?)?;
        // After the cache has no contents for it.
        self.slots.free(slot);
        Some(frame)
    }

    fn free(&self, slots: &[u64]) {
        for &slot in slots {
            // A slot that is free already may be another's at any moment.
            if let Some(block) = self.block(slot).filter(|_| self.slots.is_used(slot)) {
                self.cache.forget_swap(block..block + 1);
                self.slots.free(slot);
            }
        }
    }
}
