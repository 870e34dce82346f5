//! The clock hand: which block is looked at next.

use dirigible_frames::{
    BLOCK_SHIFT, BlockId, Cost, FRAMES_PER_BLOCK, FreeError, Order, OwnerId, Pfn, Platform,
    sync::{AtomicU32, AtomicU64, Ordering},
};

use crate::{
    Evictable, Kind, Reclaimer, Who,
    generations::generation,
    shares::{Draws, Shares},
    swapping::Leaving,
    visit::{Outcome, Visitor, Wanted},
    zones::Zones,
};

/// Background reclaim never gets to priority 0.
pub(crate) const LAST_OF_KSWAPD: u8 = 1;

/// Who reclaims, and how hard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub who: Who,
    /// 12 at first, 0 at last: a pass looks at the 2^priority-th part of all frames.
    pub priority: u8,
    /// Frames to be freed at most, roughly.
    pub goal: u64,
    /// What they are for.
    pub order: Order,
    /// Frames to be given to swap at most, roughly.
    pub swaps: u64,
    /// Zones whose frames are wanted.
    pub zones: Zones,
}

impl Effort {
    /// Whether there is no lower priority: then both kinds are taken.
    fn is_last(&self) -> bool {
        match self.who {
            Who::Kswapd => self.priority <= LAST_OF_KSWAPD,
            Who::Direct | Who::Operator => self.priority == 0,
        }
    }
}

/// What a pass has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Pass {
    /// Frames that were looked at.
    pub scanned: u64,
    /// Frames of these that were freed.
    pub freed: u64,
    /// That became young.
    pub activated: u64,
    /// Dirty ones that were only marked.
    pub immediate: u64,
    /// Dirty ones for which there was no room at the disk.
    pub unwritten: u64,
    /// Frames whose writing was begun.
    pub written: u64,
    /// Frames that swap has been given: they are being written, and become free later. Whoever ends the writes counts
    /// them as such.
    pub swapped: u64,
    /// That were left alone because of their kind's share, or because swap had been given enough.
    pub spared: u64,
    /// Of zones that have enough: they only aged.
    pub passed: u64,
    /// That were being written.
    pub writeback: u64,
}

/// Where the hand points, for all who reclaim.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    /// A block's number, and a frame in it.
    at: AtomicU64,
    /// Who looks through a block whose bit they have cleared.
    walkers: AtomicU32,
    draws: Draws,
}

/// Dropped frames that are freed together.
const BATCH: usize = 32;
/// How often somebody looks again for a block while others walk, before all generations age.
const LOOKS: u32 = 1000;

/// Dropped frames on their way to the allocator.
struct Dropped {
    frames: [Pfn; BATCH],
    count: usize,
}

