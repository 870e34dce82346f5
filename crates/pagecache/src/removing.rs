//! Taking pages away: forgetting, dropping, and frames that somebody else has isolated meanwhile.

use core::ops::Range;

use dirigible_frames::{Event, FrameContents, FrameFlags, FrameState, Marks, Pfn};

use crate::cache::{PageCache, Seize};
use crate::slot::Slot;

/// Both together: a *detached* frame. Its block's slot does not name it any more, and whoever finds it listed, or has
/// it isolated, frees it.
///
/// No page has both: who locks a page demands that it is not being written, and who writes it that it is not locked.
/// Others than this crate set neither.
pub(crate) const DETACHED: FrameFlags = FrameFlags::LOCKED.union(FrameFlags::WRITEBACK);

impl<P: FrameContents> PageCache<'_, P> {
    /// Locks the page of `block` in `frame`, if nobody uses it and it is not being written: from now on nobody gets a
    /// reference, writes, moves or drops it but the caller. Gives its marks before.
    pub(crate) fn lock(
        &self,
        block: u64,
        frame: Pfn,
        barred: FrameFlags,
        isolated: bool,
    ) -> Option<FrameFlags> {
        let how = Seize {
            needed: FrameFlags::EMPTY,
            barred: barred.union(FrameFlags::LOCKED.union(FrameFlags::WRITEBACK)),
            removed: FrameFlags::EMPTY,
            added: FrameFlags::LOCKED,
            isolated,
        };
        let info = self.seize(block, frame, &how).ok()?;
        Some(info.flags)
    }

    /// Takes a page, which the caller has locked and which had the marks `flags`, off the books of its block.
    pub(crate) fn unlink(&self, block: u64, frame: Pfn, flags: FrameFlags, slot: Slot) {
        let kind = self.kind_of(block);
        if flags.contains(FrameFlags::DIRTY) {
            self.unwritten.remove(block);
            self.aged.remove(block);
            self.remove_failed(block);
            self.generations.dirtied(frame, false);
            self.dirty.sub(kind, 1);
        }
        self.generations.remove(frame);
        self.pages.sub(kind, 1);
        self.set_slot(block, slot);
    }

    /// Takes a page, which the caller has locked, off the books for good, and frees its frame: at once, or when whoever
    /// has isolated it puts it back.
    pub(crate) fn remove_locked(&self, block: u64, frame: Pfn, flags: FrameFlags, slot: Slot) {
        self.unlink(block, frame, flags, slot);
        if self.take_listed(frame) {
            self.free_or_abandon(frame, flags);
            return;
        }
        let _ = self.frames.update_marks(frame, |info| {
            Some(Marks {
                flags: info.flags.union(DETACHED),
                ..info.marks()
            })
        });
        self.reap(frame);
    }

    fn take_listed(&self, frame: Pfn) -> bool {
        self.frames
            .transition(frame, FrameState::Listed, FrameState::Allocated)
            .is_ok()
    }

    fn free_or_abandon(&self, frame: Pfn, flags: FrameFlags) {
        if flags.contains(FrameFlags::ABANDONED) {
            self.abandon(frame);
        } else {
            self.free(frame);
        }
    }

    /// Frees `frame` if it is detached and listed. The frame may be anybody's by now: only what this call isolates
    /// itself, which must be this owner's, is looked at with consequences.
    pub(crate) fn reap(&self, frame: Pfn) {
        loop {
            let flags = self.frames.flags(frame);
            if !flags.contains(DETACHED) {
                return;
            }
            // Pinned, perhaps, and never anybody else's.
            if flags.contains(FrameFlags::ABANDONED) {
                if self.take_listed(frame) {
                    self.abandon(frame);
                }
                return;
            }
            if self.frames.try_isolate(frame, self.owner).is_err() {
                // Whoever has it isolated comes here when it puts it back.
                return;
            }
            let flags = self.frames.flags(frame);
            if flags.contains(DETACHED) {
                self.must_transition(frame, FrameState::Isolated, FrameState::Allocated);
                self.free_or_abandon(frame, flags);
                return;
            }
            self.must_transition(frame, FrameState::Isolated, FrameState::Listed);
        }
    }

    /// Puts an isolated frame back, or frees it if it was detached meanwhile.
    pub(crate) fn put_back_frame(&self, frame: Pfn) {
        self.must_transition(frame, FrameState::Isolated, FrameState::Listed);
        // Nobody frees such a frame. It could not be pinned while it was isolated.
        if self.frames.flags(frame).contains(FrameFlags::ABANDONED) {
            self.frames.set_flags(frame, FrameFlags::PINNED);
        }
        self.reap(frame);
    }

    /// Drops the pages of the range, whatever their state; gives how many.
    pub(crate) fn forget_range(&self, blocks: Range<u64>) -> u64 {
        let mut forgotten = 0;
        for block in blocks.start..blocks.end.min(self.block_count()) {
            loop {
                let slot = self.slot(block);
                let Some(frame) = slot.frame() else {
                    if slot == Slot::ABSENT || self.swap_slot(block, slot, Slot::ABSENT) {
                        break;
                    }
                    continue;
                };
                if let Some(flags) = self.lock(block, frame, FrameFlags::EMPTY, true) {
                    self.remove_locked(block, frame, flags, Slot::ABSENT);
                    forgotten += u64::from(!flags.contains(FrameFlags::ABANDONED));
                    break;
                }
                self.wait();
            }
        }
        forgotten
    }

    /// Drops the clean pages of files in the range that nobody uses or has isolated, without waiting; gives how many.
    /// Not those of programs: an empty slot of swap says that it has no contents.
    pub(crate) fn drop_clean_range(&self, blocks: Range<u64>) -> u64 {
        let kept = FrameFlags::DIRTY.union(FrameFlags::ABANDONED);
        let mut dropped = 0;
        for block in blocks.start..blocks.end.min(self.file_blocks()) {
            let Some(frame) = self.slot(block).frame() else {
                continue;
            };
            if let Some(flags) = self.lock(block, frame, kept, false) {
                self.remove_locked(block, frame, flags, Slot::ABSENT);
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops all clean pages of files that nobody uses, at the operator's wish, without waiting; gives how many.
    pub fn drop_all_clean(&self) -> u64 {
        let dropped = self.drop_clean_range(0..self.file_blocks());
        self.count(Event::DropPagecache, dropped);
        dropped
    }
}
