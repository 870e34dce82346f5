//! Looking for a block with room in a zone's index.

use crate::{
    BlockId, FrameAllocator, Migratetype, ZoneId,
    index::{GROUP, Place},
    place::{RANKS, WHOLE_BUCKET, kind, room_bucket, room_rank},
    sync::spin_hint,
};

/// Where a search of any zone may begin: no block is below it.
const FIRST: BlockId = BlockId::new(0);
/// How often a search is begun anew because blocks moved in the index meanwhile.
const TRIES: usize = 16;

/// Which blocks with room are visited, and in which order.
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
    /// Kinds one after another, in each the fullest rank first.
    Fullest,
    /// The lowest number over all kinds.
    Lowest,
    /// The rank with most free frames first.
    Emptiest,
}

/// The kinds of partly used blocks of a type, in the order in which they are visited.
pub(crate) const fn kinds_of(migratetype: Migratetype) -> &'static [usize] {
    match migratetype {
        Migratetype::Unmovable => &[kind::UNMOVABLE],
        Migratetype::Reclaimable => &[kind::RECLAIMABLE],
        // Hybrids first: they cannot become whole.
        Migratetype::Movable => &[kind::HYBRID, kind::MOVABLE],
    }
}

impl FrameAllocator<'_> {
    /// Looks again while `look` finds nothing and blocks of the zone changed their place in the index meanwhile: one
    /// that moves can be missed although it has room all the time.
    #[inline(never)]
    pub(crate) fn look_until_still(&self, zone: ZoneId, look: &mut dyn FnMut() -> bool) -> bool {
        // In most cases it finds something, and the counts of all CPUs need not be read.
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
        zone: ZoneId,
        search: &Search,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let least = room_rank(search.room as u16);
        match search.order {
            SearchOrder::Fullest => search.kinds.iter().any(|&kind| {
                (least..RANKS)
                    .any(|rank| self.visit_bucket(zone, room_bucket(kind, rank), FIRST, visit))
            }),
            SearchOrder::Emptiest => (least..RANKS).rev().any(|rank| {
                search
                    .kinds
                    .iter()
                    .any(|&kind| self.visit_bucket(zone, room_bucket(kind, rank), FIRST, visit))
            }),
            SearchOrder::Lowest => self.visit_lowest(zone, search.kinds, least, visit),
        }
    }

    /// Calls `visit` with the blocks of a bucket from block `from` on, ascending, until it takes one.
    #[inline(never)]
    fn visit_bucket(
        &self,
        zone: ZoneId,
        bucket: usize,
        from: BlockId,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let mut blocks = self.zone(zone).by_room.blocks(bucket, from);
        blocks.any(|block| {
            let taken = visit(block);
            if !taken {
                self.refile(block, bucket);
            }
            taken
        })
    }

    #[inline(never)]
    fn visit_lowest(
        &self,
        zone: ZoneId,
        kinds: &[usize],
        least: usize,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let index = self.zone(zone).by_room;
        let buckets = || {
            let of_kind = |&kind: &usize| (least..RANKS).map(move |rank| room_bucket(kind, rank));
            kinds.iter().flat_map(of_kind)
        };
        let mut start = FIRST;
        loop {
            let first = |bucket| Some((index.blocks(bucket, start).next()?, bucket));
            let Some((lowest, bucket)) = buckets().filter_map(first).min() else {
                return false;
            };
            if visit(lowest) {
                return true;
            }
            self.refile(lowest, bucket);
            start = lowest.plus(1);
        }
    }

    /// Calls `visit` with wholly free blocks, ascending from block `from` and then from the first, until it takes one.
    pub(crate) fn search_whole(
        &self,
        zone: ZoneId,
        from: BlockId,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        self.visit_bucket(zone, WHOLE_BUCKET, from, visit)
            || from > FIRST && self.visit_bucket(zone, WHOLE_BUCKET, FIRST, visit)
    }

    /// Calls `visit` with wholly free blocks whose neighbour above in the tables is whole, too, ascending, until it
    /// takes one. A request for two neighbours so looks at words of the index, not at every block.
    pub(crate) fn search_pairs(
        &self,
        zone: ZoneId,
        visit: &mut dyn FnMut(BlockId) -> bool,
    ) -> bool {
        let zone = self.zone(zone);
        let whole = Place::bucket(WHOLE_BUCKET);
        let end = zone.first.plus(zone.present());
        let mut start = zone.first;
        while let Some((first, mask)) = zone.by_room.group(WHOLE_BUCKET, start) {
            start = first.plus(GROUP as u32);
            let beyond = start < end && zone.by_room.holds(start, whole);
            let mut pairs = mask & (mask >> 1 | u64::from(beyond) << 63);
            while pairs != 0 {
                if visit(first.plus(pairs.trailing_zeros())) {
                    return true;
                }
                pairs &= pairs - 1;
            }
        }
        false
    }
}
