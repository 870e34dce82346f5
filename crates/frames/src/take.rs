//! One request in one zone: which blocks it may take from, in which order.

use crate::{
    AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, Fallback, FrameAllocator,
    Ledger, Migratetype, Order, Placement,
    bits::{find_span, has_run, take_run, take_span},
    change::{Taken, Want},
    cpu::{CpuGuard, NO_BLOCK},
    search::{Search, SearchOrder, kinds_of},
    sync::Ordering,
    zone::Zone,
};

/// In a block's info: some CPU fills its cache from this block.
const IN_USE: u32 = 1 << 31;
/// Blocks that a search for a run looks at from each end of the order before it gives up. A block with room and without a run
/// tells nothing about the next; without a limit a request that fails would look at all of them.
pub(crate) const RUN_LOOKS: usize = 256;

/// One request in one zone.
pub(crate) struct Take<'a, 'm> {
    pub allocator: &'a FrameAllocator<'m>,
    pub cpu: CpuId,
    pub guard: Option<&'a CpuGuard<'a>>,
    pub zone_number: usize,
    pub request: AllocRequest,
    /// Frames in a row, and where they begin: at a multiple of 2^align frames.
    pub frames: usize,
    pub align: Order,
}

impl<'m> Take<'_, 'm> {
    fn zone(&self) -> &Zone<'m> {
        &self.allocator.zones[self.zone_number]
    }

    fn mine(&self) -> Migratetype {
        self.request.class.migratetype()
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
            room: self.frames,
        }
    }

    /// Up to `max` single frames out of one block.
    pub fn base(&self, max: usize, taken: &mut Taken) -> bool {
        let mine = self.mine();
        if self.take_reserved(max, taken) {
            return true;
        }
        // Two CPUs that refill from one block pass its cache lines to and fro. So movable requests look last at a block from
        // which another CPU refills, while whole blocks are plenty; immovable ones rather share than claim another block.
        let spread = self.guard.is_some() && mine == Migratetype::Movable && self.is_roomy();
        let mut found = self.of_type(mine, spread, max, taken);
        if !found && let Some(other) = self.sharing() {
            // Not reserved: the next refill looks among its own blocks first.
            if self.of_type(other, false, max, taken) {
                return true;
            }
        }
        found = found
            || self.whole(&mut |block| {
                self.take(block, max, Some(mine), &|ledger| ledger.is_whole(), taken)
            })
            || spread && self.of_type(mine, false, max, taken);
        if found {
            self.reserve(taken.block);
            return true;
        }
        self.fall_back(&mut |block, foreign, retype| {
            let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == foreign;
            let found = self.take(block, max, retype, &usable, taken);
            if found && retype.is_some() {
                self.reserve(block);
            }
            found
        })
    }

    fn take(
        &self,
        block: BlockId,
        max: usize,
        retype: Option<Migratetype>,
        usable: &dyn Fn(Ledger) -> bool,
        taken: &mut Taken,
    ) -> bool {
        let want = Want {
            class: self.request.class,
            max,
            retype,
        };
        self.allocator
            .take_from(block, self.guard, want, usable, taken)
    }

    /// From blocks of a type; those in use by other CPUs only if not `spread`.
    fn of_type(
        &self,
        migratetype: Migratetype,
        spread: bool,
        max: usize,
        taken: &mut Taken,
    ) -> bool {
        let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == migratetype;
        let search = self.own_search(migratetype);
        self.allocator
            .search(self.zone_number, &search, &mut |block| {
                let avoid = spread && self.allocator.is_in_use(block);
                !avoid && self.take(block, max, None, &usable, taken)
            })
    }

    /// From the block that the last refill was from.
    fn take_reserved(&self, max: usize, taken: &mut Taken) -> bool {
        let (Some(guard), mine) = (self.guard, self.mine()) else {
            return false;
        };
        let reserved = guard.cache(mine).reserved();
        if reserved == NO_BLOCK {
            return false;
        }
        let block = BlockId::new(reserved - 1);
        let here = self.allocator.zone_of_block(block).index() == self.zone_number;
        let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == mine;
        if here && self.take(block, max, None, &usable, taken) {
            return true;
        }
        self.allocator.unreserve(guard, mine);
        false
    }

    fn reserve(&self, block: BlockId) {
        if let Some(guard) = self.guard {
            self.allocator.reserve(guard, self.mine(), block);
        }
    }

    /// Whether so many blocks are whole that another one broken does not matter.
    fn is_roomy(&self) -> bool {
        // Relaxed: a hint.
        let whole = self.zone().share.whole.load(Ordering::Relaxed) as i64;
        whole - i64::from(self.zone().reserve) > 16 * self.allocator.cpus.len() as i64
    }

    /// Frames in a row inside one block; the first.
    pub fn run(&self) -> Option<u32> {
        let mine = self.mine();
        let mut found = None;
        let mut of_type = |migratetype| {
            let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == migratetype;
            self.search_runs(migratetype, &mut |block| {
                found = self.take_run(block, None, &usable);
                found.is_some()
            })
        };
        let ours = of_type(mine) || self.sharing().is_some_and(&mut of_type);
        let ours = ours
            || self.whole(&mut |block| {
                found = self.take_run(block, Some(mine), &|ledger| ledger.is_whole());
                found.is_some()
            });
        if !ours {
            self.fall_back(&mut |block, foreign, retype| {
                let usable = |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == foreign;
                found = self.take_run(block, retype, &usable);
                found.is_some()
            });
        }
        found
    }

    /// Calls `visit` with blocks of a type that may have a run: a limited number in the order of placement, then as many from the
    /// emptiest, which are the most likely to have one.
    fn search_runs(
        &self,
        migratetype: Migratetype,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let search = self.own_search(migratetype);
        let emptiest = Search {
            order: SearchOrder::Emptiest,
            ..search
        };
        [search, emptiest].iter().any(|search| {
            let (mut looks, mut found) = (0, false);
            self.allocator
                .search(self.zone_number, search, &mut |block| {
                    looks += 1;
                    found = visit(block);
                    found || looks >= RUN_LOOKS
                });
            found
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
        let count = self.frames as u16;
        let span = if self.frames == self.align.frames() && self.align < Order::HUGE {
            has_run(field, self.align.get()).then_some(None)
        } else {
            find_span(field, self.frames, self.align.frames()).map(Some)
        }?;
        allocator
            .change(block, None, &|ledger| {
                let fits =
                    ledger.state() == BlockState::Open && ledger.free() >= count && usable(ledger);
                let ledger = fits.then(|| ledger.taken(class, count))?;
                Some(retype.map_or(ledger, |migratetype| ledger.with_type(migratetype)))
            })
            .ok()?;
        let at = match span {
            None => take_run(field, self.align.get()),
            Some(at) => take_span(field, at, self.frames).then_some(at),
        };
        let Some(at) = at else {
            // Another CPU took the run between the look and the ledger.
            allocator.give_share_back(block, class, count);
            return None;
        };
        Some((block.index() * FRAMES_PER_BLOCK) as u32 + at)
    }

    /// The other immovable type, whose blocks are used up before a block is claimed: under [`Fallback::Evacuate`] a block lost to
    /// immovable frames is a huge page lost, so they share.
    fn sharing(&self) -> Option<Migratetype> {
        match (self.allocator.fallback, self.mine()) {
            (Fallback::Evacuate, Migratetype::Unmovable) => Some(Migratetype::Reclaimable),
            (Fallback::Evacuate, Migratetype::Reclaimable) => Some(Migratetype::Unmovable),
            _ => None,
        }
    }

    /// Takes from a wholly free block, if the request may have one.
    fn whole(&self, visit: &mut dyn FnMut(BlockId) -> bool) -> bool {
        let (allocator, zone) = (self.allocator, self.zone());
        let movable = self.request.class.is_movable();
        // Kernel memory is kept together: lowest first.
        let from = match self.mine() {
            Migratetype::Movable => allocator.home(self.cpu, self.zone_number),
            _ => 0,
        };
        let low = || allocator.whole_in(self.zone_number) <= i64::from(zone.reserve);
        let breaks = movable && zone.reserve > 0 && low();
        let mut look = || allocator.search_whole(self.zone_number, from, visit);
        let found = if movable && !self.request.break_reserve {
            allocator.sparing(self.zone_number, self.guard, &mut look)
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

    /// Looks for room in blocks of other types, if the request may. `visit` gets the block, its type and, if at least half of it is
    /// free, the new type.
    fn fall_back(
        &self,
        visit: &mut dyn FnMut(BlockId, Migratetype, Option<Migratetype>) -> bool,
    ) -> bool {
        if !self.request.fall_back || self.allocator.fallback == Fallback::Evacuate {
            return false;
        }
        let mine = self.mine();
        let others: [Migratetype; 2] = match mine {
            Migratetype::Unmovable => [Migratetype::Reclaimable, Migratetype::Movable],
            Migratetype::Reclaimable => [Migratetype::Unmovable, Migratetype::Movable],
            Migratetype::Movable => [Migratetype::Reclaimable, Migratetype::Unmovable],
        };
        others.into_iter().any(|foreign| {
            let search = Search {
                kinds: kinds_of(foreign),
                order: SearchOrder::Emptiest,
                room: self.frames,
            };
            let (mut looks, mut found) = (0, false);
            let limited = self.frames > 1;
            self.allocator
                .search(self.zone_number, &search, &mut |block| {
                    let free = self.allocator.ledger(block).free() as usize;
                    let convert = mine != Migratetype::Movable
                        && foreign == Migratetype::Movable
                        && free >= FRAMES_PER_BLOCK / 2;
                    let retype = convert.then_some(mine);
                    looks += 1;
                    found = visit(block, foreign, retype);
                    if found {
                        self.count_steal(block, retype);
                    }
                    found || limited && looks >= RUN_LOOKS
                });
            found
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

impl FrameAllocator<'_> {
    /// Makes `block` the one that the CPU refills the cache of `migratetype` from.
    fn reserve(&self, guard: &CpuGuard<'_>, migratetype: Migratetype, block: BlockId) {
        self.unreserve(guard, migratetype);
        guard
            .cache(migratetype)
            .set_reserved(block.index() as u32 + 1);
        guard.note_block(block);
        // Relaxed, here and below: a hint to other CPUs.
        self.record(block).info.fetch_or(IN_USE, Ordering::Relaxed);
    }

    /// Ends that.
    pub(crate) fn unreserve(&self, guard: &CpuGuard<'_>, migratetype: Migratetype) {
        let cache = guard.cache(migratetype);
        let reserved = cache.reserved();
        if reserved != NO_BLOCK {
            cache.set_reserved(NO_BLOCK);
            let block = BlockId::new(reserved - 1);
            self.record(block)
                .info
                .fetch_and(!IN_USE, Ordering::Relaxed);
        }
    }

    /// Whether some CPU refills from `block`.
    fn is_in_use(&self, block: BlockId) -> bool {
        self.record(block).info.load(Ordering::Relaxed) & IN_USE != 0
    }

    /// Where `cpu` begins to look for whole blocks of a zone.
    pub(crate) fn home(&self, cpu: CpuId, zone: usize) -> usize {
        self.cpus[cpu.index()].home(zone)
    }
}
