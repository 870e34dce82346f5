//! From frame numbers to table positions and back: memory is a few *segments*, and holes between them cost nothing.
//!
//! A segment is a stretch of one zone without a hole of a whole pageblock. Its blocks stand side by side in the tables; a zone's
//! segments follow each other there, and zones follow each other. Segments are appended when memory is added, and never change
//! but for growing at their end.

use crate::{
    BLOCK_SHIFT, BlockId, FRAMES_PER_BLOCK, FrameAllocator, Pfn,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// One stretch.
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
    pub fn set(&self, pfn: Pfn, block: u32, blocks: u32) {
        // Relaxed: published by the count of segments.
        self.pfn.store(pfn.get(), Ordering::Relaxed);
        self.block.store(block, Ordering::Relaxed);
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// Makes it longer.
    pub fn grow(&self, blocks: u32) {
        // Release: who finds a frame in it finds the tables of that frame.
        self.blocks.fetch_add(blocks, Ordering::Release);
    }

    #[inline]
    pub fn pfn(&self) -> Pfn {
        Pfn::new(self.pfn.load(Ordering::Relaxed))
    }

    #[inline]
    pub fn block(&self) -> u32 {
        self.block.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn blocks(&self) -> u32 {
        // Acquire: pairs with `grow`.
        self.blocks.load(Ordering::Acquire)
    }

    #[inline]
    pub fn frame_of(&self, pfn: Pfn) -> Option<u32> {
        let offset = pfn.get().wrapping_sub(self.pfn().get());
        (offset < u64::from(self.blocks()) << BLOCK_SHIFT)
            .then(|| (self.block() << BLOCK_SHIFT) + offset as u32)
    }

    #[inline]
    fn pfn_of(&self, frame: u32) -> Option<Pfn> {
        let offset = frame.wrapping_sub(self.block() << BLOCK_SHIFT);
        (u64::from(offset) < u64::from(self.blocks()) << BLOCK_SHIFT)
            .then(|| self.pfn().plus(u64::from(offset)))
    }
}

impl FrameAllocator<'_> {
    /// The segments in use.
    #[inline]
    pub(crate) fn segments(&self) -> &[Segment] {
        // Acquire: pairs with the release of whoever adds one.
        &self.segments[..self.segment_count.load(Ordering::Acquire) as usize]
    }

    /// The position of `pfn` in the tables; `None` where this allocator has no memory.
    #[inline(never)]
    pub(crate) fn frame_index(&self, pfn: Pfn) -> Option<u32> {
        self.frame_index_inline(pfn)
    }

    /// The same, for the shortest ways. Segments are few: they are looked at one after another.
    #[inline]
    pub(crate) fn frame_index_inline(&self, pfn: Pfn) -> Option<u32> {
        self.segments().iter().find_map(|s| s.frame_of(pfn))
    }

    /// The number of a frame that the tables have.
    #[inline(never)]
    pub(crate) fn pfn(&self, frame: u32) -> Pfn {
        self.pfn_inline(frame)
    }

    /// The same, for the shortest ways.
    #[inline]
    pub(crate) fn pfn_inline(&self, frame: u32) -> Pfn {
        let found = self.segments().iter().find_map(|s| s.pfn_of(frame));
        debug_assert!(found.is_some(), "frame {frame} of the tables is no memory");
        found.unwrap_or_default()
    }

    #[inline]
    pub(crate) fn block_of_index(frame: u32) -> BlockId {
        BlockId::new(frame / FRAMES_PER_BLOCK as u32)
    }

    /// The lowest frame of the memory, aligned to a block. It stays the lowest: memory is added above it.
    #[inline(never)]
    pub fn base(&self) -> Pfn {
        let lowest = self.segments().iter().map(Segment::pfn).min();
        lowest.unwrap_or_default()
    }

    /// The block that holds `pfn`; `None` where this allocator has no memory.
    pub fn block_of(&self, pfn: Pfn) -> Option<BlockId> {
        self.frame_index(pfn).map(Self::block_of_index)
    }

    /// The first frame of `block`.
    ///
    /// # Panics
    ///
    /// With debug assertions, if there is no such block; without them the answer is frame 0 then.
    pub fn block_start(&self, block: BlockId) -> Pfn {
        self.pfn((block.index() * FRAMES_PER_BLOCK) as u32)
    }

    /// The block whose frames follow those of `block`, in the same zone.
    pub fn block_above(&self, block: BlockId) -> Option<BlockId> {
        let end = self
            .block_start(block)
            .get()
            .checked_add(FRAMES_PER_BLOCK as u64)?;
        let above = self.block_of(Pfn::new(end))?;
        (self.zone_of_block(above) == self.zone_of_block(block)).then_some(above)
    }

    /// The block whose frames end where those of `block` begin, in the same zone.
    pub fn block_below(&self, block: BlockId) -> Option<BlockId> {
        let last = self.block_start(block).get().checked_sub(1)?;
        let below = self.block_of(Pfn::new(last))?;
        (self.zone_of_block(below) == self.zone_of_block(block)).then_some(below)
    }
}
