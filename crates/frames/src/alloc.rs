//! Allocation: the per-CPU fast path, the refill behind it, runs of order 1 to 8.

use crate::{
    AllocError, AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, Fallback,
    FrameAllocator, FrameClass, FrameState, Ledger, Migratetype, Order, Pfn, Placement, Watermark,
    allocator::{kind, room_class},
    bits::{has_run, take_run},
    counters::add_locked,
    cpu::{BATCH, CpuGuard, NO_BLOCK},
    descriptor::Word,
    index::CLASSES,
    metadata::KINDS,
    sync::spin_hint,
    zone::Zone,
};

/// How often a search is begun anew because blocks moved in the index meanwhile.
const TRIES: usize = 16;

/// A step of the search for a block with room.
pub(crate) struct Search {
    /// Kinds of the room index that serve.
    pub kinds: &'static [usize],
    pub order: SearchOrder,
    /// Free frames that a block must have.
    pub room: usize,
}

/// Which block comes first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SearchOrder {
    /// Kinds one after another, in each the fullest class first.
    Fullest,
    /// The lowest number over all kinds.
    Lowest,
    /// The class with most free frames first.
    Emptiest,
}

pub(crate) const fn kinds_of(migratetype: Migratetype) -> &'static [usize] {
    match migratetype {
        Migratetype::Unmovable => &[kind::UNMOVABLE],
        Migratetype::Reclaimable => &[kind::RECLAIMABLE],
        // Polluted blocks first: they can never become whole.
        Migratetype::Movable => &[kind::HYBRID, kind::MOVABLE],
    }
}

