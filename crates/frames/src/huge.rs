//! Whole pageblocks: orders 9 and 10.

use crate::{
    AllocError, AllocRequest, BlockId, BlockState, CpuId, FRAMES_PER_BLOCK, FrameAllocator,
    FrameClass, FrameState, Ledger, Migratetype, Order, Pfn, Watermark, ZoneId, cpu::CpuGuard,
    descriptor::Word, index::Place, place::WHOLE_BUCKET, position::FrameIndex, sums::Booking,
    sync::Ordering,
};

impl FrameAllocator<'_> {
    /// Takes one block or two from the index; gives the first frame.
    pub(crate) fn alloc_blocks(
        &self,
        cpu: CpuId,
        request: AllocRequest,
    ) -> Result<FrameIndex, AllocError> {
        let booking = Booking::all(request.order.frames(), request.watermark);
        let block = self.try_zones(|zone| {
            let mut found = None;
            let booking = booking.without(self.stranded_for(zone, request));
            self.search_booked(zone, None, booking, &mut |booked| {
                found = self.find_blocks(cpu, zone, request);
                found.map_or(0, |_| booked)
            })?;
            found.ok_or(AllocError::Fragmented)
        })?;
        self.own_blocks(block, Word::owned(request.class, request.order));
        Ok(block.first_frame())
    }

    /// Free frames that do not count for a request of whole blocks. Whole blocks are not among them, so they need not be
    /// counted while enough blocks are whole.
    fn stranded_for(&self, zone: ZoneId, request: AllocRequest) -> u64 {
        if !request.class.is_movable() || request.watermark == Watermark::None {
            return 0;
        }
        let left = self.whole_in(zone) * FRAMES_PER_BLOCK as i64 - request.order.frames() as i64;
        if left >= self.zone(zone).mark(request.watermark) {
            return 0;
        }
        self.stranded_frames(zone)
    }

    /// Claims one block or two of a zone; gives the first.
    fn find_blocks(&self, cpu: CpuId, zone: ZoneId, request: AllocRequest) -> Option<BlockId> {
        let mut found = None;
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
            Order::HUGE => self.search_whole(zone, self.home(cpu, zone), &mut claim),
            _ => self.search_pairs(zone, &mut claim),
        };
        found
    }

    /// Writes the state word of an allocation that begins with `block`.
    #[inline]
    pub(crate) fn own_blocks(&self, block: BlockId, word: Word) {
        self.descriptor_at(block.first_frame()).store(word);
    }

    /// Claims `block` and its neighbour above, both wholly free, as one order-10 allocation.
    fn claim_pair(&self, block: BlockId, class: FrameClass) -> bool {
        if !self.block_start(block).is_aligned(Order::MAX) {
            return false;
        }
        // Above it in memory and in the tables: everything below relies on both.
        let next = block.plus(1);
        if self.block_above(block) != Some(next) {
            return false;
        }
        // A look at both first: a block that is claimed in vain is hidden from others for a moment.
        let index = &self.zone_at(block).by_room;
        let whole = |block| {
            index.holds(block, Place::bucket(WHOLE_BUCKET)) && self.ledger(block).is_whole()
        };
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

    /// Claims a wholly free block. The field's bits stay set: nobody reads them while the ledger has nothing free, and
    /// they are right again when the block is free.
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
    pub(crate) fn free_blocks_of(&self, frame: FrameIndex, order: Order, class: FrameClass) {
        let count = order.frames() / FRAMES_PER_BLOCK;
        for block in frame.block().run(count as u32) {
            let freed = self.release(block, None, class);
            self.pay_in(self.zone_of_block(block), None, freed);
        }
    }

    /// Makes 512 single frames of an order-9 allocation. All get the head's state, class and owner, and the head's
    /// owner word, which the owner replaces.
    ///
    /// # Panics
    ///
    /// If `head` is not the head of an order-9 allocation, which is an error of the caller.
    pub fn split_huge(&self, head: Pfn) {
        let frame = self.frame_index(head).expect("a frame of this allocator");
        let word = self.descriptor_at(frame).load();
        assert!(
            word.order() == Order::HUGE.get() && head.is_aligned(Order::HUGE),
            "{head:?} is no huge page"
        );
        self.split_block(frame.block(), word.with_order(0));
    }

    /// Makes single frames with state word `word` of a block that one allocation holds.
    pub(crate) fn split_block(&self, block: BlockId, word: Word) {
        let first = block.first_frame();
        let owner = self.descriptor_at(first).owner.load(Ordering::Relaxed);
        for frame in first.run(FRAMES_PER_BLOCK) {
            let descriptor = self.descriptor_at(frame);
            descriptor.owner.store(owner, Ordering::Relaxed);
            descriptor.store(word);
        }
        for bits in &self.field(block).0 {
            // Before the block opens: they stayed set while it was one allocation. Release, as in `bits`.
            bits.store(0, Ordering::Release);
        }
        let _ = self.change(block, None, &|ledger| {
            Some(ledger.with_state(BlockState::Open))
        });
    }

    /// The first frame of the allocation that holds `pfn`; `pfn` itself if it is free or a single frame.
    pub fn head(&self, pfn: Pfn) -> Pfn {
        let Some(frame) = self.frame_index(pfn) else {
            return pfn;
        };
        let block = frame.block();
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
        // A run never leaves its block.
        let up_to_here = block.first_frame().run(frame.offset() as usize + 1);
        let is_tail = |frame| self.descriptor_at(frame).load().state() == FrameState::Tail;
        let head = up_to_here.rev().find(|&frame| !is_tail(frame));
        self.pfn(head.unwrap_or(block.first_frame()))
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
