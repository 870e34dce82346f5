//! Isolating a block, so that nothing is taken from it while it is emptied, and what may follow.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, Migratetype, Pfn,
    alloc::owned,
    cpu::{BATCH, NO_BLOCK},
    free::class_of,
    huge::huge,
    sync::Ordering,
};

/// The right to empty one block. It must go back by [`FrameAllocator::unisolate_block`] or one of its siblings; a dropped
/// one leaves the block unusable.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the block stays isolated until it is given back"]
pub struct IsolatedBlock(BlockId);

impl IsolatedBlock {
    /// Which block.
    pub fn block(&self) -> BlockId {
        self.0
    }
}

/// Why a block cannot be isolated. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IsolateError {
    /// Somebody else is emptying it.
    #[error("the block is isolated already")]
    Isolated,
    /// One allocation holds all of it.
    #[error("the block is one huge page")]
    Huge,
    /// There is no such block.
    #[error("there is no such block")]
    Unknown,
}

impl FrameAllocator<'_> {
    /// Isolates `block`: from now on nothing is taken from it, and what is freed goes straight to its field. Frames of it that
    /// lie in CPU caches go back first.
    ///
    /// # Errors
    ///
    /// See [`IsolateError`].
    pub fn isolate_block(&self, block: BlockId) -> Result<IsolatedBlock, IsolateError> {
        if block.index() >= self.blocks().len() {
            return Err(IsolateError::Unknown);
        }
        // Before the ledger and the locks: see `in_isolated_block`, which pairs by the CPU's lock.
        self.isolated_blocks.fetch_add(1, Ordering::AcqRel);
        let changed = self.change(block, |ledger| {
            (ledger.state() == BlockState::Open).then(|| ledger.with_state(BlockState::Isolated))
        });
        match changed {
            Ok(change) => self.block_zone(block).add_free(change.freed()),
            Err(ledger) => {
                self.isolated_blocks.fetch_sub(1, Ordering::AcqRel);
                return Err(match ledger.state() {
                    BlockState::Huge => IsolateError::Huge,
                    _ => IsolateError::Isolated,
                });
            }
        }
        for slot in self.cpus {
            let guard = slot.lock();
            for migratetype in Migratetype::ALL {
                if guard.reserved(migratetype) == block.index() as u32 + 1 {
                    guard.set_reserved(migratetype, NO_BLOCK);
                }
                let mut batch = [0u32; BATCH];
                loop {
                    let count = guard.extract(migratetype, &mut batch, |frame| {
                        Self::block_of_index(frame) == block
                    });
                    self.uncache(&batch[..count], class_of(migratetype));
                    if count < BATCH {
                        break;
                    }
                }
            }
        }
        Ok(IsolatedBlock(block))
    }

    /// Opens the block again as it is.
    pub fn unisolate_block(&self, isolated: IsolatedBlock) {
        self.open(isolated.0, None);
    }

    /// Opens the block again for requests of `migratetype`.
    pub fn convert_block(&self, isolated: IsolatedBlock, migratetype: Migratetype) {
        self.open(isolated.0, Some(migratetype));
    }

    fn open(&self, block: BlockId, migratetype: Option<Migratetype>) {
        let opened = self.change(block, |ledger| {
            let ledger = ledger.with_state(BlockState::Open);
            Some(migratetype.map_or(ledger, |migratetype| ledger.with_type(migratetype)))
        });
        if let Ok(change) = opened {
            self.block_zone(block).add_free(change.freed());
        }
        self.isolated_blocks.fetch_sub(1, Ordering::AcqRel);
    }

    /// Makes an allocation of the whole block and hands it to the caller: nobody can come between.
    ///
    /// # Errors
    ///
    /// The token, if the block is not wholly free.
    pub fn capture_block(
        &self,
        isolated: IsolatedBlock,
        class: FrameClass,
    ) -> Result<Pfn, IsolatedBlock> {
        let block = isolated.0;
        let taken = self.change(block, |ledger| {
            (ledger.free() as usize == FRAMES_PER_BLOCK).then(|| huge(ledger, class))
        });
        if taken.is_err() {
            return Err(isolated);
        }
        self.clear_field(block);
        self.isolated_blocks.fetch_sub(1, Ordering::AcqRel);
        let head = self.block_start(block);
        self.descriptors[block.index() * FRAMES_PER_BLOCK].store(owned(class, crate::Order::HUGE));
        Ok(head)
    }
}
