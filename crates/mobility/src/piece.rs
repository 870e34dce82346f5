//! A piece of background compaction: rounds, each of some blocks of one zone that are emptied together. It can stop
//! wherever it would have to wait, and go on later.

use arrayvec::ArrayVec;
use dirigible_frames::sync::Ordering;
use dirigible_frames::{BlockId, CpuId, Event, MAX_ZONES, Platform, ZoneId};

use crate::background::BackgroundResult;
use crate::config::{MAX_BATCH_BLOCKS, WORKSPACE_FRAMES};
use crate::empty::{Emptying, Turn};
use crate::evacuate::Attempts;
use crate::plan::Purpose;
use crate::workspace::Workspace;
use crate::zone::ZoneState;
use crate::{EvacuateError, Mobility};

/// A piece of work, with what it needs between two turns beside a workspace.
pub(crate) struct Piece {
    /// Blocks that it empties at most.
    max_blocks: usize,
    /// Zones in which something may be done.
    zones: ArrayVec<ZoneId, MAX_ZONES>,
    /// When it gives up what is still pending.
    pub(crate) deadline: u64,
    /// Blocks that are tried together.
    together: usize,
    /// Rounds that emptied nothing.
    misses: usize,
    result: BackgroundResult,
    /// The round that is not over.
    round: Option<Round>,
}

/// Blocks of one zone that are being emptied together.
struct Round {
    zone: ZoneId,
    attempts: Attempts,
    emptying: Emptying,
}

/// How a round ended.
#[derive(Default)]
struct Ended {
    /// Blocks tried.
    tried: usize,
    /// Blocks emptied among them.
    emptied: usize,
    /// Room was short: fewer blocks together may go.
    short: bool,
    /// The host had not answered in time.
    late: bool,
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// A piece of up to `max_blocks` blocks; `None` while failures defer it in all zones, or somebody has their locks.
    pub(crate) fn begin_piece(&self, cpu: CpuId, max_blocks: usize) -> Option<Piece> {
        let zones: ArrayVec<ZoneId, MAX_ZONES> = self
            .zone_ids()
            .filter(|&zone| self.may_try_background(zone))
            .collect();
        if zones.is_empty() {
            return None;
        }
        // Relaxed, here and below: written by whoever runs; the others take it for a hint.
        if !self.background_runs.swap(true, Ordering::Relaxed) {
            self.frames.events().add(cpu, Event::CompactDaemonWake, 1);
        }
        Some(Piece {
            max_blocks,
            zones,
            deadline: self.deadline(),
            together: self.config.blocks_per_batch,
            misses: 0,
            result: BackgroundResult::default(),
            round: None,
        })
    }

    /// Goes on with a piece until it is over, which gives its result, or until nothing settles. Never waits itself;
    /// an owner that is polled may wait until `until`.
    #[inline(never)]
    pub(crate) fn go_on(
        &self,
        cpu: CpuId,
        piece: &mut Piece,
        space: &mut Workspace,
        until: u64,
    ) -> Option<BackgroundResult> {
        // Every round empties a block, makes the batch smaller, gives a zone up, or is one of a few misses.
        loop {
            if piece.round.is_none() {
                piece.round = self.next_round(cpu, piece, space);
            }
            let Some(round) = &mut piece.round else {
                return Some(piece.result);
            };
            let (attempts, emptying) = (&mut round.attempts, &mut round.emptying);
            match self.turn(cpu, space, attempts, emptying, until) {
                Turn::Nothing => return None,
                Turn::Progress => {}
                Turn::Over => {
                    if self.end_round(cpu, piece) {
                        return Some(piece.result);
                    }
                }
            }
        }
    }

    /// Lets the owners of pending pairs answer, without waiting: for a piece that goes on when its time may be over.
    pub(crate) fn take_answers(&self, piece: &Piece) {
        if let Some(round) = &piece.round {
            self.poll_owners(round.emptying.owners, self.platform.now());
        }
    }

    /// Ends a piece as if its time was over, without waiting.
    pub(crate) fn give_up(&self, cpu: CpuId, piece: &mut Piece, space: &mut Workspace) {
        let Some(round) = &mut piece.round else {
            return;
        };
        round.emptying.deadline = 0;
        // With the time over, only a few looks at each block are left.
        while self.turn(cpu, space, &mut round.attempts, &mut round.emptying, 0) != Turn::Over {}
        self.end_round(cpu, piece);
    }

    #[inline(never)]
    fn may_try_background(&self, zone: ZoneId) -> bool {
        self.try_zone_state(zone).is_some_and(|mut state| {
            state.background.may_try(&self.config, || {
                self.prospect(zone, Purpose::Reserve.leaves())
            })
        })
    }

