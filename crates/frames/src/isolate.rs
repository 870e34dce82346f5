//! Isolating a block, so that nothing is taken from it while it is emptied, and what may follow.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, Ledger, Migratetype, Order,
    Pfn, Refusal, Watermark,
    descriptor::Word,
    huge::huge,
    sums::Booking,
    sync::{Ordering, spin_hint},
};

/// Blocks that are isolated together.
const PIECE: usize = 8;
/// How often a spare block is asked for before it passes for the huge page that its CPU is about to make of it.
const TRIES: usize = 16;

/// The right to empty one block. It must go back by [`FrameAllocator::unisolate_block`] or one of its siblings; a
/// dropped one leaves the block unusable.
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
    /// Isolates `block`: from now on nothing is taken from it, and what is freed goes straight to its field. Frames of
    /// it that lie in CPU caches go back first.
    ///
    /// # Errors
    ///
    /// See [`IsolateError`]. No watermark is tested.
    pub fn isolate_block(&self, block: BlockId) -> Result<IsolatedBlock, IsolateError> {
        let mut result = Err(IsolateError::Unknown);
        self.isolate_blocks(&[block], Watermark::None, |_, isolated| result = isolated);
        result
    }

    /// The same for several blocks, with one look at each CPU's caches for all of them. The free frames of the blocks,
    /// which cannot be allocated while they are isolated, must leave `watermark` in their zones. Calls `each` once for
    /// every block, in order, when all caches are empty of them.
    pub fn isolate_blocks(
        &self,
        blocks: &[BlockId],
        watermark: Watermark,
        mut each: impl FnMut(BlockId, Result<IsolatedBlock, IsolateError>),
    ) {
        self.isolate_each(blocks, watermark, &mut each);
    }

    fn isolate_each(
        &self,
        blocks: &[BlockId],
        watermark: Watermark,
        each: &mut dyn FnMut(BlockId, Result<IsolatedBlock, IsolateError>),
    ) {
        // In pieces, for which there is room on the stack.
        for piece in blocks.chunks(PIECE) {
            let mut results = [const { Err(IsolateError::Unknown) }; PIECE];
            let (mut closed, mut count) = ([BlockId::new(0); PIECE], 0);
            for (place, &block) in results.iter_mut().zip(piece) {
                *place = self.close(block, watermark).map(IsolatedBlock);
                if place.is_ok() {
                    closed[count] = block;
                    count += 1;
                }
            }
            if count > 0 {
                self.uncache_blocks(&closed[..count]);
            }
            for (&block, result) in piece.iter().zip(results) {
                each(block, result);
            }
        }
    }

    /// Open → Isolated, in the ledger alone.
    #[inline(never)]
    fn close(&self, block: BlockId, watermark: Watermark) -> Result<BlockId, IsolateError> {
        if !self.has_block(block) {
            return Err(IsolateError::Unknown);
        }
        // The state first, then the watermark: it decides which error is given.
        let mut ledger = self.ledger(block);
        for _ in 0..TRIES {
            if ledger.state() != BlockState::Spare {
                break;
            }
            // The CPU that keeps it may take it as a huge page meanwhile, or keep it anew.
            self.drain_spares();
            spin_hint();
            ledger = self.ledger(block);
        }
        refusal_of(ledger)?;
        let zone = self.zone_of_block(block);
        let frames = match watermark {
            Watermark::None => 0,
            _ => usize::from(ledger.free()),
        };
        let booking = Booking::all(frames, watermark);
        let booked = frames == 0 || self.book(zone, None, booking) > 0;
        if !booked {
            return Err(IsolateError::BelowWatermark);
        }
        self.count_isolated(block, true);
        let changed = self.change(block, None, &|ledger| {
            (ledger.state() == BlockState::Open).then(|| ledger.with_state(BlockState::Isolated))
        });
        match changed {
            Ok(change) => {
                self.pay_in(zone, None, change.freed() + frames as i64);
                Ok(block)
            }
            Err(ledger) => {
                self.count_isolated(block, false);
                self.pay_in(zone, None, frames as i64);
                Err(refusal_of(ledger).err().unwrap_or(IsolateError::Huge))
            }
        }
    }

    /// Counts an isolated block: up before its ledger changes and before the CPUs are looked at, see
    /// [`in_isolated_block`](Self::in_isolated_block); down after the ledger was changed back.
    fn count_isolated(&self, block: BlockId, isolated: bool) {
        let amount = if isolated { 1 } else { u32::MAX };
        // SeqCst: one half of Dekker's argument in `CpuSlot::is_clear_of`. It wraps.
        self.isolated[block.index() % 64].fetch_add(amount, Ordering::SeqCst);
    }

    /// Opens the block again as it is. A refusal stays.
    pub fn unisolate_block(&self, isolated: IsolatedBlock) {
        self.open(isolated.0, None, None);
    }

    /// Opens the block again for requests of `migratetype`.
    pub fn convert_block(&self, isolated: IsolatedBlock, migratetype: Migratetype) {
        self.open(isolated.0, Some(migratetype), None);
    }

    pub(crate) fn open(
        &self,
        block: BlockId,
        migratetype: Option<Migratetype>,
        refusal: Option<Refusal>,
    ) {
        let opened = self.change(block, None, &|ledger| {
            // A wholly free block has no offender.
            let refusal = match ledger.free() as usize {
                FRAMES_PER_BLOCK => Refusal::None,
                _ => refusal.unwrap_or(ledger.refusal()),
            };
            let ledger = ledger.with_state(BlockState::Open).with_refusal(refusal);
            Some(migratetype.map_or(ledger, |migratetype| ledger.with_type(migratetype)))
        });
        if let Ok(change) = opened {
            self.pay_in(self.zone_of_block(block), None, change.freed());
        }
        self.count_isolated(block, false);
    }

    /// Makes an allocation of the whole block for the caller, in one step: no other request can take it.
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
        let taken = self.change(block, None, &|ledger| {
            (ledger.free() as usize == FRAMES_PER_BLOCK).then(|| huge(ledger, class))
        });
        if taken.is_err() {
            return Err(isolated);
        }
        self.count_isolated(block, false);
        self.own_blocks(block, Word::owned(class, Order::HUGE));
        Ok(self.block_start(block))
    }
}

/// Why a block with this ledger cannot be isolated, if so.
fn refusal_of(ledger: Ledger) -> Result<(), IsolateError> {
    match ledger.state() {
        BlockState::Open => Ok(()),
        BlockState::Isolated => Err(IsolateError::Isolated),
        // A spare block that its CPU did not give back is about to become a huge page.
        BlockState::Huge | BlockState::Spare => Err(IsolateError::Huge),
    }
}
