//! Comparing the cache's books with each other and with the frames.

use dirigible_frames::{FRAMES_PER_BLOCK, FrameContents, FrameFlags, FrameState, Order, Pfn};

use crate::cache::PageCache;
use crate::config::CacheCounts;
use crate::removing::DETACHED;

/// What an audit found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheAudit {
    /// Pages by their frames.
    pub counts: CacheCounts,
    /// Blocks that reclaim has taken and that are remembered.
    pub shadows: u64,
    /// Pages that are being read.
    pub reading: u64,
    /// Pages that are isolated.
    pub isolated: u64,
    /// Pages with references.
    pub held: u64,
    /// Pages that are locked.
    pub locked: u64,
    /// Frames that were forgotten while somebody had them isolated, and are not put back yet.
    pub detached: u64,
}

/// What is wrong with a page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheAuditError {
    /// A slot names a frame that does not name its block.
    #[error("block {block} is in {frame}, which says otherwise")]
    Slot {
        /// The block.
        block: u64,
        /// The frame.
        frame: Pfn,
    },
    /// A page is in a state that none may be in.
    #[error("block {block} is in {frame}, which is {state:?}")]
    State {
        /// The block.
        block: u64,
        /// The frame.
        frame: Pfn,
        /// Its state.
        state: FrameState,
    },
    /// A page is dirty or being written and is not in the set of these, or the other way round.
    #[error("block {block} is dirty or clean, and the set of dirty blocks says otherwise")]
    Dirty {
        /// The block.
        block: u64,
    },
    /// A page whose write failed is not dirty.
    #[error("block {block} could not be written, and is not dirty")]
    Failed {
        /// The block.
        block: u64,
    },
    /// A frame is on the cache's books, and no slot names it.
    #[error("{frame} says that it holds block {block}, and the block says otherwise")]
    Lost {
        /// The frame.
        frame: Pfn,
        /// The block that it names.
        block: u64,
    },
    /// The counts are wrong.
    #[error("the counts are {counted:?}, the pages {found:?}")]
    Counts {
        /// What the counts say.
        counted: CacheCounts,
        /// What was found.
        found: CacheCounts,
    },
}

impl<P: FrameContents> PageCache<'_, P> {
    /// Walks all blocks and all frames and compares them with the counts and sets. For the end of a run, and for
    /// tests: nobody uses the cache meanwhile. What is under way is counted.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn audit(&self) -> Result<CacheAudit, CacheAuditError> {
        let mut audit = CacheAudit::default();
        for block in 0..self.block_count() {
            self.audit_block(block, &mut audit)?;
        }
        for block in self.frames.blocks() {
            let start = self.frames.block_start(block);
            for frame in (0..FRAMES_PER_BLOCK as u64).map(|offset| start.get().wrapping_add(offset))
            {
                self.audit_frame(Pfn::new(frame), &mut audit)?;
            }
        }
        let counted = self.counts();
        let found = CacheCounts {
            read_errors: counted.read_errors,
            write_errors: counted.write_errors,
            ..audit.counts
        };
        if counted != found {
            return Err(CacheAuditError::Counts { counted, found });
        }
        audit.counts = found;
        Ok(audit)
    }

    fn audit_block(&self, block: u64, audit: &mut CacheAudit) -> Result<(), CacheAuditError> {
        let slot = self.slot(block);
        audit.shadows += u64::from(slot.stamp().is_some());
        let mut unwritten = false;
        if let Some(frame) = slot.frame() {
            let wrong = CacheAuditError::Slot { block, frame };
            let info = self.frames.frame(frame).ok_or(wrong)?;
            if (info.owner, info.word, info.order) != (self.owner, block, Order::BASE) {
                return Err(wrong);
            }
            audit.counts.pages += 1;
            match info.state {
                FrameState::Listed => {}
                FrameState::Isolated => audit.isolated += 1,
                FrameState::Allocated => audit.reading += 1,
                state => {
                    return Err(CacheAuditError::State {
                        block,
                        frame,
                        state,
                    });
                }
            }
            let has = |flag| info.flags.contains(flag);
            let (dirty, writeback) = (has(FrameFlags::DIRTY), has(FrameFlags::WRITEBACK));
            audit.held += u64::from(info.refcount > 0);
            audit.locked += u64::from(has(FrameFlags::LOCKED));
            audit.counts.dirty += u64::from(dirty);
            audit.counts.writeback += u64::from(writeback);
            if dirty && writeback {
                return Err(CacheAuditError::Dirty { block });
            }
            unwritten = dirty || writeback;
        }
        if self.unwritten.contains(block) != unwritten {
            return Err(CacheAuditError::Dirty { block });
        }
        if self.failed.contains(block) && !unwritten {
            return Err(CacheAuditError::Failed { block });
        }
        Ok(())
    }

    fn audit_frame(&self, frame: Pfn, audit: &mut CacheAudit) -> Result<(), CacheAuditError> {
        let Some(info) = self.frames.frame(frame) else {
            return Ok(());
        };
        if info.owner != self.owner
            || matches!(
                info.state,
                FrameState::Free | FrameState::Cached | FrameState::Tail | FrameState::Reserved
            )
        {
            return Ok(());
        }
        let named = info.word < self.block_count() && self.slot(info.word).frame() == Some(frame);
        if named {
            return Ok(());
        }
        if info.state == FrameState::Allocated && info.flags.contains(FrameFlags::PINNED) {
            audit.counts.abandoned += 1;
            return Ok(());
        }
        if info.state == FrameState::Isolated && info.flags.contains(DETACHED) {
            audit.detached += 1;
            return Ok(());
        }
        Err(CacheAuditError::Lost {
            frame,
            block: info.word,
        })
    }
}
