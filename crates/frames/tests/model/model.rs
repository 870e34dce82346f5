//! The naive model: a map from held frames to what they were taken as.

use std::collections::BTreeMap;

use dirigible_frames::{
    AllocRequest, BlockId, BlockState, CpuId, FRAMES_PER_BLOCK, FrameAllocator, FrameClass,
    FrameFlags, FrameState, FreeError, IsolatedBlock, Ledger, Order, OwnerId, Pfn, Watermark,
    Watermarks, ZoneId,
};

use crate::{geometry::Geometry, operation::Operation, oracle::Oracle};

/// An allocation that the run holds, by its first frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    pub order: Order,
    pub class: FrameClass,
    pub state: FrameState,
    pub owner: OwnerId,
    pub word: u64,
}

pub struct Model<'a> {
    pub geometry: &'a Geometry,
    pub frames: &'a FrameAllocator<'a>,
    pub held: BTreeMap<Pfn, Held>,
    pub tokens: Vec<IsolatedBlock>,
    pub managed: Vec<u64>,
    /// Frames counted by `pgalloc` and `pgfree`.
    pub counted: (u64, u64),
    pub words: u64,
}

/// What an operation is compared with.
pub struct Before {
    pub ledgers: Vec<Ledger>,
    pub zone_free: Vec<u64>,
    pub zone_whole: Vec<u64>,
}

impl<'a> Model<'a> {
    pub fn new(geometry: &'a Geometry, frames: &'a FrameAllocator<'a>) -> Self {
        let mut managed = vec![0; geometry.zones.len()];
        for pfn in all_frames(frames) {
            if let Some(zone) = geometry.usable(pfn) {
                managed[zone] += 1;
                assert_eq!(frames.zone_of(pfn).map(ZoneId::index), Some(zone));
                assert_eq!(frames.state(pfn), FrameState::Free);
            } else {
                assert_eq!(frames.state(pfn), FrameState::Reserved);
            }
        }
        let model = Self {
            geometry,
            frames,
            held: BTreeMap::new(),
            tokens: Vec::new(),
            managed,
            counted: (0, 0),
            words: 0,
        };
        model.check(&model.before());
        model
    }

    pub fn before(&self) -> Before {
        let frames = self.frames;
        Before {
            ledgers: frames.blocks().map(|b| frames.ledger(b)).collect(),
            zone_free: frames.zones().map(|z| frames.zone_free_frames(z)).collect(),
            zone_whole: frames.zones().map(|z| frames.zone_free_blocks(z)).collect(),
        }
    }

    fn cpu(&self, number: u16) -> CpuId {
        CpuId::new(number % self.geometry.cpus)
    }

    fn block(&self, pick: usize) -> BlockId {
        let pick = pick % self.frames.block_count();
        self.frames.blocks().nth(pick).expect("there are as many")
    }

    fn frame(&self, pick: usize) -> Pfn {
        let block = self.block(pick / FRAMES_PER_BLOCK);
        let offset = (pick % FRAMES_PER_BLOCK) as u64;
        self.frames.block_start(block).plus(offset)
    }

    pub fn pick(&self, pick: usize) -> Option<(Pfn, Held)> {
        let position = pick.checked_rem(self.held.len())?;
        self.held
            .iter()
            .nth(position)
            .map(|(pfn, held)| (*pfn, *held))
    }

