//! Refused blocks: compaction failed to empty them, so they leave the index of candidates for a time.
//!
//! The refusal is in the block's ledger, and it ends with its cause: when the frame that stood in the way (the
//! *offender*) is back in its block, or counts in another class. If the ledger cannot see the cause end, whoever set
//! the refusal ends it after some time; each block has a word for that, the *note*.

use crate::{
    BlockId, BlockState, FrameAllocator, FrameState, IsolatedBlock, Ledger, Pfn, Refusal, ZoneId,
    allocator::info_word, place::REFUSED_BUCKET, position::FrameIndex, sync::Ordering,
};

impl FrameAllocator<'_> {
    /// Takes `block` out of the candidates of compaction because of one of its frames, the `offender`, if it is known.
    /// The block is a candidate again when that frame is back in its block (a freed frame may stay in a CPU's cache for
    /// a time), when it is pinned, unpinned or otherwise counts in another class, when the block becomes whole, and
    /// after [`forgive_block`](Self::forgive_block). Requests are served from it as before.
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

    /// Opens an isolated block and refuses it, in one step: it cannot be isolated again in between.
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
        // Relaxed: published by the change of the ledger that follows; a reader that sees the refusal sees the
        // offender.
        let info = &self.record(block).info;
        let _ = info.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |info| {
            Some(info & !field | offset << info_word::OFFENDER)
        });
    }

    /// Called after the refusal was set: the offender may be gone. If it was freed meanwhile, either that change of the
    /// ledger came before ours, and then its state shows it, or the CPU that freed it sees the refusal.
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

    /// Forgives a refused block if its offender is among the frames that were just freed or recounted.
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

    /// The note of `block`: a word for compaction's use, 0 at first.
    pub fn block_note(&self, block: BlockId) -> u64 {
        // Relaxed: a hint; nothing depends on it.
        self.record(block).note.load(Ordering::Relaxed)
    }

    /// Replaces the note of `block`.
    pub fn set_block_note(&self, block: BlockId, note: u64) {
        self.record(block).note.store(note, Ordering::Relaxed);
    }
}
