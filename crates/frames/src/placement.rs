//! Frames for the balloon, and targets for frames that move: taken straight from blocks.

use crate::{
    AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, FrameAllocator, FrameClass,
    FrameState, Migratetype, Order, Pfn, Refusal, Watermark, ZoneId,
    cache::BATCH,
    change::Taken,
    ladder::{Ladder, Step},
    place::{BEGUN_BUCKET, RANKS, kind, room_bucket},
    search::{Search, SearchOrder, kinds_of},
    sums::Booking,
};

/// Where a balloon takes its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BalloonPlacement {
    /// As any movable request does; so do Linux guests whose balloon pages are movable.
    Ordinary,
    /// As any unmovable request does, with class Unmovable; so do guests whose balloon pages cannot be moved.
    Unmovable,
    /// From hybrids and the fullest blocks, so that the guest keeps its whole ones.
    FillHoles,
    /// Whole free blocks, ascending, so that the host keeps its huge pages; partly used ones if there is none.
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
        sort(&mut out[..count]);
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

    /// Makes frames that were just taken from their block the caller's, and writes their numbers to `out`; gives how
    /// many.
    fn hand_out_to(&self, taken: &Taken, class: FrameClass, out: &mut [Pfn]) -> usize {
        self.hand_out(taken, class);
        let start = self.block_start(taken.block);
        for (place, frame) in out.iter_mut().zip(taken.frames()) {
            *place = start.plus(u64::from(frame.offset()));
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
        let booking = Booking::up_to(want, watermark);
        let request = AllocRequest::new(Order::BASE, FrameClass::Balloon);
        let (order, steps): (_, &[Step]) = match placement {
            // A block begun is finished before the next is broken.
            BalloonPlacement::WholeBlocks => {
                (SearchOrder::Fullest, &[Step::Begun, Step::Whole, Step::Own])
            }
            BalloonPlacement::Ordinary => (self.placement_order(), &[Step::Own, Step::Whole]),
            _ => (SearchOrder::Fullest, &[Step::Own, Step::Whole]),
        };
        let mut taken = Taken::nothing();
        // The count of what was taken is the result.
        let _ = self.try_zones(|zone| {
            let ladder = Ladder {
                own_order: order,
                whole_from: BlockId::new(0),
                ..Ladder::new(self, cpu, None, zone, request)
            };
            self.search_booked(zone, None, booking, &mut |booked| {
                ladder.climb(steps, &mut |offer| {
                    let want = offer.want(&request, booked);
                    self.take_from(offer.block, None, want, &mut taken)
                });
                taken.count
            })
        });
        taken
    }

    /// Takes up to `out.len()` movable frames to move others to, from partly used movable blocks other than `avoid`, in
    /// the order of the placement; never from an isolated one. Gives how many.
    ///
    /// They come in state *Allocated* and class Movable, and leave `watermark` in their zones: though each target frees
    /// the frame that moves to it in the end, the requests of others must succeed until then.
    pub fn take_targets(&self, avoid: BlockId, watermark: Watermark, out: &mut [Pfn]) -> usize {
        let home = self.zone_of_block(avoid);
        let others = self.zone_order().filter(|zone| *zone != home);
        let request = AllocRequest::movable();
        let mut count = 0;
        for zone in core::iter::once(home).chain(others) {
            // The step uses no CPU's cache, home or counters.
            let ladder = Ladder::new(self, CpuId::new(0), None, zone, request);
            while count < out.len() {
                let booking = Booking::up_to(BATCH.min(out.len() - count), watermark);
                let mut taken = Taken::nothing();
                let done = self.search_booked(zone, None, booking, &mut |booked| {
                    ladder.climb(&[Step::Own], &mut |offer| {
                        let want = offer.want(&request, booked);
                        offer.block != avoid && self.take_from(offer.block, None, want, &mut taken)
                    });
                    taken.count
                });
                if done.is_err() {
                    break;
                }
                count += self.hand_out_to(&taken, request.class, &mut out[count..]);
            }
        }
        count
    }

    /// How many frames there are to move others to: free ones in movable blocks, wholly free blocks not counted. Stops
    /// counting at `enough`, so it looks at no more than `enough` blocks.
    ///
    /// A block's own free frames are no targets for its used ones, and both together are 512. So, watermarks apart, if
    /// there are at least 512, any block can be emptied, and if there are fewer, none can; n blocks together need 512
    /// n.
    pub fn target_frames(&self, enough: usize) -> usize {
        let mut found = 0;
        for zone in self.zone_order() {
            let search = Search {
                kinds: kinds_of(Migratetype::Movable),
                order: SearchOrder::Emptiest,
                room: 1,
            };
            self.search(zone, &search, &mut |block| {
                if found < enough {
                    found += self.ledger(block).free() as usize;
                }
                found >= enough
            });
        }
        found.min(enough)
    }

    /// Fills `out` with blocks that compaction may empty, those with the fewest used frames first, as far as the index
    /// distinguishes them; gives how many. Blocks without a free frame are not among them.
    ///
    /// The candidates of [`cheapest_blocks`](Self::cheapest_blocks) that need the fewest targets: a balloon's full
    /// blocks are cheap to move and yet need 512.
    pub fn emptiest_blocks(&self, zone: Option<ZoneId>, out: &mut [BlockId]) -> usize {
        // Rank by rank over the zones, so that one zone's full blocks do not crowd out another's empty ones. Blocks
        // with a lasting refusal are filed elsewhere; those with a momentary one are few.
        let mut count = 0;
        for rank in (0..RANKS).rev() {
            for zone in self.zones_of(zone) {
                let (zone, bucket) = (self.zone(zone), room_bucket(kind::MOVABLE, rank));
                for block in zone.by_room.blocks(bucket, zone.first) {
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

    /// One zone or all.
    fn zones_of(&self, only: Option<ZoneId>) -> impl Iterator<Item = ZoneId> + use<> {
        self.zones()
            .filter(move |&zone| only.is_none_or(|only| zone == only))
    }

    /// Fills `out` with blocks that compaction may empty, cheapest first; gives how many, at most 64.
    ///
    /// Candidates are open, of movable type, hold at least one frame and none that cannot move, and are not refused
    /// ([`refuse_block`](Self::refuse_block)). Unless [`Config::cost`](crate::Config::cost) says otherwise a moved
    /// frame costs 1, a balloon frame an eighth. The index sorts in steps of 32 frames; the result is sorted exactly.
    pub fn cheapest_blocks(&self, zone: Option<ZoneId>, out: &mut [BlockId]) -> usize {
        let most = out.len().min(MAX_SORTED);
        let out = &mut out[..most];
        // Rank by rank over the zones, so that one zone's expensive blocks do not crowd out another's cheap ones.
        let mut count = 0;
        for rank in 0..RANKS {
            for zone in self.zones_of(zone) {
                let zone = self.zone(zone);
                let blocks = zone.by_cost.blocks(rank, zone.first);
                count += fill(&mut out[count..], blocks);
            }
        }
        for &block in &out[..count] {
            // It may have become dearer since it was filed: then the next look finds others in its place.
            self.refile_block(block);
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

    /// What emptying `block` costs if nothing is known of its frames: by its ledger alone, as if its tally were 0.
    pub fn cost_without_tally(&self, block: BlockId) -> usize {
        self.cost_by_ledger(block)
    }

    /// Fills `out` with blocks that hold balloon frames, first those with the fewest frames of others; gives how
    /// many, at most 64.
    pub fn healing_blocks(&self, out: &mut [BlockId]) -> usize {
        let most = out.len().min(MAX_SORTED);
        let out = &mut out[..most];
        let mut count = 0;
        for bucket in core::iter::once(BEGUN_BUCKET).chain(0..RANKS) {
            for zone in self.zones().map(|zone| self.zone(zone)) {
                let blocks = zone.by_heal.blocks(bucket, zone.first);
                count += fill(&mut out[count..], blocks);
            }
        }
        sort_by_one_look(&mut out[..count], &|block| {
            let ledger = self.ledger(block);
            (u32::from(ledger.unmovable()), u32::from(ledger.movable()))
        });
        count
    }

    /// Whether `block` holds movable or balloon frames together with others that cannot move; reserved ones do not
    /// count.
    #[inline(never)]
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

    /// The frames of `block` that are not free, without the reserved ones, ascending, as they are at the time of the
    /// look.
    pub fn used_frames(&self, block: BlockId) -> impl Iterator<Item = Pfn> + '_ {
        let huge = self.ledger(block).state() == BlockState::Huge;
        let start = self.block_start(block);
        block
            .first_frame()
            .run(FRAMES_PER_BLOCK)
            .filter_map(move |frame| {
                let state = self.descriptor_at(frame).load().state();
                let used = huge || !matches!(state, FrameState::Free | FrameState::Reserved);
                used.then(|| start.plus(u64::from(frame.offset())))
            })
    }
}

/// Fills `out`; gives how many there were.
fn fill(out: &mut [BlockId], blocks: impl Iterator<Item = BlockId>) -> usize {
    out.iter_mut()
        .zip(blocks)
        .map(|(place, block)| *place = block)
        .count()
}

/// Sorts the frames of a message by Shell's method, with the gaps of Ciura (2001). They are 256 at most, in runs of a
/// block each: the library's sort would hardly be faster, and is six times as much code.
#[inline(never)]
fn sort(frames: &mut [Pfn]) {
    for gap in [132, 57, 23, 10, 4, 1] {
        for end in gap..frames.len() {
            let mut at = end;
            while let Some(before) = at.checked_sub(gap)
                && frames[before] > frames[at]
            {
                frames.swap(before, at);
                at = before;
            }
        }
    }
}

/// The most blocks that are sorted at once.
const MAX_SORTED: usize = 64;

/// Sorts at most [`MAX_SORTED`] blocks by `key`, then by number. The ledgers change meanwhile, so each block's key is
/// read once: a sort that reads it for each comparison may meet an inconsistent order, and panic.
///
/// By insertion: the index gives them nearly sorted, and the library's sort is ten times as much code.
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn frames_are_sorted_however_many() {
        let mut state = 7u64;
        for count in 0..300 {
            let mut frames: std::vec::Vec<Pfn> = (0..count)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    Pfn::new(state >> 44)
                })
                .collect();
            let mut expected = frames.clone();
            expected.sort_unstable();
            sort(&mut frames);
            assert_eq!(frames, expected);
        }
    }
}
