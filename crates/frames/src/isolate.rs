//! Isolating a block, so that nothing is taken from it while it is emptied, and what may follow.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, Migratetype, Pfn, Refusal,
    Watermark,
    alloc::{mark, owned},
    cpu::{BATCH, NO_BLOCK},
    free::class_of,
    huge::huge,
    sync::Ordering,
};

/// Blocks that are isolated together.
const PIECE: usize = 8;

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
    /// Without the block's free frames its zone would be below the watermark.
    #[error("the block's free frames are needed above the watermark")]
    BelowWatermark,
}

impl FrameAllocator<'_> {
    /// Isolates `block`: from now on nothing is taken from it, and what is freed goes straight to its field. Frames of it that
    /// lie in CPU caches go back first.
    ///
    /// # Errors
    ///
    /// See [`IsolateError`]. No watermark is looked at.
    pub fn isolate_block(&self, block: BlockId) -> Result<IsolatedBlock, IsolateError> {
        let mut result = Err(IsolateError::Unknown);
        self.isolate_blocks(&[block], Watermark::None, |_, isolated| result = isolated);
        result
    }

    /// The same for several blocks, with one look at each CPU's caches for all of them. The free frames of the blocks,
    /// which nobody can have while they are isolated, leave `watermark` in their zones. Calls `each` once for every block,
    /// in order, when all caches are empty of them.
    pub fn isolate_blocks(
        &self,
        blocks: &[BlockId],
        watermark: Watermark,
        mut each: impl FnMut(BlockId, Result<IsolatedBlock, IsolateError>),
    ) {
        // In pieces, so that the answers have a place.
        for piece in blocks.chunks(PIECE) {
            let mut results = [const { Err(IsolateError::Unknown) }; PIECE];
            let mut isolated = false;
            for (place, &block) in results.iter_mut().zip(piece) {
                *place = self.close(block, watermark).map(IsolatedBlock);
                isolated |= place.is_ok();
            }
            if isolated {
                self.uncache_blocks(piece, &results);
            }
            for (&block, result) in piece.iter().zip(results) {
                each(block, result);
            }
        }
    }

    /// Open → Isolated, in the ledger alone.
    fn close(&self, block: BlockId, watermark: Watermark) -> Result<BlockId, IsolateError> {
        if block.index() >= self.blocks().len() {
            return Err(IsolateError::Unknown);
        }
        // The state first: a block that is taken already lacks no room.
        let ledger = self.ledger(block);
        if ledger.state() == BlockState::Huge {
            return Err(IsolateError::Huge);
        }
        if ledger.state() != BlockState::Open {
            return Err(IsolateError::Isolated);
        }
        let zone = self.block_zone(block);
        let booked = match watermark {
            Watermark::None => 0,
            _ => u64::from(ledger.free()),
        };
        if !zone.book_all(booked, mark(zone, watermark)) {
            return Err(IsolateError::BelowWatermark);
        }
        // Before the ledger and the locks: see `in_isolated_block`, which pairs by the CPU's lock.
        self.isolated_blocks.fetch_add(1, Ordering::AcqRel);
        let changed = self.change(block, |ledger| {
            (ledger.state() == BlockState::Open).then(|| ledger.with_state(BlockState::Isolated))
        });
        match changed {
            Ok(change) => {
                zone.add_free(change.freed() + booked as i64);
                Ok(block)
            }
            Err(ledger) => {
                self.isolated_blocks.fetch_sub(1, Ordering::AcqRel);
                zone.add_free(booked as i64);
                Err(match ledger.state() {
                    BlockState::Huge => IsolateError::Huge,
                    _ => IsolateError::Isolated,
                })
            }
        }
    }

    /// Takes the frames of the blocks that were just isolated out of all CPUs' caches and reservations.
    fn uncache_blocks(
        &self,
        blocks: &[BlockId],
        isolated: &[Result<IsolatedBlock, IsolateError>; PIECE],
    ) {
        let ours = |block: BlockId| {
            let mut pairs = blocks.iter().zip(isolated);
            pairs.any(|(&named, result)| named == block && result.is_ok())
        };
        for slot in self.cpus {
            let guard = slot.lock();
            for migratetype in Migratetype::ALL {
                let reserved = guard.reserved(migratetype);
                if reserved != NO_BLOCK && ours(BlockId::new(reserved - 1)) {
                    guard.set_reserved(migratetype, NO_BLOCK);
                }
                let mut batch = [0u32; BATCH];
                loop {
                    let count = guard.extract(migratetype, &mut batch, |frame| {
                        ours(Self::block_of_index(frame))
                    });
                    self.uncache(&batch[..count], class_of(migratetype));
                    if count < BATCH {
                        break;
                    }
                }
            }
        }
    }

    /// Opens the block again as it is.
    pub fn unisolate_block(&self, isolated: IsolatedBlock) {
        self.open(isolated.0, None, Refusal::None);
    }

    /// Opens the block again for requests of `migratetype`.
    pub fn convert_block(&self, isolated: IsolatedBlock, migratetype: Migratetype) {
        self.open(isolated.0, Some(migratetype), Refusal::None);
    }

    pub(crate) fn open(&self, block: BlockId, migratetype: Option<Migratetype>, refusal: Refusal) {
        let opened = self.change(block, |ledger| {
            // Of a block that is wholly free nothing can be refused.
            let refusal = match ledger.free() as usize {
                FRAMES_PER_BLOCK => Refusal::None,
                _ => refusal,
            };
            let ledger = ledger.with_state(BlockState::Open).with_refusal(refusal);
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
