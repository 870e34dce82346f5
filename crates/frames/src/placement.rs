//! Frames for the balloon, and targets for frames that move: taken straight from blocks.

use crate::{
    AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, FrameAllocator, FrameClass,
    FrameState, Ledger, Migratetype, Pfn, Refusal, Watermark, ZoneId,
    cache::BATCH,
    change::{Taken, Want},
    place::{BEGUN_ROW, CLASSES, is_begun, kind, room_row},
    search::{Search, SearchOrder, kinds_of},
    sums::Part,
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
    /// They come in state *Allocated* and class Balloon (Unmovable for [`BalloonPlacement::Unmovable`]).
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
            let want = BATCH.min(out.len() - count);
            let taken = self.take_for_balloon(cpu, placement, watermark, want);
            if taken.count == 0 {
                if drained {
                    break;
                }
                self.drain_cpu_caches();
                drained = true;
                continue;
            }
            count += self.hand_out_to(&taken, FrameClass::Balloon, &mut out[count..]);
        }
        self.count_frames(cpu, Event::PgAlloc, count);
        count
    }

    /// Makes frames that were just taken from their block the caller's, and writes their numbers to `out`; gives how many.
    fn hand_out_to(&self, taken: &Taken, class: FrameClass, out: &mut [Pfn]) -> usize {
        self.hand_out(taken, class);
        let start = self.block_start(taken.block);
        let base = (taken.block.index() * FRAMES_PER_BLOCK) as u32;
        for (place, frame) in out.iter_mut().zip(taken.frames()) {
            *place = start.plus(u64::from(frame - base));
        }
        taken.count
    }

    fn take_for_balloon(
        &self,
        cpu: CpuId,
        placement: BalloonPlacement,
        watermark: Watermark,
        want: usize,
    ) -> Taken {
        let mut taken = Taken::nothing();
        for zone_number in self.zone_order() {
            let booked = self.book(zone_number, None, want, Part::Any, watermark);
            if booked == 0 {
                continue;
            }
            let holes = |taken: &mut Taken| {
                let order = match placement {
                    BalloonPlacement::Ordinary => self.movable_order(),
                    _ => SearchOrder::Fullest,
                };
                self.take_movable(
                    zone_number,
                    order,
                    None,
                    want_of(FrameClass::Balloon, booked),
                    taken,
                )
            };
            let whole = |taken: &mut Taken| {
                let found = self.sparing(zone_number, None, &mut || {
                    self.take_whole(zone_number, booked, taken)
                });
                self.events()
                    .add(cpu, Event::BlockClaimed, u64::from(found));
                found
            };
            self.settled(zone_number, &mut || {
                if placement == BalloonPlacement::WholeBlocks {
                    // A block begun is finished before the next is broken.
                    self.finish_balloon_block(zone_number, booked, &mut taken)
                        || whole(&mut taken)
                        || holes(&mut taken)
                } else {
                    holes(&mut taken) || whole(&mut taken)
                }
            });
            self.pay_in(zone_number, None, (booked - taken.count) as i64);
            if taken.count > 0 {
                break;
            }
        }
        taken
    }

    /// Takes from one movable block with room.
    fn take_movable(
        &self,
        zone_number: usize,
        order: SearchOrder,
        avoid: Option<BlockId>,
        want: Want,
        taken: &mut Taken,
    ) -> bool {
        let search = Search {
            kinds: kinds_of(Migratetype::Movable),
            order,
            room: 1,
        };
        let usable =
            |ledger: Ledger| !ledger.is_whole() && ledger.migratetype() == Migratetype::Movable;
        self.search(zone_number, &search, &mut |block| {
            Some(block) != avoid && self.take_from(block, None, want, &usable, taken)
        })
    }

    fn take_whole(&self, zone_number: usize, max: usize, taken: &mut Taken) -> bool {
        let usable = |ledger: Ledger| ledger.is_whole();
        let want = Want {
            retype: Some(Migratetype::Movable),
            ..want_of(FrameClass::Balloon, max)
        };
        self.search_whole(zone_number, 0, &mut |block| {
            self.take_from(block, None, want, &usable, taken)
        })
    }

    /// Takes from a block that holds nothing but balloon frames and room.
    fn finish_balloon_block(&self, zone_number: usize, max: usize, taken: &mut Taken) -> bool {
        let mut begun = self.zones[zone_number].by_heal.blocks(BEGUN_ROW, 0);
        let want = want_of(FrameClass::Balloon, max);
        begun.any(|block| self.take_from(block, None, want, &is_begun, taken))
    }

    /// Takes up to `out.len()` movable frames to move others to, from movable blocks other than `avoid`, after the rules of
    /// placement; never from a wholly free or isolated block. Gives how many.
    ///
    /// They come in state *Allocated* and class Movable, and leave `watermark` in their zones: though each target frees the
    /// frame that moves to it in the end, the requests of others must succeed until then.
    pub fn take_targets(&self, avoid: BlockId, watermark: Watermark, out: &mut [Pfn]) -> usize {
        let home = self.zone_of_block(avoid).index();
        let others = self.zone_order().filter(|zone| *zone != home);
        let mut count = 0;
        for zone_number in core::iter::once(home).chain(others) {
            while count < out.len() {
                let want = BATCH.min(out.len() - count);
                let booked = self.book(zone_number, None, want, Part::Any, watermark);
                if booked == 0 {
                    break;
                }
                let (order, class) = (self.movable_order(), FrameClass::Movable);
                let mut taken = Taken::nothing();
                self.settled(zone_number, &mut || {
                    self.take_movable(
                        zone_number,
                        order,
                        Some(avoid),
                        want_of(class, booked),
                        &mut taken,
                    )
                });
                self.pay_in(zone_number, None, (booked - taken.count) as i64);
                if taken.count == 0 {
                    break;
                }
                count += self.hand_out_to(&taken, class, &mut out[count..]);
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
        for zone_number in self.zone_order() {
            let search = Search {
                kinds: kinds_of(Migratetype::Movable),
                order: SearchOrder::Emptiest,
                room: 1,
            };
            self.search(zone_number, &search, &mut |block| {
                if found < enough {
                    found += self.ledger(block).free() as usize;
                }
                found >= enough
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
        // Class by class over the zones, so that one zone's full blocks do not crowd out another's empty ones. Blocks
        // with a lasting refusal are filed elsewhere; those with a momentary one are few.
        let mut count = 0;
        for class in (0..CLASSES).rev() {
            for zone in self.zones_of(zone) {
                let row = room_row(kind::MOVABLE, class);
                for block in self.zones[zone].by_room.blocks(row, 0) {
                    let Some(place) = out.get_mut(count) else {
                        return count;
                    };
                    if self.ledger(block).refusal() == Refusal::None {
                        *place = block;
                        count += 1;
                    }
                }
            }
        }
        count
    }

    /// The numbers of one zone or of all.
    fn zones_of(&self, zone: Option<ZoneId>) -> core::ops::Range<usize> {
        zone.map_or(0..self.zone_count, |zone| zone.index()..zone.index() + 1)
    }

    /// Fills `out` with blocks that compaction may empty, cheapest first; gives how many, at most 64.
    ///
    /// Candidates are open, of movable type, hold at least one frame and none that cannot move, and compaction has not
    /// been refused them ([`refuse_block`](Self::refuse_block)). Unless [`Config::cost`](crate::Config::cost) says otherwise a
    /// moved frame costs 1, a balloon frame an eighth. The index sorts to 32 frames; what is returned is sorted exactly.
    pub fn cheapest_blocks(&self, zone: Option<ZoneId>, out: &mut [BlockId]) -> usize {
        let most = out.len().min(MAX_SORTED);
        let out = &mut out[..most];
        // Class by class over the zones, so that one zone's expensive blocks do not crowd out another's cheap ones.
        let mut count = 0;
        for class in 0..CLASSES {
            for zone in self.zones_of(zone) {
                let blocks = self.zones[zone].by_cost.blocks(class, 0);
                count += fill(&mut out[count..], blocks);
            }
        }
        sort_by_one_look(&mut out[..count], &|block| {
            (self.cost_of(block, self.ledger(block)) as u32, 0)
        });
        count
    }

    /// What emptying `block` costs, in copied frames: a balloon frame is an eighth of one, unless
    /// [`Config::cost`](crate::Config::cost) says otherwise.
    pub fn evacuation_cost(&self, block: BlockId) -> usize {
        self.cost_of(block, self.ledger(block))
    }

    /// Fills `out` with blocks that hold balloon frames, those first that become whole with the fewest others gone; gives how
    /// many, at most 64.
    pub fn healing_blocks(&self, out: &mut [BlockId]) -> usize {
        let most = out.len().min(MAX_SORTED);
        let out = &mut out[..most];
        let mut count = 0;
        for row in core::iter::once(BEGUN_ROW).chain(0..CLASSES) {
            for zone in &self.zones[..self.zone_count] {
                count += fill(&mut out[count..], zone.by_heal.blocks(row, 0));
            }
        }
        sort_by_one_look(&mut out[..count], &|block| {
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
        let huge = self.ledger(block).state() == BlockState::Huge;
        let start = self.block_start(block);
        (0..FRAMES_PER_BLOCK as u32).filter_map(move |offset| {
            let state = self.descriptor_at(first + offset).load().state();
            let used = huge || !matches!(state, FrameState::Free | FrameState::Reserved);
            used.then(|| start.plus(u64::from(offset)))
        })
    }
}

fn want_of(class: FrameClass, max: usize) -> Want {
    Want {
        class,
        max,
        retype: None,
    }
}

/// Fills `out`; gives how many there were.
fn fill(out: &mut [BlockId], blocks: impl Iterator<Item = BlockId>) -> usize {
    out.iter_mut()
        .zip(blocks)
        .map(|(place, block)| *place = block)
        .count()
}

/// The most blocks that are sorted at once.
const MAX_SORTED: usize = 64;

/// Sorts at most [`MAX_SORTED`] blocks by `key`, then by number. The ledgers change meanwhile, so each block's key is read once:
/// a sort that reads it anew for each comparison meets an order that contradicts itself, and panics.
///
/// By insertion: they come nearly sorted out of the index, and the library's sort is ten times as much code.
fn sort_by_one_look(blocks: &mut [BlockId], key: &dyn Fn(BlockId) -> (u32, u32)) {
    let mut keys = [(0, 0); MAX_SORTED];
    for end in 0..blocks.len() {
        let (block, its_key) = (blocks[end], key(blocks[end]));
        let mut at = end;
        while at > 0 && (its_key, block) < (keys[at - 1], blocks[at - 1]) {
            (keys[at], blocks[at]) = (keys[at - 1], blocks[at - 1]);
            at -= 1;
        }
        (keys[at], blocks[at]) = (its_key, block);
    }
}