impl FrameAllocator<'_> {
    /// Takes 2^order frames; they come in state *Owned*, without an owner.
    ///
    /// Single frames come from the cache of `cpu`, without touching a word that another CPU uses; class
    /// [`FrameClass::Balloon`] bypasses the cache. Before it fails it empties all CPUs' caches and tries once more.
    ///
    /// # Errors
    ///
    /// See [`AllocError`].
    #[inline]
    pub fn alloc(&self, cpu: CpuId, request: AllocRequest) -> Result<Pfn, AllocError> {
        if request.order == Order::BASE && request.class != FrameClass::Balloon {
            let guard = self.cpu(cpu).lock();
            if let Some(frame) = guard.pop(request.class.migratetype()) {
                self.descriptors[frame as usize].store(owned(request.class, Order::BASE));
                add_locked(&guard.slot.events[Event::PgAlloc as usize], 1);
                return Ok(self.pfn(frame));
            }
        }
        self.alloc_slow(cpu, request)
    }

    #[cold]
    fn alloc_slow(&self, cpu: CpuId, request: AllocRequest) -> Result<Pfn, AllocError> {
        self.alloc_uncached(cpu, request).or_else(|_| {
            // What lies in caches is free memory too, and its blocks may be whole without it.
            self.drain_cpu_caches();
            self.alloc_uncached(cpu, request)
        })
    }

    fn alloc_uncached(&self, cpu: CpuId, request: AllocRequest) -> Result<Pfn, AllocError> {
        let frames = match request.order {
            Order::BASE if request.class == FrameClass::Balloon => {
                let mut one = [0];
                self.gather(cpu, None, request, &mut one)?;
                self.hand_out(&one, request.class);
                one[0]
            }
            Order::BASE => return self.refill(cpu, request).map(|frame| self.pfn(frame)),
            order if order < Order::HUGE => self.alloc_run(cpu, request)?,
            _ => return self.alloc_blocks(cpu, request),
        };
        self.count_frames(cpu, Event::PgAlloc, request.order.frames());
        Ok(self.pfn(frames))
    }

    /// Takes up to `out.len()` single frames of `request` (its order is ignored); gives how many.
    pub fn alloc_bulk(&self, cpu: CpuId, request: AllocRequest, out: &mut [Pfn]) -> usize {
        let request = AllocRequest {
            order: Order::BASE,
            ..request
        };
        let mut count = 0;
        for place in out {
            let Ok(pfn) = self.alloc(cpu, request) else {
                break;
            };
            *place = pfn;
            count += 1;
        }
        count
    }

    /// Makes frames that were just taken from their blocks the caller's.
    pub(crate) fn hand_out(&self, frames: &[u32], class: FrameClass) {
        for frame in frames {
            self.descriptors[*frame as usize].store(owned(class, Order::BASE));
        }
    }

    /// Fills the CPU's cache with a word's worth of frames and hands one out.
    ///
    /// The lock is held from the taking to the caching: an isolator that comes between waits for it, and finds them.
    fn refill(&self, cpu: CpuId, request: AllocRequest) -> Result<u32, AllocError> {
        let guard = self.cpu(cpu).lock();
        // Another caller on the same CPU may have filled it since the first look; a second refill could overflow it.
        if let Some(frame) = guard.pop(request.class.migratetype()) {
            self.descriptors[frame as usize].store(owned(request.class, Order::BASE));
            add_locked(&guard.slot.events[Event::PgAlloc as usize], 1);
            return Ok(frame);
        }
        let mut frames = [0u32; BATCH];
        let count = self.gather(cpu, Some(&guard), request, &mut frames)?;
        let cached = Word::new()
            .with_state(FrameState::Cached)
            .with_class(request.class);
        let migratetype = request.class.migratetype();
        // Backwards, so that the lowest frame goes out first.
        for &frame in frames[1..count].iter().rev() {
            self.descriptors[frame as usize].store(cached);
            let room = guard.push(migratetype, frame);
            debug_assert!(room, "only an empty cache is refilled");
        }
        self.descriptors[frames[0] as usize].store(owned(request.class, Order::BASE));
        add_locked(&guard.slot.events[Event::PgAlloc as usize], 1);
        Ok(frames[0])
    }

    /// Takes up to `out.len()` frames out of one block after the rules of placement and fallback.
    fn gather(
        &self,
        cpu: CpuId,
        guard: Option<&CpuGuard<'_>>,
        request: AllocRequest,
        out: &mut [u32],
    ) -> Result<usize, AllocError> {
        let mut error = AllocError::BelowWatermark;
        for zone_number in (0..self.zones().count()).rev() {
            let zone = &self.zones[zone_number];
            let booked = zone.book(out.len(), mark(zone, request.watermark));
            if booked == 0 {
                continue;
            }
            let mut take = Take {
                allocator: self,
                cpu,
                zone_number,
                request,
                order: Order::BASE,
            };
            let out = &mut out[..booked];
            let taken = self.settled(zone, || take.base(guard, out)).unwrap_or(0);
            zone.add_free((booked - taken) as i64);
            if taken > 0 {
                return Ok(taken);
            }
            error = AllocError::Fragmented;
        }
        Err(error)
    }

    fn alloc_run(&self, cpu: CpuId, request: AllocRequest) -> Result<u32, AllocError> {
        let frames = request.order.frames();
        let mut error = AllocError::BelowWatermark;
        for zone_number in (0..self.zones().count()).rev() {
            let zone = &self.zones[zone_number];
            let booked = zone.book(frames, mark(zone, request.watermark));
            if booked == frames {
                let mut take = Take {
                    allocator: self,
                    cpu,
                    zone_number,
                    request,
                    order: request.order,
                };
                if let Some(first) = self.settled(zone, || take.run()) {
                    let head = owned(request.class, request.order);
                    self.descriptors[first as usize].store(head);
                    let tail = head.with_state(FrameState::Tail).with_order(0);
                    for frame in first + 1..first + frames as u32 {
                        self.descriptors[frame as usize].store(tail);
                    }
                    return Ok(first);
                }
                error = AllocError::Fragmented;
            }
            zone.add_free(booked as i64);
        }
        Err(error)
    }

    /// Looks again while `look` finds nothing and blocks of the zone changed their place in the index meanwhile: one that moves
    /// can be missed although it has room all the time.
    pub(crate) fn settled<R>(&self, zone: &Zone, mut look: impl FnMut() -> Option<R>) -> Option<R> {
        for _ in 0..TRIES {
            let ended = zone.moves_ended();
            let found = look();
            // Equal only if every move that was begun by now had ended before the look.
            if found.is_some() || zone.moves_begun() == ended {
                return found;
            }
            spin_hint();
        }
        None
    }

    /// Calls `visit` with blocks that have room, best first, until it gives something.
    pub(crate) fn search<R>(
        &self,
        zone_number: usize,
        search: &Search,
        mut visit: impl FnMut(BlockId) -> Option<R>,
    ) -> Option<R> {
        let mut visit = |block| {
            let found = visit(block);
            if found.is_none() {
                self.refile(block);
            }
            found
        };
        let least = room_class(search.room as u16);
        let category = |kind: usize| zone_number * KINDS + kind;
        let blocks = |kind, class, start| self.by_room.blocks(category(kind), class, start);
        match search.order {
            SearchOrder::Fullest => search.kinds.iter().find_map(|&kind| {
                (least..CLASSES).find_map(|class| blocks(kind, class, 0).find_map(&mut visit))
            }),
            SearchOrder::Emptiest => (least..CLASSES).rev().find_map(|class| {
                search
                    .kinds
                    .iter()
                    .find_map(|&kind| blocks(kind, class, 0).find_map(&mut visit))
            }),
            SearchOrder::Lowest => {
                let mut start = 0;
                loop {
                    let lowest = search
                        .kinds
                        .iter()
                        .flat_map(|&kind| {
                            (least..CLASSES).filter_map(move |class| {
                                self.by_room.blocks(category(kind), class, start).next()
                            })
                        })
                        .min()?;
                    if let Some(found) = visit(lowest) {
                        return Some(found);
                    }
                    start = lowest.index() + 1;
                }
            }
        }
    }

    /// The order in which movable requests look at blocks.
    pub(crate) fn movable_order(&self) -> SearchOrder {
        match self.placement {
            Placement::LowestFirst => SearchOrder::Lowest,
            Placement::FullestFirst => SearchOrder::Fullest,
        }
    }
}