    pub fn step(&mut self, operation: &Operation) {
        let before = self.before();
        match *operation {
            Operation::Alloc(cpu, request) => self.alloc(&before, self.cpu(cpu), request),
            Operation::AllocBulk(cpu, request, count) => {
                let mut out = vec![Pfn::default(); count];
                let got = self.frames.alloc_bulk(self.cpu(cpu), request, &mut out);
                let request = AllocRequest {
                    order: Order::BASE,
                    ..request
                };
                self.counted.0 += got as u64;
                self.take(&before, &out[..got], request.class, Some(request.watermark));
                self.check_reserve(&before, request);
                if got < count {
                    self.oracle().justify(request, None);
                }
            }
            Operation::Balloon(cpu, placement, watermark, count) => {
                self.balloon(&before, self.cpu(cpu), placement, watermark, count);
            }
            Operation::Targets { avoid, count } => self.targets(&before, self.block(avoid), count),
            Operation::Free { cpu, pick } => {
                if let Some((pfn, held)) = self.pick(pick) {
                    self.free(self.cpu(cpu), pfn, held);
                }
            }
            Operation::FreeBulk {
                cpu,
                pick,
                stride,
                count,
            } => {
                self.free_bulk(self.cpu(cpu), pick, stride, count);
            }
            Operation::FreeBlock { cpu, pick } => {
                let start = self.frames.block_start(self.block(pick));
                let end = start.plus(FRAMES_PER_BLOCK as u64);
                let held: Vec<_> = self.held.range(start..end).map(|(p, h)| (*p, *h)).collect();
                for (pfn, held) in held {
                    self.free(self.cpu(cpu), pfn, held);
                }
            }
            Operation::WrongFree { cpu, frame, order } => {
                self.wrong_free(&before, self.cpu(cpu), frame, order);
            }
            Operation::AllocRange {
                cpu,
                request,
                count,
                align,
            } => {
                let align = Order::new(align).expect("0 to 10");
                self.alloc_range(&before, self.cpu(cpu), request, count, align);
            }
            Operation::AllocAt {
                cpu,
                request,
                frame,
                count,
            } => self.alloc_at(&before, self.cpu(cpu), request, self.frame(frame), count),
            Operation::FreeRange {
                cpu,
                pick,
                offset,
                count,
            } => {
                if let Some((head, held)) = self.pick(pick) {
                    let first = head.plus((offset % held.order.frames()) as u64);
                    self.free_range(self.cpu(cpu), first, count);
                }
            }
            Operation::SplitAny(pick) => {
                if let Some((head, held)) = self.pick(pick) {
                    self.split_any(head, held);
                }
            }
            Operation::Isolate(pick) => self.isolate(&before, self.block(pick)),
            Operation::Unisolate(pick) => {
                if let Some(token) = self.token(pick) {
                    let block = token.block();
                    self.frames.unisolate_block(token);
                    assert_eq!(self.frames.ledger(block).state(), BlockState::Open);
                }
            }
            Operation::Capture(pick, class) => self.capture(&before, pick, class),
            Operation::Convert(pick, migratetype) => {
                if let Some(token) = self.token(pick) {
                    let block = token.block();
                    self.frames.convert_block(token, migratetype);
                    let ledger = self.frames.ledger(block);
                    assert_eq!(
                        (ledger.state(), ledger.migratetype()),
                        (BlockState::Open, migratetype)
                    );
                }
            }
            Operation::Drain => {
                self.frames.drain_cpu_caches();
                assert_eq!(self.frames.cached_frames(), 0);
            }
            Operation::Reclass(pick, class) => {
                if let Some((pfn, held)) = self.pick(pick) {
                    self.frames.reclass(pfn, class);
                    self.held.insert(pfn, Held { class, ..held });
                }
            }
            Operation::Split(pick) => self.split(pick),
            Operation::Transition(pick, to) => self.transition(pick, to),
            Operation::Adjust { frame, frames } => {
                let pfn = self.frame(frame);
                let zone = self.frames.zone_of(pfn).expect("inside the span").index();
                let frames = frames.max(-(self.managed[zone] as i64));
                self.frames.adjust_managed(pfn, frames);
                self.managed[zone] = self.managed[zone].saturating_add_signed(frames);
            }
            Operation::Watermarks { pick, min } => {
                let zone = ZoneId::new((pick % self.geometry.zones.len()) as u8);
                let marks = Watermarks {
                    min,
                    low: min + 8,
                    high: min + 16,
                };
                self.frames.set_watermarks(zone, marks);
                assert_eq!(self.frames.watermarks(zone), marks);
            }
        }
        self.check(&before);
    }

