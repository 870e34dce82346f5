//! Whole pageblocks: orders 9 and 10.

use crate::{
    AllocError, AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, FrameAllocator,
    FrameClass, FrameState, Ledger, Migratetype, Order, Pfn,
    alloc::{Search, SearchOrder, mark, owned},
    allocator::kind,
    sync::Ordering,
};

impl FrameAllocator<'_> {
    pub(crate) fn alloc_blocks(
        &self,
        cpu: CpuId,
        request: AllocRequest,
    ) -> Result<Pfn, AllocError> {
        let frames = request.order.frames();
        let mut error = AllocError::BelowWatermark;
        for zone_number in (0..self.zones().count()).rev() {
            let zone = &self.zones[zone_number];
            let booked = zone.book(frames, mark(zone, request.watermark));
            if booked == frames {
                let search = Search {
                    kinds: &[kind::WHOLE],
                    order: SearchOrder::Lowest,
                    room: 0,
                };
                let found = self.settled(zone, || {
                    self.search(zone_number, &search, |block| {
                        self.claim_blocks(block, request)
                    })
                });
                if let Some(block) = found {
                    let first = block.index() * FRAMES_PER_BLOCK;
                    self.descriptors[first].store(owned(request.class, request.order));
                    self.count_frames(cpu, Event::PgAlloc, frames);
                    return Ok(self.block_start(block));
                }
                error = AllocError::Fragmented;
            }
            zone.add_free(booked as i64);
        }
        Err(error)
    }

    /// Claims `block`, and for order 10 its neighbour above, both wholly free.
    fn claim_blocks(&self, block: BlockId, request: AllocRequest) -> Option<BlockId> {
        if request.order == Order::HUGE {
            return self.claim(block, request.class).then_some(block);
        }
        let next = BlockId::new(block.index() as u32 + 1);
        let fits = self.block_start(block).is_aligned(request.order)
            && next.index() < self.blocks().len()
            && self.zone_of_block(next) == self.zone_of_block(block);
        if !fits || !self.claim(block, request.class) {
            return None;
        }
        if self.claim(next, request.class) {
            return Some(block);
        }
        // The booking of the zone's free frames stays the caller's.
        self.release(block, request.class);
        None
    }

    fn claim(&self, block: BlockId, class: FrameClass) -> bool {
        self.change(block, |ledger| {
            ledger.is_whole().then(|| huge(ledger, class))
        })
        .map(|_| self.clear_field(block))
        .is_ok()
    }

    /// The block is ours by its ledger; the bits follow.
    pub(crate) fn clear_field(&self, block: BlockId) {
        for word in &self.fields[block.index()].0 {
            // Release is enough: the next to set them is our own `release`.
            word.store(0, Ordering::Release);
        }
    }

    /// The reverse of a claim; gives by how much the zone's free frames grew.
    fn release(&self, block: BlockId, class: FrameClass) -> i64 {
        for word in &self.fields[block.index()].0 {
            // Before the ledger: who lowers it next finds the bits.
            word.store(u64::MAX, Ordering::Release);
        }
        self.change(block, |ledger| {
            Some(
                ledger
                    .given(class, FRAMES_PER_BLOCK as u16)
                    .with_state(BlockState::Open)
                    .with_type(Migratetype::Movable),
            )
        })
        .map_or(0, |change| change.freed())
    }

    /// Frees a disowned allocation of whole blocks.
    pub(crate) fn free_blocks_of(&self, frame: u32, order: Order, class: FrameClass) {
        let first = Self::block_of_index(frame).index() as u32;
        for number in 0..(order.frames() / FRAMES_PER_BLOCK) as u32 {
            let block = BlockId::new(first + number);
            let freed = self.release(block, class);
            self.block_zone(block).add_free(freed);
        }
    }

    /// Makes 512 single frames of an order-9 allocation. All get the head's state, class and owner, and the head's owner word,
    /// which the owner replaces.
    ///
    /// # Panics
    ///
    /// If `head` is not the head of an order-9 allocation: the caller's fault.
    pub fn split_huge(&self, head: Pfn) {
        let frame = self.frame_index(head).expect("a frame of this allocator") as usize;
        let word = self.descriptors[frame].load();
        assert!(
            word.order() == Order::HUGE.get() && head.is_aligned(Order::HUGE),
            "{head:?} is no huge page"
        );
        let owner = self.descriptors[frame].owner.load(Ordering::Relaxed);
        for descriptor in &self.descriptors[frame..frame + FRAMES_PER_BLOCK] {
            descriptor.owner.store(owner, Ordering::Relaxed);
            descriptor.store(word.with_order(0));
        }
        let block = Self::block_of_index(frame as u32);
        let _ = self.change(block, |ledger| Some(ledger.with_state(BlockState::Open)));
    }

    /// The first frame of the allocation that holds `pfn`; itself where the frame is free or single.
    pub fn head(&self, pfn: Pfn) -> Pfn {
        let Some(frame) = self.frame_index(pfn) else {
            return pfn;
        };
        let block = Self::block_of_index(frame);
        if self.ledger(block).state() == BlockState::Huge {
            let first = (block.index() * FRAMES_PER_BLOCK) as u32;
            let below = first.checked_sub(FRAMES_PER_BLOCK as u32);
            let of_pair = below.filter(|below| {
                let word = self.descriptors[*below as usize].load();
                word.order() == Order::MAX.get() && word.state() != FrameState::Free
            });
            return self.pfn(of_pair.unwrap_or(first));
        }
        let mut at = frame;
        while at > 0 && self.descriptors[at as usize].load().state() == FrameState::Tail {
            at -= 1;
        }
        self.pfn(at)
    }
}

/// The ledger of a wholly free block after one allocation took it.
pub(crate) fn huge(ledger: Ledger, class: FrameClass) -> Ledger {
    ledger
        .taken(class, FRAMES_PER_BLOCK as u16)
        .with_state(BlockState::Huge)
        .with_type(class.migratetype())
}
