//! Whole pageblocks: orders 9 and 10.

use crate::{
    AllocError, AllocRequest, BlockId, BlockState, CpuId, FRAMES_PER_BLOCK, FrameAllocator,
    FrameClass, FrameState, Ledger, Migratetype, Order, Pfn, cpu::CpuGuard, descriptor::Word,
    index::Place, place::WHOLE_ROW, sums::Part, sync::Ordering,
};

impl FrameAllocator<'_> {
    /// One block or two from the index; the first frame.
    pub(crate) fn alloc_blocks(
        &self,
        cpu: CpuId,
        request: AllocRequest,
    ) -> Result<u32, AllocError> {
        let frames = request.order.frames();
        let mut error = AllocError::BelowWatermark;
        for zone_number in self.zone_order() {
            if self.book(zone_number, None, frames, Part::All, request.watermark) == 0 {
                continue;
            }
            let from = self.home(cpu, zone_number);
            let mut found = None;
            self.settled(zone_number, &mut || {
                let mut claim = |block| {
                    let claimed = match request.order {
                        Order::HUGE => self.claim(block, request.class),
                        _ => self.claim_pair(block, request.class),
                    };
                    if claimed {
                        found = Some(block);
                    }
                    claimed
                };
                match request.order {
                    Order::HUGE => self.search_whole(zone_number, from, &mut claim),
                    _ => self.search_pairs(zone_number, &mut claim),
                }
            });
            if let Some(block) = found {
                let word = Word::owned(request.class, request.order);
                let record = self.record(block);
                // Release: as `Descriptor::store`.
                record.word.store(word.into_bits(), Ordering::Release);
                return Ok((block.index() * FRAMES_PER_BLOCK) as u32);
            }
            self.pay_in(zone_number, None, frames as i64);
            error = AllocError::Fragmented;
        }
        Err(error)
    }

    /// Claims `block` and its neighbour above, both wholly free, as one order-10 allocation.
    fn claim_pair(&self, block: BlockId, class: FrameClass) -> bool {
        if !self.block_start(block).is_aligned(Order::MAX) {
            return false;
        }
        // Above it in memory and in the tables, as all that follows takes for granted.
        let next = BlockId::new(block.index() as u32 + 1);
        if self.block_above(block) != Some(next) {
            return false;
        }
        // A look at both first: who claims one in vain hides it from others for a moment.
        let index = &self.zone_at(block).by_room;
        let whole =
            |block| index.holds(block, Place::row(WHOLE_ROW)) && self.ledger(block).is_whole();
        if !whole(block) || !whole(next) || !self.claim(block, class) {
            return false;
        }
        if self.claim(next, class) {
            return true;
        }
        // The booking of the zone's free frames stays the caller's.
        self.release(block, None, class);
        false
    }

    /// The field's bits stay set: with nothing free by the ledger nobody looks at them, and they are right again when the
    /// block comes free.
    fn claim(&self, block: BlockId, class: FrameClass) -> bool {
        let whole = |ledger: Ledger| ledger.is_whole().then(|| huge(ledger, class));
        self.change(block, None, &whole).is_ok()
    }

    /// The reverse of a claim; gives by how much the zone's free frames grew.
    pub(crate) fn release(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        class: FrameClass,
    ) -> i64 {
        self.change(block, guard, &|ledger| Some(whole(ledger, class)))
            .map_or(0, |change| change.freed())
    }

    /// Frees a disowned allocation of whole blocks.
    pub(crate) fn free_blocks_of(&self, frame: u32, order: Order, class: FrameClass) {
        let first = Self::block_of_index(frame).index() as u32;
        for number in 0..(order.frames() / FRAMES_PER_BLOCK) as u32 {
            let block = BlockId::new(first + number);
            let freed = self.release(block, None, class);
            self.pay_in(self.zone_of_block(block).index(), None, freed);
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
        self.split_block(Self::block_of_index(frame), word.with_order(0));
    }

    /// Makes single frames with state word `word` of a block that one allocation holds.
    pub(crate) fn split_block(&self, block: BlockId, word: Word) {
        let first = (block.index() * FRAMES_PER_BLOCK) as u32;
        let owner = self.descriptor_at(first).owner.load(Ordering::Relaxed);
        for frame in first..first + FRAMES_PER_BLOCK as u32 {
            let descriptor = self.descriptor_at(frame);
            descriptor.owner.store(owner, Ordering::Relaxed);
            descriptor.store(word);
        }
        for bits in &self.fields[block.index()].0 {
            // Before the block opens: they stayed set while it was one allocation. Release, as in `bits`.
            bits.store(0, Ordering::Release);
        }
        let _ = self.change(block, None, &|ledger| {
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
            let start = self.block_start(block);
            let below = (!start.is_aligned(Order::MAX))
                .then(|| self.block_below(block))
                .flatten();
            let of_pair = below.filter(|&below| {
                let word = Word::from_bits(self.record(below).word.load(Ordering::Acquire));
                word.order() == Order::MAX.get() && word.state() != FrameState::Free
            });
            return of_pair.map_or(start, |below| self.block_start(below));
        }
        let mut at = frame;
        // A run never leaves its block.
        while at % FRAMES_PER_BLOCK as u32 > 0
            && self.descriptor_at(at).load().state() == FrameState::Tail
        {
            at -= 1;
        }
        self.pfn(at)
    }
}

/// The ledger of a wholly free block after one allocation took it.
#[inline]
pub(crate) fn huge(ledger: Ledger, class: FrameClass) -> Ledger {
    ledger
        .taken(class, FRAMES_PER_BLOCK as u16)
        .with_state(BlockState::Huge)
        .with_type(class.migratetype())
}

/// The reverse.
#[inline]
pub(crate) fn whole(ledger: Ledger, class: FrameClass) -> Ledger {
    ledger
        .given(class, FRAMES_PER_BLOCK as u16)
        .with_state(BlockState::Open)
        .with_type(Migratetype::Movable)
}
