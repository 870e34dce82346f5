//! Looking for a block with room in a zone's index.

use crate::{
    BlockId, FrameAllocator, Migratetype, Placement,
    index::{GROUP, Place},
    place::{CLASSES, WHOLE_ROW, kind, room_class, room_row},
    sync::spin_hint,
};

/// How often a search is begun anew because blocks moved in the index meanwhile.
const TRIES: usize = 16;

/// A step of the search for a block with room.
#[derive(Clone, Copy)]
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
    /// Looks again while `look` finds nothing and blocks of the zone changed their place in the index meanwhile: one that moves
    /// can be missed although it has room all the time.
    #[inline(never)]
    pub(crate) fn settled(&self, zone: usize, look: &mut dyn FnMut() -> bool) -> bool {
        // Mostly it finds something, and need not ask all CPUs first.
        if look() {
            return true;
        }
        for _ in 0..TRIES {
            let ended = self.moves_ended(zone);
            if look() {
                return true;
            }
            // Equal only if every move that was begun by now had ended before the look.
            if self.moves_begun(zone) == ended {
                return false;
            }
            spin_hint();
        }
        false
    }

    /// Calls `visit` with blocks that have room, best first, until it takes one.
    pub(crate) fn search(
        &self,
        zone_number: usize,
        search: &Search,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let least = room_class(search.room as u16);
        match search.order {
            SearchOrder::Fullest => search.kinds.iter().any(|&kind| {
                (least..CLASSES)
                    .any(|class| self.visit_row(zone_number, room_row(kind, class), 0, visit))
            }),
            SearchOrder::Emptiest => (least..CLASSES).rev().any(|class| {
                search
                    .kinds
                    .iter()
                    .any(|&kind| self.visit_row(zone_number, room_row(kind, class), 0, visit))
            }),
            SearchOrder::Lowest => self.visit_lowest(zone_number, search.kinds, least, visit),
        }
    }

    /// Calls `visit` with the blocks of a row from block `from` on, ascending, until it takes one.
    #[inline(never)]
    fn visit_row(
        &self,
        zone_number: usize,
        row: usize,
        from: usize,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let mut blocks = self.zones[zone_number].by_room.blocks(row, from);
        blocks.any(|block| {
            let taken = visit(block);
            if !taken {
                self.refile(block, row);
            }
            taken
        })
    }

    #[inline(never)]
    fn visit_lowest(
        &self,
        zone_number: usize,
        kinds: &[usize],
        least: usize,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let index = &self.zones[zone_number].by_room;
        let rows = || {
            let of_kind = |&kind: &usize| (least..CLASSES).map(move |class| room_row(kind, class));
            kinds.iter().flat_map(of_kind)
        };
        let mut start = 0;
        loop {
            let first = |row| Some((index.blocks(row, start).next()?, row));
            let Some((lowest, row)) = rows().filter_map(first).min() else {
                return false;
            };
            if visit(lowest) {
                return true;
            }
            self.refile(lowest, row);
            start = lowest.index() + 1;
        }
    }

    /// Calls `visit` with wholly free blocks, ascending from block `from` and then from the first, until it takes one.
    pub(crate) fn search_whole(
        &self,
        zone_number: usize,
        from: usize,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        self.visit_row(zone_number, WHOLE_ROW, from, visit)
            || from > 0 && self.visit_row(zone_number, WHOLE_ROW, 0, visit)
    }

    /// Calls `visit` with wholly free blocks whose neighbour above in the tables is whole, too, ascending, until it takes one. A request
    /// for two blocks in a row looks at words of the index so, and not at every block.
    pub(crate) fn search_pairs(
        &self,
        zone_number: usize,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let zone = &self.zones[zone_number];
        let row = Place::row(WHOLE_ROW);
        let end = (zone.first + zone.present()) as usize;
        let mut start = zone.first as usize;
        while let Some((first, mask)) = zone.by_room.group(WHOLE_ROW, start) {
            start = first.index() + GROUP;
            let beyond = start < end && zone.by_room.holds(BlockId::new(start as u32), row);
            let mut pairs = mask & (mask >> 1 | u64::from(beyond) << 63);
            while pairs != 0 {
                let block = BlockId::new(first.index() as u32 + pairs.trailing_zeros());
                if visit(block) {
                    return true;
                }
                pairs &= pairs - 1;
            }
        }
        false
    }

    /// The order in which movable requests look at blocks.
    pub(crate) fn movable_order(&self) -> SearchOrder {
        match self.placement {
            Placement::LowestFirst => SearchOrder::Lowest,
            Placement::FullestFirst => SearchOrder::Fullest,
        }
    }
}
