//! What reclaim asks of the cache.

use dirigible_frames::sync::Ordering;
use dirigible_frames::{FrameContents, FrameFlags, FrameState, Pfn};
use dirigible_reclaim::{Evictable, Kept, Kind, Stamp};

use crate::cache::PageCache;
use crate::removing::DETACHED;
use crate::slot::Slot;
use crate::writing::Begun;

impl<P: FrameContents> Evictable for PageCache<'_, P> {
    fn drop_clean(&self, frame: Pfn, stamp: Stamp) -> Result<(), Kept> {
        // The frame is isolated, so its word does not change; but it may be detached at any time.
        let block = self.frames.owner_word(frame);
        let kept = FrameFlags::DIRTY.union(FrameFlags::ABANDONED);
        if block < self.block_count()
            && let Some(flags) = self.lock(block, frame, kept, true)
        {
            self.unlink(block, frame, flags, Slot::shadow(stamp));
            self.must_transition(frame, FrameState::Isolated, FrameState::Allocated);
            return Ok(());
        }
        let flags = self.frames.flags(frame);
        if flags.contains(DETACHED) && !flags.contains(FrameFlags::ABANDONED) {
            self.must_transition(frame, FrameState::Isolated, FrameState::Allocated);
            return Ok(());
        }
        Err(if flags.contains(FrameFlags::WRITEBACK) {
            Kept::Writeback
        } else if flags.contains(FrameFlags::DIRTY) && !flags.contains(FrameFlags::LOCKED) {
            Kept::Dirty
        } else {
            Kept::InUse
        })
    }

    fn begin_write(&self, frame: Pfn) -> usize {
        let block = self.frames.owner_word(frame);
        if block >= self.block_count() || self.slot(block).frame() != Some(frame) {
            return 0;
        }
        if self.is_left(block) {
            return 0;
        }
        match self.begin_write_of(block) {
            // What is written to swap is counted where the write ends: here it would count twice.
            Begun::Pages(_) if self.kind_of(block) == Kind::Anonymous => 0,
            Begun::Pages(pages) => pages,
            Begun::NoRoom => {
                self.poll();
                0
            }
            Begun::Not | Begun::Failed => 0,
        }
    }

    fn put_back(&self, frame: Pfn) {
        self.put_back_frame(frame);
    }

    fn wake_flusher(&self) {
        // Release: pairs with the acquire in the flusher's step.
        self.flusher_wanted.store(true, Ordering::Release);
    }

    fn poll(&self) {
        PageCache::poll(self);
    }

    fn dirty_and_writeback(&self) -> (u64, u64) {
        // Those that could not be written are not waited for.
        let dirty = [Kind::File, Kind::Anonymous].map(|kind| self.writable_pages(kind));
        (dirty.iter().sum(), self.writeback.sum())
    }
}
