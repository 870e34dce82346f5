//! Adding memory later: a zone grows by whole blocks, into tables that were laid out for them at boot.

use core::ops::Range;

use crate::{
    BlockId, FRAMES_PER_BLOCK, FrameAllocator, Order, Pfn, Placement, ZoneId,
    sync::{AtomicBool, Ordering},
};

/// Why memory was not added. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GrowError {
    /// There is no such zone.
    #[error("there is no zone {}", .0.index())]
    Zone(ZoneId),
    /// The range is empty, or does not begin and end at a multiple of 512 frames.
    #[error("memory is added by whole pageblocks: align both ends to {FRAMES_PER_BLOCK} frames")]
    Alignment,
    /// The range begins below the allocator's lowest frame, which others use as an origin.
    #[error("memory is added above frame {0}, the lowest that there is")]
    Below(Pfn),
    /// The allocator has this memory already.
    #[error("frame {0} is this allocator's already")]
    Overlap(Pfn),
    /// The zone was not laid out for as many blocks; see [`Config::later`](crate::Config::later).
    #[error("the zone has tables for {0} more pageblocks; name more in the configuration")]
    TooLarge(u32),
    /// The memory has too many holes between what was added.
    #[error("the allocator has no place for another segment of memory")]
    TooManySegments,
    /// Another CPU is adding memory now.
    #[error("another CPU is adding memory; ask again")]
    Busy,
}

/// Lets others add memory again when it is dropped.
struct Growing<'a>(&'a AtomicBool);

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        // Release: pairs with the swap in `add_range`.
        self.0.store(false, Ordering::Release);
    }
}

impl FrameAllocator<'_> {
    /// Adds the frames of `range` to `zone`, all free and managed. Watermarks stay as they are.
    ///
    /// # Errors
    ///
    /// See [`GrowError`].
    pub fn add_range(&self, zone: ZoneId, range: Range<Pfn>) -> Result<(), GrowError> {
        if zone.index() >= self.zone_count {
            return Err(GrowError::Zone(zone));
        }
        let aligned = range.start.is_aligned(Order::HUGE) && range.end.is_aligned(Order::HUGE);
        if range.start >= range.end || !aligned {
            return Err(GrowError::Alignment);
        }
        if range.start < self.base() {
            return Err(GrowError::Below(self.base()));
        }
        if self.growing.swap(true, Ordering::Acquire) {
            return Err(GrowError::Busy);
        }
        let _growing = Growing(&self.growing);
        for segment in self.segments() {
            let first = segment.pfn();
            if range.start < segment.end() && first < range.end {
                return Err(GrowError::Overlap(range.start.max(first)));
            }
        }
        let id = zone;
        let zone = self.zone(id);
        let begin = zone.first.plus(zone.present());
        let room = zone.capacity - zone.present();
        let blocks = (range.end.get() - range.start.get()) / FRAMES_PER_BLOCK as u64;
        if blocks > u64::from(room) {
            return Err(GrowError::TooLarge(room));
        }
        let added = begin.run(blocks as u32);
        // Where it follows the zone's last segment both in memory and in the tables, that one grows.
        let last = self.segments().iter().find(|segment| {
            segment.block().plus(segment.blocks()) == begin && segment.end() == range.start
        });
        let count = self.segments().len();
        if last.is_none() && count == self.segments.len() {
            return Err(GrowError::TooManySegments);
        }
        for block in added.clone() {
            self.clear_tables(block);
        }
        let counts = self.prepare_blocks(id, added.clone());
        match last {
            Some(last) => last.grow(blocks as u32),
            None => {
                self.segments[count].set(range.start, begin, blocks as u32);
                // Release: pairs with the acquire in `segments`.
                self.segment_count
                    .store(count as u32 + 1, Ordering::Release);
            }
        }
        zone.set_present(zone.present() + blocks as u32);
        self.open_blocks(id, added, counts);
        if self.placement == Placement::FullestFirst {
            self.spread_cpus();
        }
        Ok(())
    }

    /// Writes the tables of a block that was not there: all frames free, no word set.
    fn clear_tables(&self, block: BlockId) {
        // Relaxed throughout: the block is not published yet.
        for word in &self.field(block).0 {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        for frame in block.first_frame().run(FRAMES_PER_BLOCK) {
            self.descriptor_at(frame).word.store(0, Ordering::Relaxed);
        }
    }
}