    /// Chooses blocks of the cheapest zone and begins them; `None` when the piece is over.
    #[inline(never)]
    fn next_round(&self, cpu: CpuId, piece: &mut Piece, space: &mut Workspace) -> Option<Round> {
        while piece.result.emptied < piece.max_blocks && self.below(self.config.reserve_high) {
            let zone = self.cheapest_zone(&piece.zones)?;
            let most = piece.together.min(piece.max_blocks - piece.result.emptied);
            if let Some(mut state) = self.try_zone_state(zone) {
                self.forgive(zone, &mut state);
                let batch = self.choose(zone, &mut state, most);
                let (attempts, used) = self.begin_blocks(cpu, space, &batch, Purpose::Reserve);
                drop(state);
                let emptying = self.begin_emptying(space, used, piece.deadline);
                return Some(Round {
                    zone,
                    attempts,
                    emptying,
                });
            }
            // Another CPU chooses a block there.
            piece.zones.retain(|other| *other != zone);
        }
        piece.result.more = self.below(self.config.reserve_high);
        self.background_runs
            .store(piece.result.more, Ordering::Relaxed);
        None
    }

    /// Opens the emptied blocks of the round, and notes how it ended; whether the piece is over with it.
    fn end_round(&self, cpu: CpuId, piece: &mut Piece) -> bool {
        let Some(round) = piece.round.take() else {
            return true;
        };
        let zone = round.zone;
        let stats = round.emptying.stats;
        self.frames.events().add(
            cpu,
            Event::CompactDaemonMigrated,
            stats.moved + stats.released,
        );
        self.tell_emptied(&round.attempts);
        let ended = self.open_emptied(round.attempts);
        piece.result.emptied += ended.emptied;
        if ended.emptied > 0 {
            if let Some(mut state) = self.try_zone_state(zone) {
                state.background.succeeded();
            }
            return false;
        }
        piece.misses += 1;
        if ended.short && ended.tried > 1 {
            // Blocks of one batch do not serve each other as targets; fewer of them leave more.
            piece.together = ended.tried / 2;
        } else if ended.short || ended.late || ended.tried == 0 {
            piece.zones.retain(|other| *other != zone);
            if let Some(mut state) = self.try_zone_state(zone) {
                state
                    .background
                    .failed(&self.config, self.prospect(zone, Purpose::Reserve.leaves()));
            }
        }
        // The host is slow and gets no more work now, or all that was tried refused: the next piece looks at others.
        ended.late || piece.misses >= self.config.budget_blocks
    }

    fn open_emptied(&self, attempts: Attempts) -> Ended {
        let mut ended = Ended {
            tried: attempts.len(),
            ..Ended::default()
        };
        for attempt in attempts {
            match attempt.result() {
                Ok(block) => {
                    self.frames.unisolate_block(block);
                    ended.emptied += 1;
                }
                Err(error) => {
                    ended.short |= error.wants_room();
                    ended.late |= error == EvacuateError::TimedOut;
                }
            }
        }
        ended
    }

    /// The zone with the cheapest candidate; the first, where there is none.
    fn cheapest_zone(&self, zones: &[ZoneId]) -> Option<ZoneId> {
        zones
            .iter()
            .copied()
            .min_by_key(|&zone| self.cheapest_cost(zone))
    }

    /// The cheapest blocks of a zone that fit into one evacuation and are wanted; where there are none, one on
    /// probation.
    fn choose(
        &self,
        zone: ZoneId,
        state: &mut ZoneState,
        most: usize,
    ) -> ArrayVec<BlockId, MAX_BATCH_BLOCKS> {
        let missing = self
            .config
            .reserve_high
            .saturating_sub(self.frames.free_blocks())
            .max(1);
        let most = most.min(usize::try_from(missing).unwrap_or(usize::MAX));
        let drops = self.most_drops(zone, Purpose::Reserve);
        let most = self.blocks_with_room(zone, Purpose::Reserve.leaves(), most, drops);
        let mut room = WORKSPACE_FRAMES;
        let mut chosen = ArrayVec::new();
        if most == 0 {
            return chosen;
        }
        let wanted = usize::from(self.config.background_max_used);
        let mut owed = self.owed(zone, Purpose::Reserve);
        let mut candidates = self.cheapest_and_emptiest(zone);
        while let Some(candidate) = self.take_best(&mut candidates, owed) {
            let block = candidate.block();
            let used = self.examine(block);
            if used <= room && used <= wanted {
                room -= used;
                owed -= candidate.saved(owed);
                chosen.push(block);
            }
            if chosen.len() == most {
                break;
            }
        }
        if chosen.is_empty() {
            let retry = self.on_probation(zone, state);
            chosen.extend(retry.filter(|&block| self.examine(block) <= wanted));
        }
        chosen
    }
}
