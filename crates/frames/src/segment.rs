//! Segments: memory is a few of them, and holes between them cost nothing.
//!
//! A segment is memory of one zone without a hole of a whole pageblock. Its blocks are neighbours in the tables; a
//! zone's segments follow each other there, and zones follow each other. Segments are appended when memory is added,
//! and change only by growing at their end.

use crate::{
    BLOCK_SHIFT, BlockId, Pfn,
    position::FrameIndex,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// One segment.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[cfg_attr(shuttle, derive(Default))]
#[repr(C)]
pub(crate) struct Segment {
    /// Its first frame, aligned to a block.
    pfn: AtomicU64,
    /// Its first block in the tables.
    block: AtomicU32,
    /// How many blocks it has.
    blocks: AtomicU32,
}

impl Segment {
    pub fn set(&self, pfn: Pfn, block: BlockId, blocks: u32) {
        // Relaxed: published by the count of segments.
        self.pfn.store(pfn.get(), Ordering::Relaxed);
        self.block.store(block.get(), Ordering::Relaxed);
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// Makes it longer.
    pub fn grow(&self, blocks: u32) {
        // Release: a reader that finds a frame in it finds the tables of that frame.
        self.blocks.fetch_add(blocks, Ordering::Release);
    }

    #[inline]
    pub fn pfn(&self) -> Pfn {
        Pfn::new(self.pfn.load(Ordering::Relaxed))
    }

    #[inline]
    pub fn block(&self) -> BlockId {
        BlockId::new(self.block.load(Ordering::Relaxed))
    }

    #[inline]
    pub fn blocks(&self) -> u32 {
        // Acquire: pairs with `grow`.
        self.blocks.load(Ordering::Acquire)
    }

    /// How many frames it has.
    #[inline]
    pub fn frames(&self) -> u64 {
        u64::from(self.blocks()) << BLOCK_SHIFT
    }

    /// One past the last frame; the highest number if there is none.
    pub fn end(&self) -> Pfn {
        Pfn::new(self.pfn().get().saturating_add(self.frames()))
    }

    #[inline]
    pub fn frame_of(&self, pfn: Pfn) -> Option<FrameIndex> {
        let offset = pfn.get().wrapping_sub(self.pfn().get());
        (offset < self.frames()).then(|| self.block().first_frame().plus(offset as u32))
    }

    #[inline]
    pub fn pfn_of(&self, frame: FrameIndex) -> Option<Pfn> {
        let first = self.block().first_frame();
        let offset = u64::from(frame.get().wrapping_sub(first.get()));
        (offset < self.frames()).then(|| self.pfn().plus(offset))
    }
}