pub(crate) fn owned(class: FrameClass, order: Order) -> Word {
    Word::new()
        .with_state(FrameState::Owned)
        .with_class(class)
        .with_order(order.get())
}

pub(crate) fn mark(zone: &Zone, watermark: Watermark) -> u64 {
    let marks = zone.marks();
    match watermark {
        Watermark::None => 0,
        Watermark::Min => marks.min,
        Watermark::Low => marks.low,
        Watermark::High => marks.high,
    }
}

/// One request in one zone.
struct Take<'a, 'm> {
    allocator: &'a FrameAllocator<'m>,
    cpu: CpuId,
    zone_number: usize,
    request: AllocRequest,
    order: Order,
}

impl Take<'_, '_> {
    fn zone(&self) -> &Zone {
        &self.allocator.zones[self.zone_number]
    }

    fn own_search(&self, migratetype: Migratetype) -> Search {
        let order = match migratetype {
            Migratetype::Movable => self.allocator.movable_order(),
            // Kernel memory is packed in either placement: it cannot be moved later.
            _ if self.allocator.placement == Placement::LowestFirst => SearchOrder::Lowest,
            _ => SearchOrder::Fullest,
        };
        Search {
            kinds: kinds_of(migratetype),
            order,
            room: self.order.frames(),
        }
    }

    /// Single frames into `out`.
    fn base(&mut self, guard: Option<&CpuGuard<'_>>, out: &mut [u32]) -> Option<usize> {
        let (allocator, class) = (self.allocator, self.request.class);
        let mine = class.migratetype();
        let take = |block, usable: &dyn Fn(Ledger) -> bool, retype, out: &mut [u32]| {
            let count = allocator.take_from(block, class, out.len(), retype, usable, out);
            (count > 0).then_some((block, count))
        };
        let of_type = move |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == mine;
        if let Some(guard) = guard {
            let reserved = guard.reserved(mine);
            if reserved != NO_BLOCK {
                let block = BlockId::new(reserved - 1);
                let here = allocator.zone_of_block(block).index() == self.zone_number;
                if let Some((_, count)) = here.then(|| take(block, &of_type, None, out)).flatten() {
                    return Some(count);
                }
                guard.set_reserved(mine, NO_BLOCK);
            }
        }
        let reserve = |block: BlockId| {
            if let Some(guard) = guard {
                guard.set_reserved(mine, block.index() as u32 + 1);
            }
        };
        let own = self.own_search(mine);
        let mut found = allocator.search(self.zone_number, &own, |block| {
            take(block, &of_type, None, out)
        });
        if let (None, Some(other)) = (&found, self.sharing()) {
            let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == other;
            let shared = allocator.search(self.zone_number, &self.own_search(other), |block| {
                take(block, &usable, None, out)
            });
            // Not reserved: the next refill looks among its own blocks first.
            if let Some((_, count)) = shared {
                return Some(count);
            }
        }
        if found.is_none() {
            found = self.whole(|block| take(block, &|ledger| ledger.is_whole(), Some(mine), out));
        }
        if let Some((block, count)) = found {
            reserve(block);
            return Some(count);
        }
        if !self.request.fall_back || allocator.fallback == Fallback::Evacuate {
            return None;
        }
        self.fall_back(|this, block, foreign, retype| {
            let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == foreign;
            let (_, count) = take(block, &usable, retype, out)?;
            if retype.is_some() {
                reserve(block);
            }
            this.count_steal(block, retype);
            Some(count)
        })
    }

