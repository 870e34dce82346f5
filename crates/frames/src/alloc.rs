//! Allocation: the per-CPU fast path, the refill behind it, runs of order 1 to 8.

use crate::{
    AllocError, AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, Fallback,
    FrameAllocator, FrameClass, FrameState, Ledger, Migratetype, Order, Pfn, Placement,
    allocator::{kind, room_class},
    bits::{has_run, take_run},
    counters::add_locked,
    cpu::{BATCH, CpuGuard, NO_BLOCK},
    descriptor::Word,
    index::{CLASSES, Place},
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
            if let Some(frame) = self.pop_owned(&guard, request.class) {
                return Ok(self.pfn(frame));
            }
            return self.alloc_missed(cpu, guard, request);
        }
        self.alloc_uncached(cpu, request).or_else(|_| {
            // What lies in caches is free memory too, and its blocks may be whole without it.
            self.drain_cpu_caches();
            self.alloc_uncached(cpu, request)
        })
    }

    /// The newest frame of the cache becomes the caller's.
    #[inline]
    fn pop_owned(&self, guard: &CpuGuard<'_>, class: FrameClass) -> Option<u32> {
        let frame = guard.pop(class.migratetype())?;
        self.descriptor_at(frame).store(owned(class, Order::BASE));
        add_locked(&guard.slot.events[Event::PgAlloc as usize], 1);
        Some(frame)
    }

    #[inline(never)]
    fn alloc_missed(
        &self,
        cpu: CpuId,
        guard: CpuGuard<'_>,
        request: AllocRequest,
    ) -> Result<Pfn, AllocError> {
        if let Ok(frame) = self.refill(cpu, &guard, request) {
            return Ok(self.pfn(frame));
        }
        drop(guard);
        self.drain_cpu_caches();
        let guard = self.cpu(cpu).lock();
        let frame = match self.pop_owned(&guard, request.class) {
            Some(frame) => frame,
            None => self.refill(cpu, &guard, request)?,
        };
        Ok(self.pfn(frame))
    }

    fn alloc_uncached(&self, cpu: CpuId, request: AllocRequest) -> Result<Pfn, AllocError> {
        let first = match request.order {
            Order::BASE => {
                let mut one = [0];
                self.gather(cpu, None, request, &mut one)?;
                self.hand_out(&one, request.class);
                one[0]
            }
            order if order < Order::HUGE => self.alloc_run(cpu, request)?,
            _ => return self.alloc_blocks(cpu, request),
        };
        self.count_frames(cpu, Event::PgAlloc, request.order.frames());
        Ok(self.pfn(first))
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
            self.descriptor_at(*frame).store(owned(class, Order::BASE));
        }
    }

    /// Fills the CPU's empty cache with a word's worth of frames and hands one out.
    ///
    /// The lock is held from the taking to the caching: an isolator that comes between waits for it, and finds them.
    fn refill(
        &self,
        cpu: CpuId,
        guard: &CpuGuard<'_>,
        request: AllocRequest,
    ) -> Result<u32, AllocError> {
        let mut frames = [0u32; BATCH];
        let count = self.gather(cpu, Some(guard), request, &mut frames)?;
        let cached = Word::new()
            .with_state(FrameState::Cached)
            .with_class(request.class);
        let migratetype = request.class.migratetype();
        // Backwards, so that the lowest frame goes out first.
        for &frame in frames[1..count].iter().rev() {
            self.descriptor_at(frame).store(cached);
            let room = guard.push(migratetype, frame);
            debug_assert!(room, "only an empty cache is refilled");
        }
        self.descriptor_at(frames[0])
            .store(owned(request.class, Order::BASE));
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
            let booked = self.book(zone_number, guard, out.len(), request.watermark);
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
            let taken = self
                .settled(zone_number, || take.base(guard, out))
                .unwrap_or(0);
            if taken < booked {
                self.pay_in(zone_number, guard, (booked - taken) as i64);
            }
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
            let booked = self.book(zone_number, None, frames, request.watermark);
            if booked == frames {
                let mut take = Take {
                    allocator: self,
                    cpu,
                    zone_number,
                    request,
                    order: request.order,
                };
                if let Some(first) = self.settled(zone_number, || take.run()) {
                    let head = owned(request.class, request.order);
                    self.descriptor_at(first).store(head);
                    let tail = head.with_state(FrameState::Tail).with_order(0);
                    for frame in first + 1..first + frames as u32 {
                        self.descriptor_at(frame).store(tail);
                    }
                    return Ok(first);
                }
                error = AllocError::Fragmented;
            }
            self.pay_in(zone_number, None, booked as i64);
        }
        Err(error)
    }

    /// Looks again while `look` finds nothing and blocks of the zone changed their place in the index meanwhile: one that moves
    /// can be missed although it has room all the time.
    pub(crate) fn settled<R>(&self, zone: usize, mut look: impl FnMut() -> Option<R>) -> Option<R> {
        // Mostly it finds something, and need not ask all CPUs first.
        if let Some(found) = look() {
            return Some(found);
        }
        for _ in 0..TRIES {
            let ended = self.moves_ended(zone);
            let found = look();
            // Equal only if every move that was begun by now had ended before the look.
            if found.is_some() || self.moves_begun(zone) == ended {
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
        let least = room_class(search.room as u16);
        let category = |kind: usize| zone_number * KINDS + kind;
        let mut visit = |kind, class, block| {
            let found = visit(block);
            if found.is_none() {
                self.refile(block, Place::new(category(kind), class));
            }
            found
        };
        let blocks = |kind, class, start| self.by_room.blocks(category(kind), class, start);
        match search.order {
            SearchOrder::Fullest => search.kinds.iter().find_map(|&kind| {
                (least..CLASSES).find_map(|class| {
                    blocks(kind, class, 0).find_map(|block| visit(kind, class, block))
                })
            }),
            SearchOrder::Emptiest => (least..CLASSES).rev().find_map(|class| {
                search.kinds.iter().find_map(|&kind| {
                    blocks(kind, class, 0).find_map(|block| visit(kind, class, block))
                })
            }),
            SearchOrder::Lowest => {
                let mut start = 0;
                loop {
                    let lowest = |kind| {
                        (least..CLASSES).filter_map(move |class| {
                            let block = blocks(kind, class, start).next()?;
                            Some((block, kind, class))
                        })
                    };
                    let (block, kind, class) =
                        search.kinds.iter().copied().flat_map(lowest).min()?;
                    if let Some(found) = visit(kind, class, block) {
                        return Some(found);
                    }
                    start = block.index() + 1;
                }
            }
        }
    }

    /// Calls `visit` with wholly free blocks, ascending from block `from` and then from the first, until it gives something.
    pub(crate) fn search_whole<R>(
        &self,
        zone_number: usize,
        from: usize,
        mut visit: impl FnMut(BlockId) -> Option<R>,
    ) -> Option<R> {
        let category = zone_number * KINDS + kind::WHOLE;
        let mut blocks = |from| {
            self.by_room.blocks(category, 0, from).find_map(|block| {
                let found = visit(block);
                if found.is_none() {
                    self.refile(block, Place::new(category, 0));
                }
                found
            })
        };
        blocks(from).or_else(|| if from > 0 { blocks(0) } else { None })
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
            let count = allocator.take_from(block, guard, class, retype, usable, out);
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
                allocator.unreserve(guard, mine);
            }
        }
        let reserve = |block: BlockId| {
            if let Some(guard) = guard {
                allocator.reserve(guard, mine, block);
            }
        };
        let own = self.own_search(mine);
        // Movable requests look last at a block from which another CPU refills: two in one would pass its cache lines to and fro.
        // Immovable ones rather share than claim another block.
        let spread = guard.is_some() && mine == Migratetype::Movable;
        let find = |shared: bool, out: &mut [u32]| {
            allocator.search(self.zone_number, &own, |block| {
                if !shared && allocator.is_in_use(block) {
                    return None;
                }
                take(block, &of_type, None, out)
            })
        };
        let mut found = find(!spread, out);
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
        if found.is_none() && self.may_claim() {
            found = self.whole(|block| take(block, &|ledger| ledger.is_whole(), Some(mine), out));
        }
        if found.is_none() && spread {
            found = find(true, out);
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
                self.may_claim()
                    .then(|| {
                        self.whole(|block| {
                            self.take_run(block, Some(mine), &|ledger| ledger.is_whole())
                        })
                    })
                    .flatten()
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
            .change(block, None, |ledger| {
                let fits =
                    ledger.state() == BlockState::Open && ledger.free() >= count && usable(ledger);
                let ledger = fits.then(|| ledger.taken(class, count))?;
                Some(retype.map_or(ledger, |migratetype| ledger.with_type(migratetype)))
            })
            .ok()?;
        let Some(at) = take_run(field, self.order.get()) else {
            // Another CPU took the run between the look and the ledger. Our share goes back; the booking stays the caller's.
            let _ = allocator.change(block, None, |ledger| Some(ledger.given(class, count)));
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

    /// Whether the request may take a wholly free block.
    fn may_claim(&self) -> bool {
        let spares = self.request.class.is_movable() && !self.request.break_reserve;
        let reserve = i64::from(self.zone().reserve);
        // The sum comes after the ledger, so where nothing is kept the search alone decides.
        !spares || reserve == 0 || self.allocator.whole_in(self.zone_number) > reserve
    }

    fn whole<R>(&self, visit: impl FnMut(BlockId) -> Option<R>) -> Option<R> {
        let allocator = self.allocator;
        // Kernel memory is kept together: lowest first.
        let from = match self.request.class.migratetype() {
            Migratetype::Movable => allocator.cpu(self.cpu).home(self.zone_number),
            _ => 0,
        };
        let reserve = i64::from(self.zone().reserve);
        let breaks = self.request.class.is_movable()
            && reserve > 0
            && allocator.whole_in(self.zone_number) <= reserve;
        let found = allocator.search_whole(self.zone_number, from, visit);
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