impl<P: Platform> Reclaimer<'_, P> {
    /// Looks at up to `budget` frames of the oldest generation, and frees up to about `effort.goal` frames in all of
    /// `pass`. Gives how many frames it looked at: 0 if there are none.
    pub(crate) fn walk(&self, effort: Effort, budget: u64, pass: &mut Pass) -> u64 {
        let before = *pass;
        let end = pass.scanned + budget;
        let mut aged = 0;
        let mut dropped = Dropped {
            frames: [Pfn::default(); BATCH],
            count: 0,
        };
        let mut leaving = Leaving::new();
        let mut visitor = self.visitor(effort);
        // What reclaim has waited for is the first to go. Between it and where the hand was there is nothing else of the
        // oldest generation, or little.
        if let Some(block) = self.generations.written_block() {
            let at = (block.index() as u64) << BLOCK_SHIFT;
            self.hand.at.store(at, Ordering::Relaxed);
        }
        while pass.scanned < end && pass.freed + (dropped.count as u64) < effort.goal {
            visitor.sequence = self.generations.oldest_sequence();
            let at = self.hand.at.load(Ordering::Relaxed);
            let blocks = self.generations.blocks(visitor.oldest());
            let (block, offset) = ((at >> BLOCK_SHIFT) as usize, at as usize % FRAMES_PER_BLOCK);
            match blocks.next(block) {
                Some(next) => {
                    let offset = if next.index() == block { offset } else { 0 };
                    self.walk_block(
                        &visitor,
                        next,
                        offset,
                        end,
                        &mut dropped,
                        &mut leaving,
                        pass,
                    );
                }
                // All of one walk: each generation is looked at once.
                None if aged == 4 || self.generations.size() == 0 => break,
                None => {
                    self.grow_older(visitor.sequence);
                    aged += 1;
                }
            }
        }
        leaving.give(pass);
        self.free_dropped(&mut dropped, pass);
        visitor.count(&before, pass);
        let scanned = pass.scanned - before.scanned;
        self.platform.charge(Cost::Scan(scanned as u32));
        if pass.freed > before.freed {
            let freed = (pass.freed - before.freed) as u32;
            self.platform.charge(Cost::Reclaim(freed));
        }
        scanned
    }

    fn visitor(&self, effort: Effort) -> Visitor<'_, '_, P> {
        Visitor {
            generations: self.generations,
            platform: self.platform,
            config: &self.config,
            effort,
            shares: self.shares(&effort),
            draws: &self.hand.draws,
            sequence: 0,
        }
    }

    /// Which part of each kind a walk takes. Without swap, or without room in it, all of the files' frames.
    fn shares(&self, effort: &Effort) -> Shares {
        let mut swaps = false;
        self.each_owner(|owner| swaps |= owner.kind() == Kind::Anonymous && owner.has_swap());
        if swaps && !effort.is_last() {
            Shares::new(self.generations.costs(), self.config.swappiness)
        } else {
            Shares::ALL
        }
    }

    /// Looks through a block from its frame `offset` on. A walk from its beginning to its end clears its bit.
    #[expect(clippy::too_many_arguments, reason = "the state of one walk")]
    fn walk_block<'s>(
        &'s self,
        visitor: &Visitor<'_, '_, P>,
        block: BlockId,
        offset: usize,
        end: u64,
        dropped: &mut Dropped,
        leaving: &mut Leaving<'s>,
        pass: &mut Pass,
    ) {
        let frames = self.generations.frames();
        let oldest = visitor.oldest();
        let blocks = self.generations.blocks(oldest);
        let clears = offset == 0;
        if clears {
            // Before the bit is cleared: who finds no bit must know that somebody is at it.
            self.hand.walkers.fetch_add(1, Ordering::SeqCst);
            blocks.clear(block);
        }
        let first = frames.block_start(block);
        let takes = visitor.effort.zones.has(frames.zone_of_block(block));
        let mut known: (OwnerId, Option<&dyn Evictable>) = (OwnerId::NONE, None);
        let mut stopped = None;
        let mut from = offset;
        while let Some(at) = frames.next_of_generation(block, from, oldest) {
            let enough = pass.freed + dropped.count as u64 >= visitor.effort.goal;
            if pass.scanned >= end || enough {
                stopped = Some(at);
                break;
            }
            from = at + 1;
            let frame = first.plus(at as u64);
            let owner = frames.owner(frame);
            if owner != known.0 {
                known = (owner, self.owner(owner));
            }
            // Those that turn out to be in use leave room for others.
            if pass.swapped + leaving.frames() >= visitor.effort.swaps {
                leaving.give(pass);
            }
            let wanted = Wanted {
                any: takes,
                swap: pass.swapped + leaving.frames() < visitor.effort.swaps,
            };
            match visitor.visit(frame, known, wanted, pass) {
                Outcome::Stays => {}
                Outcome::Dropped => self.dropped(frame, dropped, pass),
                Outcome::Leaves => {
                    if let (id, Some(owner)) = known {
                        leaving.add(frame, (id, owner), frames, pass);
                    }
                }
            }
        }
        let (block_number, next) = (block.index() as u64, stopped.unwrap_or(FRAMES_PER_BLOCK));
        if clears && stopped.is_some() {
            blocks.set(block);
        }
        if clears {
            self.hand.walkers.fetch_sub(1, Ordering::SeqCst);
        }
        // Two who walk may set each other back a little.
        let at = (block_number << BLOCK_SHIFT) + next as u64;
        self.hand.at.store(at, Ordering::Relaxed);
        frames.refile_block(block);
    }

    /// No block has frames of the oldest generation: all become older. While somebody else still looks through such a
    /// block, the frames that he has not met yet would become young: he is waited for, a moment.
    fn grow_older(&self, seen: u32) {
        let oldest = generation(seen);
        for _ in 0..LOOKS {
            let walked = self.hand.walkers.load(Ordering::SeqCst) > 0;
            if !walked || self.generations.count(oldest) == 0 {
                break;
            }
            if self.generations.blocks(oldest).next(0).is_some() {
                return;
            }
            dirigible_frames::sync::spin_hint();
        }
        self.harvest();
        self.generations.age(self.platform.cpu(), seen);
    }

    /// Asks the owners which frames were used, unless that was done not long ago.
    fn harvest(&self) {
        let now = self.platform.now();
        // Relaxed, here and below: a pace. Of several CPUs one asks.
        let at = self.harvest_at.load(Ordering::Relaxed);
        let next = now.saturating_add(self.config.harvest_ns);
        let mine = now >= at
            && self
                .harvest_at
                .compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            self.each_owner(|owner| owner.harvest());
        }
    }

    fn dropped(&self, frame: Pfn, dropped: &mut Dropped, pass: &mut Pass) {
        dropped.frames[dropped.count] = frame;
        dropped.count += 1;
        if dropped.count == BATCH {
            self.free_dropped(dropped, pass);
        }
    }

    fn free_dropped(&self, dropped: &mut Dropped, pass: &mut Pass) {
        let frames = self.generations.frames();
        let mut left = &dropped.frames[..dropped.count];
        while !left.is_empty() {
            let Err(error) = frames.free_bulk(self.platform.cpu(), left) else {
                pass.freed += left.len() as u64;
                break;
            };
            // The owner has dropped a frame that it does not hold alone: it stays where it is.
            debug_assert!(false, "dropped, and not free: {error}");
            let at = left
                .iter()
                .position(|frame| *frame == refused(error))
                .unwrap_or(left.len() - 1);
            pass.freed += at as u64;
            left = &left[at + 1..];
        }
        dropped.count = 0;
    }
}

fn refused(error: FreeError) -> Pfn {
    match error {
        FreeError::Unknown(frame)
        | FreeError::NotAllocated(frame)
        | FreeError::Pinned(frame)
        | FreeError::Referenced(frame)
        | FreeError::WrongOrder(frame) => frame,
    }
}
