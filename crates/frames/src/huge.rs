//! Whole pageblocks: orders 9 and 10.

use crate::{
    AllocError, AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, FrameAllocator,
    FrameClass, FrameState, Ledger, Migratetype, Order, Pfn, alloc::owned, counters::add_locked,
    cpu::CpuGuard, sync::Ordering,
};

impl FrameAllocator<'_> {
    pub(crate) fn alloc_blocks(
        &self,
        cpu: CpuId,
        request: AllocRequest,
    ) -> Result<Pfn, AllocError> {
        let frames = request.order.frames();
        let mut error = AllocError::BelowWatermark;
        let guard = self.cpu(cpu).lock();
        for zone in (0..self.zones().count()).rev() {
            let booked = self.book(zone, Some(&guard), frames, request.watermark);
            if booked == frames {
                let found = self.settled(zone, || {
                    self.search_whole(zone, guard.slot.home(zone), |block| {
                        self.claim_blocks(block, &guard, request)
                    })
                });
                if let Some(block) = found {
                    let head = (block.index() * FRAMES_PER_BLOCK) as u32;
                    self.descriptor_at(head)
                        .store(owned(request.class, request.order));
                    add_locked(&guard.slot.events[Event::PgAlloc as usize], frames as u64);
                    return Ok(self.block_start(block));
                }
                error = AllocError::Fragmented;
            }
            self.pay_in(zone, Some(&guard), booked as i64);
        }
        Err(error)
    }

    /// Claims `block`, and for order 10 its neighbour above, both wholly free.
    fn claim_blocks(
        &self,
        block: BlockId,
        guard: &CpuGuard<'_>,
        request: AllocRequest,
    ) -> Option<BlockId> {
        if request.order == Order::HUGE {
            return self.claim(block, guard, request.class).then_some(block);
        }
        let next = BlockId::new(block.index() as u32 + 1);
        let fits = self.block_start(block).is_aligned(request.order)
            && next.index() < self.blocks().len()
            && self.zone_of_block(next) == self.zone_of_block(block);
        if !fits || !self.claim(block, guard, request.class) {
            return None;
        }
        if self.claim(next, guard, request.class) {
            return Some(block);
        }
        // The booking of the zone's free frames stays the caller's.
        self.release(block, guard, request.class);
        None
    }

    /// The bits stay set: with nothing free by the ledger nobody looks at them, and they are right again when the block comes
    /// free.
    fn claim(&self, block: BlockId, guard: &CpuGuard<'_>, class: FrameClass) -> bool {
        self.change(block, Some(guard), |ledger| {
            ledger.is_whole().then(|| huge(ledger, class))
        })
        .is_ok()
    }

    /// The reverse of a claim; gives by how much the zone's free frames grew.
    fn release(&self, block: BlockId, guard: &CpuGuard<'_>, class: FrameClass) -> i64 {
        self.change(block, Some(guard), |ledger| {
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
    pub(crate) fn free_blocks_of(
        &self,
        guard: &CpuGuard<'_>,
        head: u32,
        order: Order,
        class: FrameClass,
    ) {
        let first = Self::block_of_index(head).index() as u32;
        for number in 0..(order.frames() / FRAMES_PER_BLOCK) as u32 {
            let block = BlockId::new(first + number);
            let freed = self.release(block, guard, class);
            self.pay_in(self.zone_of_block(block).index(), Some(guard), freed);
        }
    }

    /// Makes 512 single frames of an order-9 allocation. All get the head's state, class and owner, and the head's owner word,
    /// which the owner replaces.
    ///
    /// # Panics
    ///
    /// If `head` is not the head of an order-9 allocation: the caller's fault.
    pub fn split_huge(&self, head: Pfn) {
        let frame = self.frame_index(head).expect("a frame of this allocator");
        let word = self.descriptor_at(frame).load();
        assert!(
            word.order() == Order::HUGE.get() && head.is_aligned(Order::HUGE),
            "{head:?} is no huge page"
        );
        let owner = self.descriptor_at(frame).owner.load(Ordering::Relaxed);
        for frame in frame..frame + FRAMES_PER_BLOCK as u32 {
            let descriptor = self.descriptor_at(frame);
            descriptor.owner.store(owner, Ordering::Relaxed);
            descriptor.store(word.with_order(0));
        }
        let block = Self::block_of_index(frame);
        // Before the block opens: its bits stayed set while it was one allocation.
        for bits in &self.fields[block.index()].0 {
            bits.store(0, Ordering::Release);
        }
        let _ = self.change(block, None, |ledger| {
            Some(ledger.with_state(BlockState::Open))
        });
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
                let word = self.descriptor_at(*below).load();
                word.order() == Order::MAX.get() && word.state() != FrameState::Free
            });
            return self.pfn(of_pair.unwrap_or(first));
        }
        let mut at = frame;
        while at > 0 && self.descriptor_at(at).load().state() == FrameState::Tail {
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
