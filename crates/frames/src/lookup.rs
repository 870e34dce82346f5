//! From frame numbers to positions in the tables and back; blocks, their zones and their neighbours.

use crate::{
    BlockId, FRAMES_PER_BLOCK, FrameAllocator, Pfn, ZoneId, config::MAX_ZONES,
    position::FrameIndex, segment::Segment, sync::Ordering, zone::Zone,
};

impl<'m> FrameAllocator<'m> {
    /// The segments in use.
    #[inline]
    pub(crate) fn segments(&self) -> &[Segment] {
        // Acquire: pairs with the release of whoever adds one.
        &self.segments[..self.segment_count.load(Ordering::Acquire) as usize]
    }

    /// The position of `pfn` in the tables; `None` where this allocator has no memory.
    #[inline(never)]
    pub(crate) fn frame_index(&self, pfn: Pfn) -> Option<FrameIndex> {
        self.frame_index_inline(pfn)
    }

    /// The same, for the fast paths. Segments are few, so the search is linear.
    #[inline]
    pub(crate) fn frame_index_inline(&self, pfn: Pfn) -> Option<FrameIndex> {
        self.segments().iter().find_map(|s| s.frame_of(pfn))
    }

    /// The number of a frame that the tables have.
    #[inline(never)]
    pub(crate) fn pfn(&self, frame: FrameIndex) -> Pfn {
        self.pfn_inline(frame)
    }

    /// The same, for the fast paths.
    #[inline]
    pub(crate) fn pfn_inline(&self, frame: FrameIndex) -> Pfn {
        let found = self.segments().iter().find_map(|s| s.pfn_of(frame));
        debug_assert!(found.is_some(), "{frame:?} is no memory");
        found.unwrap_or_default()
    }

    /// The lowest frame of the memory, aligned to a block. It stays the lowest: memory is added above it.
    #[inline(never)]
    pub fn base(&self) -> Pfn {
        let lowest = self.segments().iter().map(Segment::pfn).min();
        lowest.unwrap_or_default()
    }

    /// One past the highest frame of the memory. Between [`base`](Self::base) and here there may be holes.
    #[inline(never)]
    pub fn end(&self) -> Pfn {
        let ends = self
            .segments()
            .iter()
            .map(|segment| segment.pfn().plus(segment.frames()));
        ends.max().unwrap_or_default()
    }

    /// The block that holds `pfn`; `None` where this allocator has no memory.
    pub fn block_of(&self, pfn: Pfn) -> Option<BlockId> {
        self.frame_index(pfn).map(FrameIndex::block)
    }

    /// The first frame of `block`.
    ///
    /// # Panics
    ///
    /// With debug assertions, if there is no such block. Without them it gives frame 0 then.
    pub fn block_start(&self, block: BlockId) -> Pfn {
        self.pfn(block.first_frame())
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

    /// How many zones there are.
    pub fn zones(&self) -> impl Iterator<Item = ZoneId> + use<> {
        (0..self.zone_count as u8).map(ZoneId::new)
    }

    /// The zone of `pfn`'s block; `None` where this allocator has no memory.
    pub fn zone_of(&self, pfn: Pfn) -> Option<ZoneId> {
        self.block_of(pfn).map(|block| self.zone_of_block(block))
    }

    /// All blocks, zone by zone in the order of [`Config::zones`](crate::Config::zones), in each ascending.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = BlockId> + use<> {
        let zones: [_; MAX_ZONES] = core::array::from_fn(|zone| self.zones[zone].blocks());
        zones.into_iter().flatten()
    }

    /// How many blocks there are.
    pub fn block_count(&self) -> usize {
        self.zones.iter().map(|zone| zone.present() as usize).sum()
    }

    /// Whether there is such a block.
    pub fn has_block(&self, block: BlockId) -> bool {
        let inside = |zone: &Zone<'_>| {
            block
                .get()
                .checked_sub(zone.first.get())
                .is_some_and(|at| at < zone.present())
        };
        self.zones.iter().any(inside)
    }

    #[inline]
    pub(crate) fn zone_at(&self, block: BlockId) -> &Zone<'m> {
        self.zone(self.zone_of_block(block))
    }
}
