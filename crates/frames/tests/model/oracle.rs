//! What the allocator should report, computed the slow way from the states of the frames.

use dirigible_frames::{
    AllocError, AllocRequest, BlockId, BlockState, FRAMES_PER_BLOCK, Fallback, FrameAllocator,
    FrameClass, FrameState, Migratetype, Order, Pfn, Watermark, Watermarks, ZoneId,
};

use crate::{geometry::Geometry, model::all_frames};

/// One moment of an allocator.
pub struct Oracle<'a> {
    geometry: &'a Geometry,
    frames: &'a FrameAllocator<'a>,
    free: Vec<bool>,
}

impl<'a> Oracle<'a> {
    pub fn new(geometry: &'a Geometry, frames: &'a FrameAllocator<'a>) -> Self {
        let free = all_frames(frames)
            .map(|pfn| frames.state(pfn) == FrameState::Free)
            .collect();
        Self {
            geometry,
            frames,
            free,
        }
    }

    fn mark(marks: Watermarks, watermark: Watermark) -> u64 {
        match watermark {
            Watermark::None => 0,
            Watermark::Min => marks.min,
            Watermark::Low => marks.low,
            Watermark::High => marks.high,
        }
    }

    /// What `zone` may give without falling below the mark.
    pub fn above(&self, zone: ZoneId, watermark: Watermark) -> u64 {
        let mark = Self::mark(self.frames.watermarks(zone), watermark);
        self.frames.zone_free_frames(zone).saturating_sub(mark)
    }

    /// Free frames that do not count for `request`: for whole movable blocks, under this policy, those in blocks that hold
    /// immovable memory.
    pub fn stranded(&self, zone: ZoneId, request: AllocRequest) -> u64 {
        let counts = self.geometry.fallback == Fallback::Evacuate
            && request.order >= Order::HUGE
            && request.class.is_movable()
            && request.watermark != Watermark::None;
        if !counts {
            return 0;
        }
        self.open(zone)
            .map(|block| self.frames.ledger(block))
            .filter(|ledger| !ledger.is_whole() && ledger.migratetype() != Migratetype::Movable)
            .map(|ledger| u64::from(ledger.free()))
            .sum()
    }

    fn of_block(&self, block: BlockId) -> &[bool] {
        let first = block.index() * FRAMES_PER_BLOCK;
        &self.free[first..first + FRAMES_PER_BLOCK]
    }

    fn has_run(&self, block: BlockId, order: Order) -> bool {
        self.of_block(block)
            .chunks(order.frames().min(FRAMES_PER_BLOCK))
            .any(|run| run.iter().all(|free| *free))
    }

