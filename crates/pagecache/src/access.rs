//! The cache as the file store sees it.

use core::ops::Range;

use dirigible_frames::{FrameContents, FrameFlags, FrameState, Pfn};

use crate::cache::{Found, PageCache};
use crate::pages::{BlockPages, CacheError};
use crate::slot::Slot;

impl<P: FrameContents> BlockPages for PageCache<'_, P> {
    fn blocks(&self) -> u64 {
        self.file_blocks()
    }

    fn read(
        &self,
        block: u64,
        ahead: Range<u64>,
        with: &mut dyn FnMut(Pfn),
    ) -> Result<(), CacheError> {
        let frame = self.find(block, ahead, false)?;
        with(frame);
        self.drop_reference(frame);
        Ok(())
    }

    fn write(
        &self,
        block: u64,
        whole: bool,
        change: &mut dyn FnMut(Pfn),
    ) -> Result<(), CacheError> {
        self.check(block)?;
        self.throttle();
        loop {
            if whole && !self.slot(block).is_present() {
                let Some(frame) = self.new_frame(block)? else {
                    continue;
                };
                if !self.claim(block, frame, false) {
                    self.free(frame);
                    continue;
                }
                // Nobody else touches the frame until it is listed.
                change(frame);
                self.will_be_dirty(block);
                self.frames.set_flags(frame, FrameFlags::DIRTY);
                self.add_age(frame);
                self.became_dirty(block, frame);
                self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
                return Ok(());
            }
            match self.hold(block, true) {
                Found::Held(frame) => {
                    self.generations.used(frame);
                    change(frame);
                    self.dirty_and_drop(block, frame);
                    return Ok(());
                }
                Found::Busy => self.wait(),
                Found::Absent(_) if whole => {}
                Found::Absent(_) => {
                    let frame = self.find(block, 0..0, true)?;
                    change(frame);
                    self.dirty_and_drop(block, frame);
                    return Ok(());
                }
            }
        }
    }

    fn forget(&self, blocks: Range<u64>) -> u64 {
        self.forget_range(blocks.start..blocks.end.min(self.file_blocks()))
    }

    fn drop_clean(&self, blocks: Range<u64>) -> u64 {
        self.drop_clean_range(blocks)
    }

    fn sync(&self, blocks: Range<u64>) -> Result<(), CacheError> {
        self.sync_range(blocks)
    }
}

impl<P: FrameContents> PageCache<'_, P> {
    /// The page of `block` with a reference for the caller, read from the disk if need be.
    fn find(&self, block: u64, ahead: Range<u64>, write: bool) -> Result<Pfn, CacheError> {
        self.check(block)?;
        let mut waited = false;
        loop {
            match self.hold(block, write) {
                Found::Held(frame) => {
                    self.generations.used(frame);
                    return Ok(frame);
                }
                Found::Busy => self.wait(),
                // It failed while we waited for it.
                Found::Absent(Slot::UNREADABLE) if waited => {
                    return Err(CacheError::Io { block });
                }
                Found::Absent(slot) => match slot.attempts() {
                    Some(attempts) => self.begin_read_again(block, attempts)?,
                    None => self.begin_read(block, |run| self.read_ahead(run, ahead.clone()))?,
                },
            }
            waited = true;
        }
    }
}
