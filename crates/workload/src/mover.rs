//! The mover: moves every frame of the full balloon, several times, while the load runs.
//!
//! Compaction moves only the frames that are in its way. The mover moves all of them: it shows that a whole balloon can
//! be moved under load, and what that costs.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use dirigible_balloon::MAX_PFNS;
use dirigible_frames::{
    AllocRequest, Cost, FrameClass, FrameState, Order, OwnerId, PageTables, Pfn,
};
use dirigible_mobility::{Mobility, MovePair, Outcome};
use dirigible_paging::PageSource;

use crate::{
    balloon::BalloonControl,
    control::{Control, Stage},
    tuning::{MOVER_BATCHES, MOVER_LOOK, MOVER_TICK},
};
use dirigible::schedule::{Actor, Next};

/// Frames that are isolated and moved together: what one message holds.
const BATCH: usize = MAX_PFNS;

/// What a mover needs.
pub struct MoverParts<'k, 'm, P: PageTables> {
    /// The balloon.
    pub balloon: &'k dyn BalloonControl,
    /// The owner id of its frames.
    pub owner: OwnerId,
    /// Compaction, which moves them.
    pub mobility: &'k Mobility<'m, P>,
    /// The source of the target frames.
    pub memory: &'k dyn PageSource,
    /// Says when the load has ended, and counts the rounds.
    pub control: &'k Control,
}

impl<P: PageTables> MoverParts<'_, '_, P> {
    /// The state of a frame, if it is the balloon's.
    fn state(&self, frame: Pfn) -> Option<FrameState> {
        let info = self.mobility.frames().frame(frame)?;
        (info.owner == self.owner && info.class == FrameClass::Balloon).then_some(info.state)
    }
}

/// Waits until the balloon is full for the first time and then moves all its frames, round after round.
pub struct Mover<'k, 'm, P: PageTables> {
    parts: MoverParts<'k, 'm, P>,
    /// The full balloon, in frames.
    full: u64,
    /// Rounds to go.
    rounds: u64,
    seen_full: bool,
    /// Frames of this round that are still to be moved.
    left: Vec<Pfn>,
    /// Frames that could not be moved; they are tried again.
    again: Vec<Pfn>,
    pairs: Vec<MovePair>,
}

impl<'k, 'm, P: PageTables> Mover<'k, 'm, P> {
    /// A mover that waits for a balloon of `full` frames and moves all of it `rounds` times.
    pub fn new(parts: MoverParts<'k, 'm, P>, full: u64, rounds: u64) -> Self {
        Self {
            parts,
            full,
            rounds,
            seen_full: false,
            left: Vec::with_capacity(full as usize),
            again: Vec::with_capacity(full as usize),
            pairs: Vec::with_capacity(BATCH),
        }
    }

    /// Begins a round with all frames that the balloon holds now. Returns `false` if there are none.
    fn begin_round(&mut self) -> bool {
        let frames = self.parts.mobility.frames();
        let used = frames.blocks().flat_map(|block| frames.used_frames(block));
        let listed = |&frame: &Pfn| self.parts.state(frame) == Some(FrameState::Listed);
        self.left.extend(used.filter(listed));
        // Frames are taken from the end: the lowest first.
        self.left.reverse();
        !self.left.is_empty()
    }

    /// Moves one batch. Returns `false` if no frame could be isolated.
    fn move_batch(&mut self) -> bool {
        let mobility = self.parts.mobility;
        // The targets are allocated first: an allocation may compact, and must not wait for frames that the mover has
        // isolated.
        while self.pairs.len() < BATCH.min(self.left.len()) {
            let Ok(to) = self.parts.memory.alloc(AllocRequest::movable()) else {
                break;
            };
            self.pairs.push(MovePair::base(to, to));
        }
        let mut isolated = 0;
        while isolated < self.pairs.len()
            && let Some(frame) = self.left.pop()
        {
            match self.take(frame) {
                Some(true) => {
                    self.pairs[isolated].from = frame;
                    isolated += 1;
                }
                Some(false) => self.again.push(frame),
                None => {}
            }
        }
        for unused in self.pairs.drain(isolated..) {
            self.parts.memory.free(unused.to, Order::BASE);
        }
        mobility.platform().charge(Cost::Isolate(isolated as u32));
        mobility.migrate_frames(&mut self.pairs);
        let moved = |pair: &MovePair| matches!(pair.outcome, Outcome::Moved | Outcome::Released);
        let stayed = self.pairs.iter().filter(|pair| !moved(pair));
        self.again.extend(stayed.map(|pair| pair.from));
        self.pairs.clear();
        isolated > 0
    }

    /// Isolates a frame of the round. Returns whether that succeeded, or `None` if the frame is no longer the
    /// balloon's.
    fn take(&self, frame: Pfn) -> Option<bool> {
        self.parts.state(frame)?;
        if !self.parts.mobility.isolate(frame) {
            return Some(false);
        }
        // If it was given back between the two reads, it may have any owner now, even be part of a huge page. Only an
        // isolated frame keeps its owner.
        if self.parts.state(frame) != Some(FrameState::Isolated) {
            self.parts.mobility.putback_movable_frames(&[frame]);
            return None;
        }
        Some(true)
    }

    /// Collects the frames of the round that are still to be moved: those refused or under way. Frames that the balloon
    /// no longer holds were given back, or moved by the mover or by compaction.
    fn take_again(&mut self) {
        let mut again = core::mem::take(&mut self.again);
        again.retain(|&frame| {
            matches!(
                self.parts.state(frame),
                Some(FrameState::Listed | FrameState::Isolated)
            )
        });
        // The two buffers are swapped, so that none is allocated.
        self.again = core::mem::replace(&mut self.left, again);
    }
}

impl<P: PageTables> Actor for Mover<'_, '_, P> {
    fn step(&mut self, now: u64) -> Next {
        if self.parts.control.stage() != Stage::Loaded || self.rounds == 0 {
            return Next::Done;
        }
        if !self.seen_full {
            if self.parts.balloon.actual() < self.full {
                return Next::At(now + MOVER_LOOK);
            }
            self.seen_full = true;
            if !self.begin_round() {
                return Next::Done;
            }
        }
        for _ in 0..MOVER_BATCHES {
            if self.left.is_empty() || !self.move_batch() {
                break;
            }
        }
        if self.left.is_empty() {
            self.take_again();
        }
        if self.left.is_empty() {
            // Relaxed: a sum for the report.
            let rounds = &self.parts.control.balloon_rounds;
            rounds.fetch_add(1, Ordering::Relaxed);
            self.rounds -= 1;
            if self.rounds == 0 || !self.begin_round() {
                return Next::Done;
            }
        }
        Next::At(now + MOVER_TICK)
    }
}
