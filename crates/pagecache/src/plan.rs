//! Pages that compaction drops instead of moving them, because reclaim would take them next.

use dirigible_frames::{FrameContents, FrameFlags, Pfn};
use dirigible_reclaim::Evictable;

use crate::cache::PageCache;

impl<P: FrameContents> PageCache<'_, P> {
    /// Whether the page in an isolated frame is clean, not in use, and old: a look, not a promise.
    pub(crate) fn is_cold(&self, frame: Pfn) -> bool {
        let kept = FrameFlags::DIRTY
            .union(FrameFlags::WRITEBACK)
            .union(FrameFlags::LOCKED)
            .union(FrameFlags::ABANDONED);
        let idle = self
            .frames
            .frame(frame)
            .is_some_and(|info| info.refcount == 0 && !info.flags.intersects(kept));
        idle && self.generations.is_old(frame)
    }

    /// Drops the page in an isolated frame as reclaim does, if it is still cold. One that was used since it was looked
    /// at stays, clean as it may be.
    pub(crate) fn drop_cold(&self, frame: Pfn) -> bool {
        if !self.is_cold(frame) || self.drop_clean(frame, self.generations.stamp()).is_err() {
            return false;
        }
        self.generations.evicted(1);
        self.generations.remove(frame);
        true
    }
}
