//! Frames for the balloon, and targets for frames that move: taken straight from blocks.

use crate::{
    AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, FrameAllocator, FrameClass,
    Ledger, Migratetype, Pfn, Refusal, Watermark,
    alloc::{Search, SearchOrder, kinds_of, mark},
    allocator::{cost, heal, is_begun, kind},
    cpu::BATCH,
    index::CLASSES,
    metadata::KINDS,
};

/// Where a balloon takes its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BalloonPlacement {
    /// As any movable request does (the series).
    Ordinary,
    /// As any unmovable request does (before the series): class Unmovable.
    Unmovable,
    /// From polluted and the fullest blocks, so that the guest keeps its whole ones.
    FillHoles,
    /// Whole free blocks, ascending, so that the host keeps its huge pages; holes when there is none.
    WholeBlocks,
}

impl FrameAllocator<'_> {
    /// Takes up to `out.len()` frames for a balloon, leaving `watermark`, in ascending order; gives how many.
    ///
    /// They come in state *Owned* and class Balloon (Unmovable for [`BalloonPlacement::Unmovable`]).
    pub fn alloc_balloon(
        &self,
        cpu: CpuId,
        placement: BalloonPlacement,
        watermark: Watermark,
        out: &mut [Pfn],
    ) -> usize {
        let count = match placement {
            BalloonPlacement::Unmovable => self.alloc_bulk(
                cpu,
                AllocRequest::unmovable().with_watermark(watermark),
                out,
            ),
            _ => self.alloc_balloon_movable(cpu, placement, watermark, out),
        };
        out[..count].sort_unstable();
        count
    }

    fn alloc_balloon_movable(
        &self,
        cpu: CpuId,
        placement: BalloonPlacement,
        watermark: Watermark,
        out: &mut [Pfn],
    ) -> usize {
        let mut count = 0;
        let mut drained = false;
        while count < out.len() {
            let mut batch = [0u32; BATCH];
            let want = BATCH.min(out.len() - count);
            let taken = self.take_for_balloon(cpu, placement, watermark, &mut batch[..want]);
            if taken == 0 {
                if drained {
                    break;
                }
                self.drain_cpu_caches();
                drained = true;
                continue;
            }
            self.hand_out(&batch[..taken], FrameClass::Balloon);
            for (place, frame) in out[count..].iter_mut().zip(&batch[..taken]) {
                *place = self.pfn(*frame);
            }
            count += taken;
        }
        self.count_frames(cpu, Event::PgAlloc, count);
        count
    }

    fn take_for_balloon(
        &self,
        cpu: CpuId,
        placement: BalloonPlacement,
        watermark: Watermark,
        out: &mut [u32],
    ) -> usize {
        for zone_number in (0..self.zones().count()).rev() {
            let zone = &self.zones[zone_number];
            let booked = zone.book(out.len(), mark(zone, watermark));
            if booked == 0 {
                continue;
            }
            let out = &mut out[..booked];
            let holes = |out: &mut [u32]| {
                let order = match placement {
                    BalloonPlacement::Ordinary => self.movable_order(),
                    _ => SearchOrder::Fullest,
                };
                self.take_movable(zone_number, order, None, FrameClass::Balloon, out)
            };
            let whole = |out: &mut [u32]| {
                let take = || match self.take_whole(zone_number, FrameClass::Balloon, out) {
                    0 => None,
                    taken => Some(taken),
                };
                let taken = zone.sparing(|| zone.whole(), take).unwrap_or(0);
                self.events()
                    .add(cpu, Event::BlockClaimed, u64::from(taken > 0));
                taken
            };
            let taken = self.settled(zone, || {
                let taken = if placement == BalloonPlacement::WholeBlocks {
                    // A block begun is finished before the next is broken.
                    match self.finish_balloon_block(zone_number, out) {
                        0 => match whole(out) {
                            0 => holes(out),
                            taken => taken,
                        },
                        taken => taken,
                    }
                } else {
                    match holes(out) {
                        0 => whole(out),
                        taken => taken,
                    }
                };
                (taken > 0).then_some(taken)
            });
            let taken = taken.unwrap_or(0);
            zone.add_free((booked - taken) as i64);
            if taken > 0 {
                return taken;
            }
        }
        0
    }

    /// Takes from one movable block with room.
    fn take_movable(
        &self,
        zone_number: usize,
        order: SearchOrder,
        avoid: Option<BlockId>,
        class: FrameClass,
        out: &mut [u32],
    ) -> usize {
        let search = Search {
            kinds: kinds_of(Migratetype::Movable),
            order,
            room: 1,
        };
        let usable =
            |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == Migratetype::Movable;
        self.search(zone_number, &search, |block| {
            if Some(block) == avoid {
                return None;
            }
            let taken = self.take_from(block, class, out.len(), None, usable, out);
            (taken > 0).then_some(taken)
        })
        .unwrap_or(0)
    }

    fn take_whole(&self, zone_number: usize, class: FrameClass, out: &mut [u32]) -> usize {
        let search = Search {
            kinds: &[kind::WHOLE],
            order: SearchOrder::Lowest,
            room: 0,
        };
        self.search(zone_number, &search, |block| {
            let usable = |ledger: Ledger| ledger.is_whole();
            let retype = Some(Migratetype::Movable);
            let taken = self.take_from(block, class, out.len(), retype, usable, out);
            (taken > 0).then_some(taken)
        })
        .unwrap_or(0)
    }

    /// Takes from a block that holds nothing but balloon frames and room.
    fn finish_balloon_block(&self, zone_number: usize, out: &mut [u32]) -> usize {
        self.by_heal
            .blocks(heal::BEGUN + zone_number, 0, 0)
            .find_map(|block| {
                let taken =
                    self.take_from(block, FrameClass::Balloon, out.len(), None, is_begun, out);
                (taken > 0).then_some(taken)
            })
            .unwrap_or(0)
    }

    /// Takes up to `out.len()` movable frames to move others to, from movable blocks other than `avoid`, after the rules of
    /// placement; never from a wholly free or isolated block. Gives how many.
    ///
    /// They come in state *Owned* and class Movable, and leave `watermark` in their zones: though each target frees the
    /// frame that moves to it in the end, the requests of others must succeed until then.
    pub fn take_targets(&self, avoid: BlockId, watermark: Watermark, out: &mut [Pfn]) -> usize {
        let home = self.zone_of_block(avoid).index();
        let others = (0..self.zones().count()).rev().filter(|zone| *zone != home);
        let mut count = 0;
        for zone_number in core::iter::once(home).chain(others) {
            let zone = &self.zones[zone_number];
            while count < out.len() {
                let mut batch = [0u32; BATCH];
                let booked = zone.book(BATCH.min(out.len() - count), mark(zone, watermark));
                if booked == 0 {
                    break;
                }
                let order = self.movable_order();
                let taken = self.settled(zone, || {
                    let (batch, class) = (&mut batch[..booked], FrameClass::Movable);
                    match self.take_movable(zone_number, order, Some(avoid), class, batch) {
                        0 => None,
                        taken => Some(taken),
                    }
                });
                let taken = taken.unwrap_or(0);
                zone.add_free((booked - taken) as i64);
                if taken == 0 {
                    break;
                }
                self.hand_out(&batch[..taken], FrameClass::Movable);
                for (place, frame) in out[count..].iter_mut().zip(&batch[..taken]) {
                    *place = self.pfn(*frame);
                }
                count += taken;
            }
        }
        count
    }

    /// How many frames there are to move others to: free ones in movable blocks, wholly free blocks not counted. Stops
    /// counting at `enough`, and so looks at no more than `enough` blocks.
    ///
    /// A block's own free frames are no targets for its used ones, and both together are 512. So where watermarks are no
    /// matter any block can be emptied if there are at least 512, and none if there are fewer; n blocks together, if there
    /// are 512 n.
    pub fn target_frames(&self, enough: usize) -> usize {
        let mut found = 0;
        for zone_number in (0..self.zones().count()).rev() {
            let search = Search {
                kinds: kinds_of(Migratetype::Movable),
                order: SearchOrder::Emptiest,
                room: 1,
            };
            let _ = self.search(zone_number, &search, |block| {
                if found < enough {
                    found += self.ledger(block).free() as usize;
                }
                (found >= enough).then_some(())
            });
        }
        found.min(enough)
    }

    /// Fills `out` with blocks that compaction may empty, those with the fewest used frames first, as far as the index
    /// tells them apart; gives how many. Blocks without a free frame are not among them.
    ///
    /// The candidates of [`cheapest_blocks`](Self::cheapest_blocks) that need the fewest targets: a balloon's full blocks
    /// are cheap to move and yet need 512.
    pub fn emptiest_blocks(&self, zone: Option<crate::ZoneId>, out: &mut [BlockId]) -> usize {
        let wanted = |number: &usize| zone.is_none_or(|zone| zone.index() == *number);
        // Class by class over the zones, so that one zone's full blocks do not crowd out another's empty ones. Blocks
        // with a lasting refusal are filed elsewhere; those with a momentary one are few.
        (0..CLASSES)
            .rev()
            .flat_map(|class| (0..self.zones().count()).map(move |number| (class, number)))
            .filter(|(_, number)| wanted(number))
            .flat_map(|(class, number)| {
                self.by_room
                    .blocks(number * KINDS + kind::MOVABLE, class, 0)
            })
            .filter(|&block| self.ledger(block).refusal() == Refusal::None)
            .zip(out)
            .map(|(block, place)| *place = block)
            .count()
    }

    /// Fills `out` with blocks that compaction may empty, cheapest first; gives how many, at most 64.
    ///
    /// Candidates are open, of movable type, hold at least one frame and none that cannot move, and compaction has not
    /// been refused them ([`refuse_block`](Self::refuse_block)). A moved frame costs 1, a balloon frame an eighth. The
    /// index sorts to 32 frames; what is returned is sorted exactly.
    pub fn cheapest_blocks(&self, zone: Option<crate::ZoneId>, out: &mut [BlockId]) -> usize {
        let wanted = |number: &usize| zone.is_none_or(|zone| zone.index() == *number);
        // Class by class over the zones, so that one zone's expensive blocks do not crowd out another's cheap ones.
        let count = (0..CLASSES)
            .flat_map(|class| (0..self.zones().count()).map(move |number| (class, number)))
            .filter(|(_, number)| wanted(number))
            .flat_map(|(class, number)| {
                self.by_cost
                    .blocks(number * cost::COUNT + cost::CANDIDATES, class, 0)
            })
            .zip(out.iter_mut().take(MAX_SORTED))
            .map(|(block, place)| *place = block)
            .count();
        sort_by_one_look(&mut out[..count], |block| {
            (
                crate::allocator::evacuation_cost(self.ledger(block)) as u32,
                0,
            )
        });
        count
    }

    /// What emptying `block` costs, in copied frames: a balloon frame is an eighth of one.
    pub fn evacuation_cost(&self, block: BlockId) -> usize {
        crate::allocator::evacuation_cost(self.ledger(block))
    }

    /// Fills `out` with blocks that hold balloon frames, those first that become whole with the fewest others gone; gives how
    /// many, at most 64.
    pub fn healing_blocks(&self, out: &mut [BlockId]) -> usize {
        let begun = (0..self.zones().count())
            .flat_map(|number| self.by_heal.blocks(heal::BEGUN + number, 0, 0));
        let count = begun
            .chain((0..CLASSES).flat_map(|class| self.by_heal.blocks(heal::ALL, class, 0)))
            .zip(out.iter_mut().take(MAX_SORTED))
            .map(|(block, place)| *place = block)
            .count();
        sort_by_one_look(&mut out[..count], |block| {
            let ledger = self.ledger(block);
            (u32::from(ledger.unmovable()), u32::from(ledger.movable()))
        });
        count
    }

    /// Whether `block` holds movable or balloon frames together with others that cannot move; reserved ones do not count.
    pub fn is_hybrid(&self, block: BlockId) -> bool {
        let ledger = self.ledger(block);
        ledger.state() != BlockState::Huge
            && ledger.unmovable() > self.reserved_in(block)
            && ledger.movable() + ledger.balloon() > 0
    }

    /// How many blocks are hybrids. Walks all ledgers.
    pub fn hybrid_blocks(&self) -> usize {
        self.blocks().filter(|block| self.is_hybrid(*block)).count()
    }

    /// The frames of `block` that are not free, without the reserved ones, ascending, as they are at the time of the look.
    pub fn used_frames(&self, block: BlockId) -> impl Iterator<Item = Pfn> + '_ {
        let first = (block.index() * FRAMES_PER_BLOCK) as u32;
        (first..first + FRAMES_PER_BLOCK as u32).filter_map(|frame| {
            use crate::FrameState::{Cached, Free, Reserved};
            let state = self.state_at(frame);
            (!matches!(state, Free | Cached | Reserved)).then(|| self.pfn(frame))
        })
    }
}

/// The most blocks that are sorted at once.
const MAX_SORTED: usize = 64;

/// Sorts at most [`MAX_SORTED`] blocks by `key`, then by number. The ledgers change meanwhile, so each block's key is read once:
/// a sort that reads it anew for each comparison meets an order that contradicts itself, and panics.
fn sort_by_one_look(blocks: &mut [BlockId], key: impl Fn(BlockId) -> (u32, u32)) {
    let mut keyed = [((0, 0), BlockId::new(0)); MAX_SORTED];
    let keyed = &mut keyed[..blocks.len()];
    for (place, &block) in keyed.iter_mut().zip(blocks.iter()) {
        *place = (key(block), block);
    }
    keyed.sort_unstable();
    for (block, &(_, sorted)) in blocks.iter_mut().zip(keyed.iter()) {
        *block = sorted;
    }
}
