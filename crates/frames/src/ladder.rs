//! The ladder: in which order a request tries the blocks of a zone.
//!
//! An ordinary request takes these steps, each only if those before it found nothing:
//!
//! 1. partly used blocks of its own type, in the order of the placement;
//! 2. under [`Fallback::Evacuate`], if it is immovable: partly used blocks of the other immovable type;
//! 3. wholly free blocks, which take its type, unless the reserve is kept for others;
//! 4. under [`Fallback::Steal`], or if it may use any block: partly used blocks of other types, those with most free frames first.

use crate::{
    AllocRequest, BlockId, CpuId, Event, FRAMES_PER_BLOCK, Fallback, FrameAllocator, Migratetype,
    Order, Placement, ZoneId,
    allocator::info_word::IN_USE,
    change::{Source, Want},
    cpu::CpuGuard,
    place::BEGUN_BUCKET,
    search::{Search, SearchOrder, kinds_of},
    sync::Ordering,
};

/// Blocks that a search for a run looks at from each end of the order before it gives up. A block with room and without
/// a run says nothing about the next, and without a limit a request that fails would look at all of them.
const RUN_LOOKS: usize = 256;

/// A step of the ladder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Partly used blocks of the request's type.
    Own,
    /// Those of them from which no CPU refills its cache.
    Quiet,
    /// Partly used blocks of the type that shares with the request's.
    Shared,
    /// Wholly free blocks.
    Whole,
    /// Partly used blocks of other types.
    Foreign,
    /// Blocks that hold balloon frames and room, and nothing else.
    Begun,
}

/// The steps of an ordinary request.
pub(crate) const ORDINARY: &[Step] = &[Step::Own, Step::Shared, Step::Whole, Step::Foreign];
/// Those of a movable refill while whole blocks are plenty: two CPUs that refill from one block pass its cache lines to
/// and fro. Immovable requests rather share a block than claim another.
pub(crate) const SPREAD: &[Step] = &[Step::Quiet, Step::Whole, Step::Own, Step::Foreign];

/// A block to which a step leads, and how frames may be taken from it.
#[derive(Clone, Copy)]
pub(crate) struct Offer {
    pub block: BlockId,
    source: Source,
    retype: Option<Migratetype>,
}

impl Offer {
    /// Up to `max` frames for `request` out of the block.
    pub fn want(self, request: &AllocRequest, max: usize) -> Want {
        Want {
            class: request.class,
            max,
            source: self.source,
            retype: self.retype,
        }
    }

    /// Whether the block is of type `mine` when something was taken.
    pub fn becomes(self, mine: Migratetype) -> bool {
        self.retype.is_some() || self.source == Source::Partly(mine)
    }
}

/// One request in one zone.
#[derive(Clone, Copy)]
pub(crate) struct Ladder<'a, 'm> {
    pub allocator: &'a FrameAllocator<'m>,
    pub cpu: CpuId,
    pub guard: Option<&'a CpuGuard<'a>>,
    pub zone: ZoneId,
    /// The order does not matter here.
    pub request: AllocRequest,
    /// Frames in a row, and where they begin: at a multiple of 2^align frames.
    pub frames: usize,
    pub align: Order,
    /// In which order partly used blocks of the own type are tried.
    pub own_order: SearchOrder,
    /// Where the search for whole blocks begins.
    pub whole_from: BlockId,
}

impl<'a, 'm> Ladder<'a, 'm> {
    /// The ladder of single frames.
    pub fn new(
        allocator: &'a FrameAllocator<'m>,
        cpu: CpuId,
        guard: Option<&'a CpuGuard<'a>>,
        zone: ZoneId,
        request: AllocRequest,
    ) -> Self {
        let whole_from = match request.class.migratetype() {
            Migratetype::Movable => allocator.home(cpu, zone),
            // Immovable memory is kept together: lowest first.
            _ => BlockId::new(0),
        };
        Self {
            allocator,
            cpu,
            guard,
            zone,
            request,
            frames: 1,
            align: Order::BASE,
            own_order: allocator.placement_order(),
            whole_from,
        }
    }

    pub fn mine(&self) -> Migratetype {
        self.request.class.migratetype()
    }

    /// Climbs `steps`: calls `visit` with blocks until it takes one.
    pub fn climb(&self, steps: &[Step], visit: &mut dyn FnMut(Offer) -> bool) -> bool {
        steps.iter().any(|step| match step {
            Step::Own => self.partly_used(self.mine(), visit),
            Step::Quiet => self.partly_used(self.mine(), &mut |offer| {
                !self.allocator.is_in_use(offer.block) && visit(offer)
            }),
            Step::Shared => {
                let shared = self.allocator.shared_type(self.mine());
                shared.is_some_and(|other| self.partly_used(other, visit))
            }
            Step::Whole => self.whole(visit),
            Step::Foreign => self.allocator.steals(&self.request) && self.foreign(visit),
            Step::Begun => {
                let zone = self.allocator.zone(self.zone);
                let mut begun = zone.by_heal.blocks(BEGUN_BUCKET, zone.first);
                begun.any(|block| {
                    visit(Offer {
                        block,
                        source: Source::Begun,
                        retype: None,
                    })
                })
            }
        })
    }

