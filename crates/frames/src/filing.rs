//! Filing blocks in their zone's three indexes, whenever a ledger or a tally changes.

use crate::{
    BlockId, FrameAllocator, Ledger, ZoneId,
    cpu::CpuGuard,
    index::Place,
    place::{cost_place, evacuation_cost, heal_place, room_place},
    sync::{Ordering, fence},
};

/// A tally and its epoch.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Priced {
    tally: u64,
    epoch: u32,
}

impl FrameAllocator<'_> {
    /// What emptying `block` costs now.
    #[inline]
    pub(crate) fn cost_of(&self, block: BlockId, ledger: Ledger) -> usize {
        self.cost_with(ledger, self.priced(block))
    }

    /// The same as if nothing was known of its frames.
    pub(crate) fn cost_by_ledger(&self, block: BlockId) -> usize {
        let epoch = self.tally_epoch();
        self.cost_with(self.ledger(block), Priced { tally: 0, epoch })
    }

    #[inline]
    fn cost_with(&self, ledger: Ledger, Priced { tally, epoch }: Priced) -> usize {
        match self.cost {
            None => evacuation_cost(ledger),
            Some(cost) => cost(ledger, tally, epoch) as usize,
        }
    }

    /// By what the block should be filed.
    #[inline]
    fn priced(&self, block: BlockId) -> Priced {
        Priced {
            tally: self.block_tally(block),
            epoch: self.tally_epoch(),
        }
    }

    /// By what it is filed. A pair of which one half is being replaced is no harm: whoever replaces it files the block
    /// afterwards.
    #[inline]
    fn filed(&self, block: BlockId) -> Priced {
        let record = self.record(block);
        // Relaxed: the fences of `reindex_by_cost` and `refile_by_cost` order it.
        Priced {
            tally: record.filed_tally.load(Ordering::Relaxed),
            epoch: record.filed_epoch.load(Ordering::Relaxed),
        }
    }

    #[inline]
    fn cost_place_of(&self, block: BlockId, ledger: Ledger) -> Place {
        cost_place(ledger, self.cost_with(ledger, self.filed(block)))
    }

    /// Where the three indexes should have `block`.
    pub(crate) fn places(&self, block: BlockId) -> [Place; 3] {
        let ledger = self.ledger(block);
        [
            room_place(ledger),
            self.cost_place_of(block, ledger),
            heal_place(ledger),
        ]
    }

    /// Moves the block in the indexes where its place changed when its ledger changed from `old` to `new`.
    pub(crate) fn reindex(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        old: Ledger,
        new: Ledger,
    ) {
        let zone = self.zone_at(block);
        let (from, to) = (room_place(old), room_place(new));
        if from != to {
            self.move_by_room(block, guard, from, to);
        } else {
            // Whoever changed the ledger before may not have filed the block yet, and the caller must find what it
            // freed.
            zone.by_room
                .ensure(block, to, &|| room_place(self.ledger(block)));
        }
        self.reindex_by_cost(block, old, new);
        let (from, to) = (heal_place(old), heal_place(new));
        if from != to {
            zone.by_heal
                .moved(block, from, to, &|| heal_place(self.ledger(block)));
        }
    }

    fn reindex_by_cost(&self, block: BlockId, old: Ledger, new: Ledger) {
        if self.cost.is_some() {
            // One half of Dekker's argument with `refile_by_cost`: the ledger is changed, then what it is filed by is
            // read.
            fence(Ordering::SeqCst);
        }
        let filed = self.filed(block);
        let place = |ledger, priced| cost_place(ledger, self.cost_with(ledger, priced));
        let (from, to) = (place(old, filed), place(new, filed));
        if from != to {
            let wanted = || self.cost_place_of(block, self.ledger(block));
            self.zone_at(block).by_cost.moved(block, from, to, &wanted);
        }
        if self.cost.is_none() {
            return;
        }
        if self.filed(block) != filed {
            // The block may be filed by either.
            self.refile_by_cost(block);
        }
        self.refile_as(block, new);
    }

    /// Files `block` by what it costs now, if that has changed. Costs two calls of the [cost
    /// function](crate::Config::cost) where it has not; does nothing without one.
    pub fn refile_block(&self, block: BlockId) {
        if self.cost.is_some() {
            self.refile_as(block, self.ledger(block));
        }
    }

    /// Files `block`, whose ledger is or was `ledger`, by its present tally and epoch if these want it elsewhere. If the
    /// ledger changes meanwhile, whoever changes it does the same.
    fn refile_as(&self, block: BlockId, ledger: Ledger) {
        let (now, filed) = (self.priced(block), self.filed(block));
        let place = |priced| cost_place(ledger, self.cost_with(ledger, priced));
        if now == filed || place(now) == place(filed) {
            return;
        }
        let record = self.record(block);
        // Relaxed: as in `filed`. Two who do this at once may leave the tally of one with the epoch of the other.
        record.filed_tally.store(now.tally, Ordering::Relaxed);
        record.filed_epoch.store(now.epoch, Ordering::Relaxed);
        self.refile_by_cost(block);
    }

    /// Files `block` after what it is filed by has changed.
    fn refile_by_cost(&self, block: BlockId) {
        // The other half: what it is filed by is changed, then the ledger is read.
        fence(Ordering::SeqCst);
        let wanted = || self.cost_place_of(block, self.ledger(block));
        self.zone_at(block).by_cost.refile(block, &wanted);
    }

    #[inline(never)]
    pub(crate) fn move_by_room(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        from: Place,
        to: Place,
    ) {
        let zone = self.zone_of_block(block);
        self.begin_move(zone, guard);
        self.zone(zone)
            .by_room
            .moved(block, from, to, &|| room_place(self.ledger(block)));
        self.end_move(zone, guard);
    }

    /// Moves a block that a search found in bucket `found` of the room index, if its ledger wants it elsewhere: whoever
    /// changed the ledger has not filed it yet.
    pub(crate) fn refile(&self, block: BlockId, found: usize) {
        let (found, right) = (Place::bucket(found), room_place(self.ledger(block)));
        if found != right {
            self.move_by_room(block, None, found, right);
        }
    }

    /// Before the bitmaps of the room index change. Relaxed: a reader that sees a change of them, by its acquire, sees
    /// this.
    #[inline]
    pub(crate) fn begin_move(&self, zone: ZoneId, guard: Option<&CpuGuard<'_>>) {
        match guard {
            Some(guard) => guard.slot.begin_move(),
            None => {
                let begun = &self.zone(zone).share.begun;
                begun.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// After the bitmaps changed. Release: pairs with [`moves_ended`](Self::moves_ended).
    #[inline]
    pub(crate) fn end_move(&self, zone: ZoneId, guard: Option<&CpuGuard<'_>>) {
        match guard {
            Some(guard) => guard.slot.end_move(),
            None => {
                let ended = &self.zone(zone).share.ended;
                ended.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Moves of blocks in the room index that were begun, counted at the zone and at the CPUs.
    pub(crate) fn moves_begun(&self, zone: ZoneId) -> u32 {
        let own = self.zone(zone).share.begun.load(Ordering::Relaxed) as u32;
        self.cpus
            .iter()
            .fold(own, |sum, cpu| sum.wrapping_add(cpu.moves_begun()))
    }

    /// Acquire: all moves counted are in the bitmaps that the caller looks at next.
    pub(crate) fn moves_ended(&self, zone: ZoneId) -> u32 {
        let own = self.zone(zone).share.ended.load(Ordering::Acquire) as u32;
        self.cpus
            .iter()
            .fold(own, |sum, cpu| sum.wrapping_add(cpu.moves_ended()))
    }
}
