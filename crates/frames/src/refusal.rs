//! Blocks that compaction has tried in vain: they leave the index of candidates, and come back.
//!
//! The mark stands in the block's ledger, and it ends with what caused it: when the frame that stood in the way is freed,
//! or when frames of the block are unpinned. What the ledger does not see, whoever set the mark removes in time; for that
//! each block has one word of its own, the *note*.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameState, Ledger, Pfn, Refusal,
    ZoneId,
    allocator::{cost, info_word},
    sync::Ordering,
};

impl FrameAllocator<'_> {
    /// Takes `block` out of the candidates of compaction: `offender`, one of its frames, stands in the way, or nobody knows
    /// which. The block is a candidate again when that frame is freed, when frames of the block are pinned, unpinned or
    /// otherwise change between movable and unmovable, and after [`forgive_block`](Self::forgive_block). Requests are
    /// served from it as before.
    ///
    /// A block that one allocation holds, or that is isolated, is left as it is.
    pub fn refuse_block(&self, block: BlockId, refusal: Refusal, offender: Option<Pfn>) {
        let offset = offender
            .filter(|&frame| self.block_of(frame) == Some(block))
            .map_or(0, |frame| frame.offset_in_block() as u32 + 1);
        let field = info_word::OFFENDER_MASK << info_word::OFFENDER;
        // Relaxed: published by the change of the ledger below; who finds the mark finds the offender.
        let _ =
            self.info[block.index()].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |info| {
                Some(info & !field | offset << info_word::OFFENDER)
            });
        self.mark_refusal(block, refusal);
        // Freed meanwhile: then it changed its state before the ledger, and that change came before ours, or whoever freed
        // it finds the mark.
        let gone = |frame| matches!(self.state(frame), FrameState::Free | FrameState::Cached);
        if offender.is_some_and(gone) {
            self.forgive_block(block);
        }
    }

    /// Makes `block` a candidate again, if its frames allow it.
    pub fn forgive_block(&self, block: BlockId) {
        self.mark_refusal(block, Refusal::None);
    }

    fn mark_refusal(&self, block: BlockId, refusal: Refusal) {
        // Nothing that can be taken changes, so no sum does.
        let _ = self.change(block, |ledger: Ledger| {
            let changes = ledger.state() == BlockState::Open && ledger.refusal() != refusal;
            changes.then(|| ledger.with_refusal(refusal))
        });
    }

    /// Forgives a refused block if the frame that stood in the way is among those just freed in it.
    #[cold]
    pub(crate) fn forgive_freed(&self, block: BlockId, frames: &[u32]) {
        let info = self.info[block.index()].load(Ordering::Relaxed);
        let offender = info >> info_word::OFFENDER & info_word::OFFENDER_MASK;
        let offsets = frames
            .iter()
            .map(|frame| frame % FRAMES_PER_BLOCK as u32 + 1);
        if offsets.into_iter().any(|offset| offset == offender) {
            self.forgive_block(block);
        }
    }

    /// The blocks of a zone that carry `refusal` and would be candidates without it, from block `start` on, ascending.
    pub fn refused_blocks(
        &self,
        zone: ZoneId,
        refusal: Refusal,
        start: BlockId,
    ) -> impl Iterator<Item = BlockId> + '_ {
        let category = zone.index() * cost::COUNT + cost::REFUSED;
        self.by_cost
            .blocks(category, refusal as usize, start.index())
    }

    /// The note of `block`: a word for whoever compacts, 0 at first.
    pub fn block_note(&self, block: BlockId) -> u64 {
        // Relaxed: a hint that nothing else hangs on.
        self.notes[block.index()].load(Ordering::Relaxed)
    }

    /// Replaces the note of `block`.
    pub fn set_block_note(&self, block: BlockId, note: u64) {
        self.notes[block.index()].store(note, Ordering::Relaxed);
    }
}