    fn search(&self, migratetype: Migratetype, order: SearchOrder) -> Search {
        Search {
            kinds: kinds_of(migratetype),
            order,
            room: self.frames,
        }
    }

    /// Looks at no more than [`RUN_LOOKS`] blocks if it is for a run.
    fn limited(&self, search: &Search, visit: &mut dyn FnMut(BlockId) -> bool) -> bool {
        let (mut looks, mut found) = (0, false);
        self.allocator.search(self.zone, search, &mut |block| {
            looks += 1;
            found = visit(block);
            found || self.is_run() && looks >= RUN_LOOKS
        });
        found
    }

    fn is_run(&self) -> bool {
        self.frames > 1 || self.align > Order::BASE
    }

    fn partly_used(&self, migratetype: Migratetype, visit: &mut dyn FnMut(Offer) -> bool) -> bool {
        let mut offer = |block| {
            visit(Offer {
                block,
                source: Source::Partly(migratetype),
                retype: None,
            })
        };
        let search = self.search(migratetype, self.own_order);
        // The emptiest blocks are the most likely to have a run.
        self.limited(&search, &mut offer)
            || self.is_run()
                && self.limited(&self.search(migratetype, SearchOrder::Emptiest), &mut offer)
    }

    /// Wholly free blocks, if the request may have one.
    fn whole(&self, visit: &mut dyn FnMut(Offer) -> bool) -> bool {
        let (allocator, zone) = (self.allocator, self.allocator.zone(self.zone));
        let low = || allocator.whole_in(self.zone) <= i64::from(zone.reserve);
        let breaks = self.request.class.is_movable() && zone.reserve > 0 && low();
        let mut look = || {
            allocator.search_whole(self.zone, self.whole_from, &mut |block| {
                visit(Offer {
                    block,
                    source: Source::Whole,
                    retype: Some(self.mine()),
                })
            })
        };
        let found = if self.request.spares_reserve() {
            allocator.sparing(self.zone, self.guard, &mut look)
        } else {
            look()
        };
        if found {
            self.count(Event::BlockClaimed);
            if breaks {
                self.count(Event::ReserveBroken);
            }
        }
        found
    }

    /// Partly used blocks of other types. For an immovable request a movable block changes its type if at least half of
    /// it is free.
    fn foreign(&self, visit: &mut dyn FnMut(Offer) -> bool) -> bool {
        let mine = self.mine();
        let others: [Migratetype; 2] = match mine {
            Migratetype::Unmovable => [Migratetype::Reclaimable, Migratetype::Movable],
            Migratetype::Reclaimable => [Migratetype::Unmovable, Migratetype::Movable],
            Migratetype::Movable => [Migratetype::Reclaimable, Migratetype::Unmovable],
        };
        others.into_iter().any(|foreign| {
            let search = self.search(foreign, SearchOrder::Emptiest);
            self.limited(&search, &mut |block| {
                let free = self.allocator.ledger(block).free() as usize;
                let converts = mine != Migratetype::Movable
                    && foreign == Migratetype::Movable
                    && free >= FRAMES_PER_BLOCK / 2;
                let retype = converts.then_some(mine);
                let found = visit(Offer {
                    block,
                    source: Source::Partly(foreign),
                    retype,
                });
                if found && retype.is_some() {
                    self.count(Event::BlockStolen);
                }
                if found && self.allocator.is_hybrid(block) {
                    self.count(Event::BlockPolluted);
                }
                found
            })
        })
    }

    fn count(&self, event: Event) {
        self.allocator.events().add(self.cpu, event, 1);
    }
}

/// What a request may do, apart from the blocks' state.
impl FrameAllocator<'_> {
    /// The other immovable type, whose blocks are used up before a whole one is claimed: under [`Fallback::Evacuate`] a
    /// block lost to immovable frames is a huge page lost.
    pub(crate) fn shared_type(&self, mine: Migratetype) -> Option<Migratetype> {
        match (self.fallback, mine) {
            (Fallback::Evacuate, Migratetype::Unmovable) => Some(Migratetype::Reclaimable),
            (Fallback::Evacuate, Migratetype::Reclaimable) => Some(Migratetype::Unmovable),
            _ => None,
        }
    }

    /// Whether `request` may take frames from blocks of any type.
    pub(crate) fn steals(&self, request: &AllocRequest) -> bool {
        request.any_block || request.fall_back && self.fallback == Fallback::Steal
    }

    /// The order in which requests look at partly used blocks of their own type.
    pub(crate) fn placement_order(&self) -> SearchOrder {
        match self.placement {
            Placement::LowestFirst => SearchOrder::Lowest,
            Placement::FullestFirst => SearchOrder::Fullest,
        }
    }

    /// Where `cpu` begins to look for whole blocks of a zone.
    pub(crate) fn home(&self, cpu: CpuId, zone: ZoneId) -> BlockId {
        self.cpus[cpu.index()].home(zone)
    }

    /// Whether some CPU refills from `block`.
    fn is_in_use(&self, block: BlockId) -> bool {
        // Relaxed: a hint.
        self.record(block).info.load(Ordering::Relaxed) & IN_USE != 0
    }
}