    fn open(&self, zone: ZoneId) -> impl Iterator<Item = BlockId> + '_ {
        self.frames.blocks().filter(move |block| {
            let ledger = self.frames.ledger(*block);
            ledger.state() == BlockState::Open && self.frames.zone_of_block(*block) == zone
        })
    }

    /// Whether the lower of two whole blocks could be the head of an order-10 allocation.
    fn pair(&self, block: BlockId) -> bool {
        let whole = |block: BlockId| {
            let ledger = self.frames.ledger(block);
            ledger.is_whole() || ledger.state() == BlockState::Spare
        };
        self.frames.block_start(block).is_aligned(Order::MAX)
            && whole(block)
            && self.frames.block_above(block).is_some_and(whole)
    }

    /// Whether `block` could have served `request`, watermarks aside.
    fn could_serve(&self, block: BlockId, request: AllocRequest) -> bool {
        let ledger = self.frames.ledger(block);
        let zone = self.frames.zone_of_block(block);
        if request.order == Order::MAX {
            return self.pair(block);
        }
        if ledger.is_whole() {
            let spares =
                request.class.is_movable() && !request.break_reserve && request.order < Order::HUGE;
            let kept = self.frames.reserve_blocks(zone);
            return !spares || self.frames.zone_free_blocks(zone) > u64::from(kept);
        }
        let (type_of, mine) = (ledger.migratetype(), request.class.migratetype());
        // Under this policy the two immovable types share their blocks.
        let shared = self.geometry.fallback == Fallback::Evacuate
            && mine != Migratetype::Movable
            && type_of != Migratetype::Movable;
        let foreign = type_of != mine && !shared;
        let steals =
            request.any_block || request.fall_back && self.geometry.fallback == Fallback::Steal;
        request.order < Order::HUGE && self.has_run(block, request.order) && (!foreign || steals)
    }

    /// Demands that `request` could not have been served; `error` is what the allocator gave, for a single request.
    pub fn justify(&self, request: AllocRequest, error: Option<AllocError>) {
        let needed = request.order.frames() as u64;
        let mut fragmented = false;
        for zone in self.frames.zones() {
            if self.above(zone, request.watermark) < needed + self.stranded(zone, request) {
                continue;
            }
            fragmented = true;
            if let Some(block) = self.open(zone).find(|b| self.could_serve(*b, request)) {
                panic!("{block:?} of {zone:?} could have served {request:?}");
            }
        }
        let expected = if fragmented {
            AllocError::Fragmented
        } else {
            AllocError::BelowWatermark
        };
        assert!(error.is_none_or(|error| error == expected), "{error:?}");
    }

    /// Demands that there was no other frame for the balloon.
    pub fn justify_balloon(&self, watermark: Watermark) {
        for zone in self.frames.zones() {
            if self.above(zone, watermark) == 0 {
                continue;
            }
            let kept = u64::from(self.frames.reserve_blocks(zone));
            assert!(
                self.frames.zone_free_blocks(zone) <= kept,
                "a whole block was spare"
            );
            let hole = self.open(zone).find(|block| self.movable_room(*block));
            assert_eq!(hole, None, "the balloon could have had a frame");
        }
    }

    fn movable_room(&self, block: BlockId) -> bool {
        let ledger = self.frames.ledger(block);
        ledger.state() == BlockState::Open
            && !ledger.is_whole()
            && ledger.free() > 0
            && ledger.migratetype() == Migratetype::Movable
    }

    /// Demands that there was no other target.
    pub fn justify_targets(&self, avoid: BlockId) {
        let block = self
            .frames
            .blocks()
            .find(|block| *block != avoid && self.movable_room(*block));
        assert_eq!(block, None, "there was another target");
    }

    fn runs(&self, first: usize, order: u8, counts: &mut [u32; 11]) {
        if self.free[first..first + (1 << order)].iter().all(|f| *f) {
            counts[order as usize] += 1;
        } else if order > 0 {
            self.runs(first, order - 1, counts);
            self.runs(first + (1 << (order - 1)), order - 1, counts);
        }
    }

    /// Compares all reports.
    pub fn check_reports(&self) {
        let frames = self.frames;
        let mut buddies = [0; 11];
        let mut upper = None;
        let info = frames.pagetypeinfo();
        let mut by_type = [[0; 11]; 3];
        let (mut blocks, mut whole, mut isolated, mut huge, mut hybrid) = ([0; 3], 0, 0, 0, 0);
        for block in frames.blocks() {
            let ledger = frames.ledger(block);
            let row = ledger.migratetype() as usize;
            blocks[row] += 1;
            hybrid += u32::from(frames.is_hybrid(block));
            match ledger.state() {
                BlockState::Isolated => isolated += 1,
                BlockState::Huge => huge += 1,
                BlockState::Open | BlockState::Spare => {
                    let first = block.index() * FRAMES_PER_BLOCK;
                    whole += u32::from(ledger.free() as usize == FRAMES_PER_BLOCK);
                    self.runs(first, 9, &mut by_type[row]);
                    if upper == Some(block) {
                        continue;
                    }
                    if self.pair(block) {
                        buddies[10] += 1;
                        upper = frames.block_above(block);
                    } else {
                        self.runs(first, 9, &mut buddies);
                    }
                }
            }
        }
        assert_eq!(frames.buddyinfo(), buddies);
        assert_eq!((info.blocks, info.free), (blocks, by_type));
        assert_eq!(
            (info.whole, info.isolated, info.huge, info.hybrid),
            (whole, isolated, huge, hybrid)
        );
        assert_eq!(frames.hybrid_blocks() as u32, hybrid);
        let all: u32 = (0..11).map(|order| buddies[order] << order).sum();
        assert_eq!(u64::from(all), frames.free_frames());
        for order in (0..=10).filter_map(Order::new) {
            let small: u32 = (0..order.get() as usize).map(|o| buddies[o] << o).sum();
            let share = (small * 1000).checked_div(all).unwrap_or(0);
            assert_eq!(frames.unusable_index(order), share);
        }
    }

    /// Compares the queries of compaction and the balloon.
    pub fn check_queries(&self) {
        let frames = self.frames;
        let all: Vec<BlockId> = frames.blocks().collect();
        let cost = |block: &BlockId| {
            let ledger = frames.ledger(*block);
            ledger.movable() + ledger.balloon().div_ceil(8)
        };
        let candidate = |block: &BlockId| {
            let ledger = frames.ledger(*block);
            ledger.state() == BlockState::Open
                && ledger.migratetype() == Migratetype::Movable
                && ledger.unmovable() == 0
                && ledger.used() > 0
        };
        let zones = frames.zones().map(Some).chain([None]);
        for zone in zones {
            let mut expected: Vec<BlockId> = all.clone();
            expected.retain(|b| candidate(b) && zone.is_none_or(|z| z == frames.zone_of_block(*b)));
            expected.sort_by_key(|block| (cost(block), *block));
            let mut found = all.clone();
            let count = frames.cheapest_blocks(zone, &mut found);
            assert_eq!(found[..count], expected);
            // With little room the order is that of the index's ranks.
            let mut few = [BlockId::new(0); 2];
            let count = frames.cheapest_blocks(zone, &mut few);
            let class = |block: &BlockId| cost(block).min(511) / 32;
            let classes: Vec<u16> = few[..count].iter().map(class).collect();
            let best: Vec<u16> = expected.iter().take(2).map(class).collect();
            assert_eq!(classes, best, "the cheapest come first");
        }
        let mut expected: Vec<BlockId> = all.clone();
        expected.retain(|block| {
            let ledger = frames.ledger(*block);
            ledger.balloon() > 0 && ledger.state() != BlockState::Huge
        });
        expected.sort_by_key(|block| {
            let ledger = frames.ledger(*block);
            (ledger.unmovable(), ledger.movable(), *block)
        });
        let mut found = all.clone();
        let count = frames.healing_blocks(&mut found);
        assert_eq!(found[..count], expected);
    }

    /// Frames of `class` by the descriptors; cached and reserved ones are left out.
    pub fn count(&self, class: FrameClass) -> u64 {
        let pfns = all_frames(self.frames);
        let counts = |pfn: &Pfn| {
            let head = self.frames.head(*pfn);
            let used = !matches!(
                self.frames.state(*pfn),
                FrameState::Free | FrameState::Cached | FrameState::Reserved
            );
            used && self.frames.class(head) == class
        };
        pfns.filter(counts).count() as u64
    }
}
