//! Blocks that compaction has tried in vain: they leave the index of candidates, and come back.
//!
//! The mark stands in the block's ledger, and it ends with what caused it: when the frame that stood in the way is back in
//! its block, or counts in another class. What the ledger does not see, whoever set the mark ends in time; for that each
//! block has one word of its own, the *note*.

use crate::{
    BlockId, BlockState, FrameAllocator, FrameState, IsolatedBlock, Ledger, Pfn, Refusal, ZoneId,
    allocator::info_word, place::REFUSED_BUCKET, position::FrameIndex, sync::Ordering,
};

impl FrameAllocator<'_> {
    /// Takes `block` out of the candidates of compaction: `offender`, one of its frames, stands in the way, or nobody knows
    /// which. The block is a candidate again when that frame is back in its block (a frame that was freed may lie in a CPU's
    /// cache for a time), when it is pinned, unpinned or otherwise counts in another class, when the block becomes whole,
    /// and after [`forgive_block`](Self::forgive_block). Requests are served from it as before.
    ///
    /// A block that one allocation holds, or that is isolated, is left as it is.
    pub fn refuse_block(&self, block: BlockId, refusal: Refusal, offender: Option<Pfn>) {
        if !self.has_block(block) {
            return;
        }
        self.set_offender(block, offender);
        self.mark_refusal(block, refusal);
        self.recheck_offender(block, offender);
    }

    /// Opens an isolated block and refuses it, in one step: nobody isolates it again in between.
    pub fn unisolate_refused(
        &self,
        isolated: IsolatedBlock,
        refusal: Refusal,
        offender: Option<Pfn>,
    ) {
        let block = isolated.block();
        self.set_offender(block, offender);
        self.open(block, None, Some(refusal));
        self.recheck_offender(block, offender);
    }

    /// The frame for which `block` was refused last, if it was known.
    pub fn offender(&self, block: BlockId) -> Option<Pfn> {
        // Relaxed: a hint.
        let info = self.record(block).info.load(Ordering::Relaxed);
        let offset = info >> info_word::OFFENDER & info_word::OFFENDER_MASK;
        let offset = offset.checked_sub(1)?;
        Some(self.block_start(block).plus(u64::from(offset)))
    }

    fn set_offender(&self, block: BlockId, offender: Option<Pfn>) {
        let offset = offender
            .filter(|&frame| self.block_of(frame) == Some(block))
            .map_or(0, |frame| frame.offset_in_block() as u32 + 1);
        let field = info_word::OFFENDER_MASK << info_word::OFFENDER;
        // Relaxed: published by the change of the ledger that follows; who finds the mark finds the offender.
        let info = &self.record(block).info;
        let _ = info.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |info| {
            Some(info & !field | offset << info_word::OFFENDER)
        });
    }

    /// After the mark was set: the offender may be gone. If it was freed meanwhile, either that change of the ledger came
    /// before ours, and then its state shows it, or whoever freed it finds the mark.
    fn recheck_offender(&self, block: BlockId, offender: Option<Pfn>) {
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
        let _ = self.change(block, None, &|ledger: Ledger| {
            let changes = ledger.state() == BlockState::Open && ledger.refusal() != refusal;
            changes.then(|| ledger.with_refusal(refusal))
        });
    }

    /// Forgives a refused block if the frame that stood in the way is among those that were just freed or recounted in it.
    #[cold]
    pub(crate) fn forgive_offender(&self, block: BlockId, frames: &[FrameIndex]) {
        let offender = self
            .offender(block)
            .and_then(|frame| self.frame_index(frame));
        if offender.is_some_and(|offender| frames.contains(&offender)) {
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
        self.zone(zone)
            .by_cost
            .blocks(REFUSED_BUCKET + refusal as usize, start)
    }

    /// The note of `block`: a word for whoever compacts, 0 at first.
    pub fn block_note(&self, block: BlockId) -> u64 {
        // Relaxed: a hint that nothing else hangs on.
        self.record(block).note.load(Ordering::Relaxed)
    }

    /// Replaces the note of `block`.
    pub fn set_block_note(&self, block: BlockId, note: u64) {
        self.record(block).note.store(note, Ordering::Relaxed);
    }
}
