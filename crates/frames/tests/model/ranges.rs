//! Ranges of any number of frames, at any place and a named one, and freed in pieces.

use dirigible_frames::{
    AllocAtError, AllocRequest, CpuId, Fallback, FrameState, FreeError, Migratetype, Order, Pfn,
};

use crate::model::{Before, Held, Model};

impl Model<'_> {
    pub fn alloc_range(
        &mut self,
        before: &Before,
        cpu: CpuId,
        request: AllocRequest,
        count: usize,
        align: Order,
    ) {
        let request = AllocRequest {
            order: Order::BASE,
            ..request
        };
        let ask = || self.frames.alloc_range(cpu, count, align, request);
        let result = ask().or_else(|_| {
            // As for other requests of several frames.
            self.frames.drain_cpu_caches();
            ask()
        });
        match result {
            Ok(first) => {
                assert!(first.is_aligned(align), "{first:?} at {align:?}");
                self.take_range(before, first, count, request);
            }
            Err(_) => self.justify_range(request, count, align),
        }
    }

    pub fn alloc_at(
        &mut self,
        before: &Before,
        cpu: CpuId,
        request: AllocRequest,
        first: Pfn,
        count: usize,
    ) {
        let ask = || self.frames.alloc_at(cpu, first, count, request);
        let result = ask().or_else(|_| {
            self.frames.drain_cpu_caches();
            ask()
        });
        let free = |at: u64| {
            let pfn = first.plus(at);
            let block = self.frames.block_of(pfn);
            let open = block.is_some_and(|b| self.frames.ledger(b).available() > 0);
            open && self.frames.state(pfn) == FrameState::Free
        };
        let zone = |at: u64| self.frames.zone_of(first.plus(at));
        match result {
            Ok(()) => self.take_range(before, first, count, request),
            Err(AllocAtError::InUse) => {
                assert!(!(0..count as u64).all(free), "nothing is in the way");
            }
            Err(AllocAtError::NoMemory) => {
                let one = (0..count as u64).all(|at| zone(at).is_some() && zone(at) == zone(0));
                assert!(!one, "it is memory of one zone");
            }
            Err(AllocAtError::BelowWatermark) => {
                let zone = zone(0).expect("it is memory");
                assert!(self.oracle().above(zone, request.watermark) < count as u64);
            }
        }
    }

    fn take_range(&mut self, before: &Before, first: Pfn, count: usize, request: AllocRequest) {
        let pfns: Vec<Pfn> = (0..count as u64).map(|at| first.plus(at)).collect();
        self.counted.0 += count as u64;
        self.take(before, &pfns, request.class, Some(request.watermark));
    }

    /// Demands that no run of free frames in blocks that the request may use would have sufficed.
    fn justify_range(&self, request: AllocRequest, count: usize, align: Order) {
        let frames = self.frames;
        let (mine, fallback) = (request.class.migratetype(), self.geometry.fallback);
        for zone in frames.zones() {
            if self.oracle().above(zone, request.watermark) < count as u64 {
                continue;
            }
            let mut run = 0;
            let mut next = None;
            for block in frames.blocks().filter(|b| frames.zone_of_block(*b) == zone) {
                let ledger = frames.ledger(block);
                let theirs = ledger.migratetype();
                let shared = fallback == Fallback::Evacuate
                    && mine != Migratetype::Movable
                    && theirs != Migratetype::Movable;
                let steals = request.any_block || request.fall_back && fallback == Fallback::Steal;
                let kept = frames.reserve_blocks(zone);
                let spares = request.class.is_movable()
                    && !request.break_reserve
                    && count <= 512
                    && kept > 0
                    && frames.zone_free_blocks(zone) < u64::from(kept) + 2;
                let usable = match ledger.free() {
                    512 => ledger.available() > 0 && !spares,
                    _ => ledger.available() > 0 && (theirs == mine || shared || steals),
                };
                for at in 0..512 {
                    let pfn = frames.block_start(block).plus(at);
                    let free = usable && frames.state(pfn) == FrameState::Free;
                    let begins = pfn.is_aligned(align);
                    run = match (free, next == Some(pfn) && run > 0, begins) {
                        (false, _, _) => 0,
                        // One that began at a place that is aligned, or an aligned beginning.
                        (true, true, _) => run + 1,
                        (true, false, true) => 1,
                        (true, false, false) => 0,
                    };
                    next = Some(pfn.plus(1));
                    assert!(run < count, "{count} frames end at {pfn:?}");
                }
            }
        }
    }

    /// Frees `count` frames from somewhere inside an allocation on, whatever they belong to.
    pub fn free_range(&mut self, cpu: CpuId, first: Pfn, count: usize) {
        let result = self.frames.free_range(cpu, first, count);
        let mut done = 0;
        let expected = loop {
            if done == count {
                break Ok(());
            }
            let pfn = first.plus(done as u64);
            if self.frames.block_of(pfn).is_none() {
                break Err(FreeError::Unknown(pfn));
            }
            let below = self.held.range(..=pfn).next_back();
            let holder = below.filter(|(head, held)| pfn < head.plus(held.order.frames() as u64));
            let Some((&head, &held)) = holder else {
                break Err(FreeError::NotAllocated(pfn));
            };
            if held.state != FrameState::Allocated {
                break Err(FreeError::NotAllocated(pfn));
            }
            if head == pfn && held.order.frames() <= count - done {
                self.held.remove(&head);
                done += held.order.frames();
            } else {
                self.split_held(head, held);
            }
        };
        self.counted.1 += done as u64;
        assert_eq!(result, expected);
    }

    /// Makes single frames of an allocation of any order.
    pub fn split_any(&mut self, head: Pfn, held: Held) {
        let result = self.frames.split(head);
        if held.order > Order::BASE && held.state == FrameState::Allocated {
            assert_eq!(result, Ok(()));
            self.split_held(head, held);
        } else {
            assert!(result.is_err());
        }
    }

    fn split_held(&mut self, head: Pfn, held: Held) {
        let single = Held {
            order: Order::BASE,
            ..held
        };
        for at in 0..held.order.frames() as u64 {
            self.held.insert(head.plus(at), single);
        }
    }
}