    pub fn oracle(&self) -> Oracle<'a> {
        Oracle::new(self.geometry, self.frames)
    }

    pub fn token(&mut self, pick: usize) -> Option<IsolatedBlock> {
        let position = pick.checked_rem(self.tokens.len())?;
        Some(self.tokens.swap_remove(position))
    }

    fn alloc(&mut self, before: &Before, cpu: CpuId, request: AllocRequest) {
        let result = self.frames.alloc(cpu, request).or_else(|_| {
            // Not every refused request looks into the caches; with them empty the answer is exact.
            self.frames.drain_cpu_caches();
            self.frames.alloc(cpu, request)
        });
        match result {
            Err(error) => self.oracle().justify(request, Some(error)),
            Ok(pfn) => {
                self.counted.0 += request.order.frames() as u64;
                self.take_one(before, pfn, request.order, request.class);
                self.check_marks(before, Some(request.watermark));
                if request.order < Order::HUGE {
                    self.check_reserve(before, request);
                } else {
                    self.check_stranded(before, request);
                }
            }
        }
    }

    /// Books frames that were just handed out.
    pub fn take(
        &mut self,
        before: &Before,
        pfns: &[Pfn],
        class: FrameClass,
        watermark: Option<Watermark>,
    ) {
        for &pfn in pfns {
            self.take_one(before, pfn, Order::BASE, class);
        }
        self.check_marks(before, watermark);
    }

    pub fn take_one(&mut self, before: &Before, pfn: Pfn, order: Order, class: FrameClass) {
        let frames = self.frames;
        assert!(pfn.is_aligned(order), "{pfn:?} {order:?}");
        let zone = self.geometry.usable(pfn).expect("a frame of some zone");
        let end = pfn.plus(order.frames() as u64);
        for frame in pfn.get()..end.get() {
            assert_eq!(
                self.geometry.usable(Pfn::new(frame)),
                Some(zone),
                "holes stay holes"
            );
        }
        let below = self.held.range(..end).next_back();
        let free = below.is_none_or(|(p, h)| p.plus(h.order.frames() as u64) <= pfn);
        assert!(free, "{pfn:?} was handed out twice");
        let block = frames.block_of(pfn).expect("inside the span");
        let isolated = before.ledgers[block.index()].state() == BlockState::Isolated;
        assert!(!isolated, "{pfn:?} came from an isolated block");
        let info = frames.frame(pfn).expect("inside the span");
        assert_eq!(
            (info.state, info.order, info.class),
            (FrameState::Allocated, order, class)
        );
        assert_eq!(
            (info.owner, info.flags),
            (OwnerId::NONE, FrameFlags::EMPTY),
            "as new"
        );
        assert_eq!((info.refcount, info.generation), (0, 0), "as new");
        // An owner signs what it gets; frames inside a huge page are signed when it is split.
        let owner = OwnerId::new(1 + (self.words % 31) as u8).expect("not 0");
        self.words += 1;
        let held = Held {
            order,
            class,
            state: FrameState::Allocated,
            owner,
            word: self.words,
        };
        frames.set_owner(pfn, owner, self.words);
        frames.set_flags(pfn, FrameFlags::DIRTY);
        frames.set_generation(pfn, 5);
        self.held.insert(pfn, held);
    }

    fn check_marks(&self, before: &Before, watermark: Option<Watermark>) {
        let Some(watermark) = watermark else { return };
        for (zone, &free_before) in self.frames.zones().zip(&before.zone_free) {
            let free = self.frames.zone_free_frames(zone);
            let marks = self.frames.watermarks(zone);
            let mark = match watermark {
                Watermark::None => 0,
                Watermark::Min => marks.min,
                Watermark::Low => marks.low,
                Watermark::High => marks.high,
            };
            assert!(
                free >= free_before || free >= mark,
                "{free} frames are left of {mark}"
            );
        }
    }

    /// Demands that a request of whole blocks has left its watermark apart from what is stranded.
    fn check_stranded(&self, before: &Before, request: AllocRequest) {
        for (zone, &free_before) in self.frames.zones().zip(&before.zone_free) {
            let (free, oracle) = (self.frames.zone_free_frames(zone), self.oracle());
            assert!(
                free >= free_before
                    || oracle.above(zone, request.watermark) >= oracle.stranded(zone, request),
                "{free} frames are left, too many of them stranded"
            );
        }
    }

    fn check_reserve(&self, before: &Before, request: AllocRequest) {
        if request.class.is_movable() && !request.break_reserve {
            self.check_whole(before);
        }
    }

    /// Demands that no whole block was broken that the reserve keeps.
    fn check_whole(&self, before: &Before) {
        for (zone, &whole_before) in self.frames.zones().zip(&before.zone_whole) {
            let whole = self.frames.zone_free_blocks(zone);
            let kept = u64::from(self.frames.reserve_blocks(zone));
            assert!(
                whole >= whole_before || whole >= kept,
                "{whole} whole blocks left of {kept}"
            );
        }
    }

    fn balloon(
        &mut self,
        before: &Before,
        cpu: CpuId,
        placement: dirigible_frames::BalloonPlacement,
        watermark: Watermark,
        count: usize,
    ) {
        let mut out = vec![Pfn::default(); count];
        let got = self
            .frames
            .alloc_balloon(cpu, placement, watermark, &mut out);
        assert!(out[..got].is_sorted(), "ascending");
        self.counted.0 += got as u64;
        if placement == dirigible_frames::BalloonPlacement::Unmovable {
            self.take(before, &out[..got], FrameClass::Unmovable, Some(watermark));
            if got < count {
                let request = AllocRequest::unmovable().with_watermark(watermark);
                self.oracle().justify(request, None);
            }
        } else {
            self.take(before, &out[..got], FrameClass::Balloon, Some(watermark));
            self.check_whole(before);
            if got < count {
                self.oracle().justify_balloon(watermark);
            }
        }
    }

    fn targets(&mut self, before: &Before, avoid: BlockId, count: usize) {
        let mut out = vec![Pfn::default(); count];
        let got = self.frames.take_targets(avoid, Watermark::None, &mut out);
        for &pfn in &out[..got] {
            let block = self.frames.block_of(pfn).expect("inside the span");
            let ledger = before.ledgers[block.index()];
            assert_ne!(block, avoid);
            assert!(!ledger.is_whole(), "a target in a wholly free block");
            assert_eq!(ledger.migratetype(), dirigible_frames::Migratetype::Movable);
        }
        self.take(before, &out[..got], FrameClass::Movable, None);
        assert_eq!(before.zone_whole, self.before().zone_whole);
        if got < count {
            self.oracle().justify_targets(avoid);
        }
    }

    fn free(&mut self, cpu: CpuId, pfn: Pfn, held: Held) {
        let result = self.frames.free(cpu, pfn, held.order);
        if held.state == FrameState::Allocated {
            assert_eq!(result, Ok(()));
            self.held.remove(&pfn);
            self.counted.1 += held.order.frames() as u64;
            let again = self.frames.free(cpu, pfn, held.order);
            assert_eq!(again, Err(FreeError::NotAllocated(pfn)), "a second time");
        } else {
            assert_eq!(result, Err(FreeError::NotAllocated(pfn)));
        }
    }

    fn free_bulk(&mut self, cpu: CpuId, pick: usize, stride: usize, count: usize) {
        let Some((first, _)) = self.pick(pick) else {
            return;
        };
        let some = self.held.range(first..).step_by(stride).take(count);
        let pfns: Vec<Pfn> = some.map(|(pfn, _)| *pfn).collect();
        let fits = |pfn: &Pfn| {
            let held = self.held[pfn];
            held.state == FrameState::Allocated && held.order == Order::BASE
        };
        let wrong = pfns.iter().position(|pfn| !fits(pfn));
        let result = self.frames.free_bulk(cpu, &pfns);
        match wrong.map(|at| pfns[at]) {
            None => assert_eq!(result, Ok(())),
            Some(pfn) if self.held[&pfn].state == FrameState::Allocated => {
                assert_eq!(result, Err(FreeError::WrongOrder(pfn)));
            }
            Some(pfn) => assert_eq!(result, Err(FreeError::NotAllocated(pfn))),
        }
        let freed = &pfns[..wrong.unwrap_or(pfns.len())];
        for pfn in freed {
            self.held.remove(pfn);
        }
        self.counted.1 += freed.len() as u64;
    }

    fn wrong_free(&mut self, before: &Before, cpu: CpuId, pick: usize, order: u8) {
        let order = Order::new(order).expect("0 to 10");
        let pfn = self.frame(pick);
        let held = self.held.get(&pfn);
        if held.is_some_and(|held| held.order == order && held.state == FrameState::Allocated) {
            return;
        }
        let result = self.frames.free(cpu, pfn, order);
        match held {
            Some(held) if held.state == FrameState::Allocated => {
                assert_eq!(result, Err(FreeError::WrongOrder(pfn)));
            }
            _ => assert_eq!(result, Err(FreeError::NotAllocated(pfn))),
        }
        let last = all_frames(self.frames).max().expect("there is memory");
        let past = last.plus(1);
        assert_eq!(
            self.frames.free(cpu, past, order),
            Err(FreeError::Unknown(past))
        );
        assert_eq!(self.before().ledgers, before.ledgers, "nothing was changed");
    }

    /// Gives everything back and demands that nothing is left.
    pub fn finish(mut self) {
        while let Some(token) = self.tokens.pop() {
            self.frames.unisolate_block(token);
        }
        for (pfn, held) in core::mem::take(&mut self.held) {
            // Whatever it was in the middle of, Allocated is reachable.
            let through = match held.state {
                FrameState::Allocated => Ok(()),
                from => self.frames.transition(pfn, from, FrameState::Allocated),
            };
            assert_eq!(through, Ok(()));
            assert_eq!(self.frames.free(CpuId::new(0), pfn, held.order), Ok(()));
        }
        self.frames.drain_cpu_caches();
        self.frames.verify().expect("all counts fit");
        let usable = all_frames(self.frames).filter(|p| self.geometry.usable(*p).is_some());
        assert_eq!(self.frames.free_frames(), usable.count() as u64);
    }
}

pub fn all_frames(frames: &FrameAllocator<'_>) -> impl Iterator<Item = Pfn> + use<> {
    let starts: Vec<Pfn> = frames.blocks().map(|b| frames.block_start(b)).collect();
    let of_block = |start: Pfn| (0..FRAMES_PER_BLOCK as u64).map(move |at| start.plus(at));
    starts.into_iter().flat_map(of_block)
}