    /// An aligned run; its first frame.
    fn run(&mut self) -> Option<u32> {
        let allocator = self.allocator;
        let mine = self.request.class.migratetype();
        let of_type = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == mine;
        let own = self.own_search(mine);
        let found = allocator
            .search(self.zone_number, &own, |block| {
                self.take_run(block, None, &of_type)
            })
            .or_else(|| {
                let other = self.sharing()?;
                let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == other;
                allocator.search(self.zone_number, &self.own_search(other), |block| {
                    self.take_run(block, None, &usable)
                })
            })
            .or_else(|| {
                self.whole(|block| self.take_run(block, Some(mine), &|ledger| ledger.is_whole()))
            });
        if found.is_some() || !self.request.fall_back || allocator.fallback == Fallback::Evacuate {
            return found;
        }
        self.fall_back(|this, block, foreign, retype| {
            let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == foreign;
            let first = this.take_run(block, retype, &usable)?;
            this.count_steal(block, retype);
            Some(first)
        })
    }

    fn take_run(
        &self,
        block: BlockId,
        retype: Option<Migratetype>,
        usable: &dyn Fn(Ledger) -> bool,
    ) -> Option<u32> {
        let (allocator, class) = (self.allocator, self.request.class);
        let field = &allocator.fields[block.index()];
        let count = self.order.frames() as u16;
        if !has_run(field, self.order.get()) {
            return None;
        }
        allocator
            .change(block, |ledger| {
                let fits =
                    ledger.state() == BlockState::Open && ledger.free() >= count && usable(ledger);
                let ledger = fits.then(|| ledger.taken(class, count))?;
                Some(retype.map_or(ledger, |migratetype| ledger.with_type(migratetype)))
            })
            .ok()?;
        let Some(at) = take_run(field, self.order.get()) else {
            // Another CPU took the run between the look and the ledger. Our share goes back; the booking stays the caller's.
            let _ = allocator.change(block, |ledger| Some(ledger.given(class, count)));
            return None;
        };
        Some((block.index() * FRAMES_PER_BLOCK) as u32 + at)
    }

    /// The other immovable type, whose blocks are used up before a block is claimed: under [`Fallback::Evacuate`] a block lost to
    /// immovable frames is a huge page lost, so they share.
    fn sharing(&self) -> Option<Migratetype> {
        match (self.allocator.fallback, self.request.class.migratetype()) {
            (Fallback::Evacuate, Migratetype::Unmovable) => Some(Migratetype::Reclaimable),
            (Fallback::Evacuate, Migratetype::Reclaimable) => Some(Migratetype::Unmovable),
            _ => None,
        }
    }

    /// Takes from a wholly free block, if the request may have one.
    fn whole<R>(&self, visit: impl FnMut(BlockId) -> Option<R>) -> Option<R> {
        let search = Search {
            kinds: &[kind::WHOLE],
            order: SearchOrder::Lowest,
            room: 0,
        };
        let (zone, movable) = (self.zone(), self.request.class.is_movable());
        let breaks = movable && zone.reserve > 0 && zone.whole() <= i64::from(zone.reserve);
        let look = || self.allocator.search(self.zone_number, &search, visit);
        let found = if movable && !self.request.break_reserve {
            zone.sparing(|| zone.whole(), look)
        } else {
            look()
        };
        if found.is_some() {
            self.count(Event::BlockClaimed);
            if breaks {
                self.count(Event::ReserveBroken);
            }
        }
        found
    }

    /// Looks for room in blocks of other types. `visit` gets the block, its type and, if at least half of it is free, the new type.
    fn fall_back<R>(
        &self,
        mut visit: impl FnMut(&Self, BlockId, Migratetype, Option<Migratetype>) -> Option<R>,
    ) -> Option<R> {
        let mine = self.request.class.migratetype();
        let others: [Migratetype; 2] = match mine {
            Migratetype::Unmovable => [Migratetype::Reclaimable, Migratetype::Movable],
            Migratetype::Reclaimable => [Migratetype::Unmovable, Migratetype::Movable],
            Migratetype::Movable => [Migratetype::Reclaimable, Migratetype::Unmovable],
        };
        others.into_iter().find_map(|foreign| {
            let search = Search {
                kinds: kinds_of(foreign),
                order: SearchOrder::Emptiest,
                room: self.order.frames(),
            };
            self.allocator.search(self.zone_number, &search, |block| {
                let free = self.allocator.ledger(block).free() as usize;
                let convert = mine != Migratetype::Movable
                    && foreign == Migratetype::Movable
                    && free >= FRAMES_PER_BLOCK / 2;
                visit(self, block, foreign, convert.then_some(mine))
            })
        })
    }

    fn count_steal(&self, block: BlockId, retype: Option<Migratetype>) {
        if retype.is_some() {
            self.count(Event::BlockStolen);
        }
        if self.allocator.is_hybrid(block) {
            self.count(Event::BlockPolluted);
        }
    }

    fn count(&self, event: Event) {
        self.allocator.events().add(self.cpu, event, 1);
    }
}
