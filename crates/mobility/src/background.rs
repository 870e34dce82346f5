//! Background compaction (kcompactd): keeps a reserve of wholly free blocks.

use arrayvec::ArrayVec;
use dirigible_frames::sync::Ordering;
use dirigible_frames::{BlockId, CpuId, Event, MAX_ZONES, Platform, Watermark, ZoneId};

use crate::config::{MAX_BATCH_BLOCKS, WORKSPACE_FRAMES};
use crate::place::Lease;
use crate::zone::ZoneState;
use crate::{EvacuateError, Mobility};

/// What background compaction leaves to the requests of others while it has frames set aside.
const LEAVES: Watermark = Watermark::Low;

/// What one call of background compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackgroundResult {
    /// Blocks emptied and opened again, wholly free.
    pub emptied: usize,
    /// The call stopped at its limit: another one right away would go on. False when the goal is reached, when
    /// nothing could be done, and while failures defer it: come back later.
    pub more: bool,
}

/// How one round in one zone ended.
#[derive(Default)]
struct Round {
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
    /// Whether background compaction has work: it has begun and not reached its goal, or should begin. Also true while
    /// failures defer it, so call [`compact_background`](Self::compact_background) at a pace, and at once again only
    /// when that says `more`.
    pub fn wants_background(&self) -> bool {
        // Relaxed: a hint; `compact_background` looks again.
        if self.background_runs.load(Ordering::Relaxed) {
            self.below(self.config.reserve_high)
        } else {
            self.below(self.config.reserve_low)
        }
    }

    /// Whether fewer blocks are wholly free than `mark`; with the reserve off, whether a zone has enough free memory and
    /// no wholly free block.
    #[inline(never)]
    fn below(&self, mark: u64) -> bool {
        if self.config.reserve_low > 0 {
            return self.frames.free_blocks() < mark;
        }
        self.zone_ids().any(|zone| {
            self.frames.zone_free_blocks(zone) == 0
                && self.frames.zone_free_frames(zone) >= self.frames.watermarks(zone).high
        })
    }

    /// Empties up to `max_blocks` blocks, several together, as long as the reserve is short: it begins below
    /// `reserve_low` wholly free blocks and ends at `reserve_high`. What it sets aside meanwhile leaves each zone its low
    /// watermark, so that the requests of others succeed. A zone is left alone when nothing can be done in it; the call
    /// ends after `budget_blocks` vain rounds, and when the host does not answer in time. Never waits for a lock.
    pub fn compact_background(&self, cpu: CpuId, max_blocks: usize) -> BackgroundResult {
        let mut result = BackgroundResult::default();
        if max_blocks == 0 || !self.wants_background() {
            // Relaxed, here and below: written by whoever runs; the others take it for a hint.
            self.background_runs.store(false, Ordering::Relaxed);
            return result;
        }
        let Some(mut lease) = self.try_lease(cpu) else {
            return result;
        };
        let mut zones: ArrayVec<ZoneId, MAX_ZONES> = self
            .zone_ids()
            .filter(|&zone| self.may_try_background(zone))
            .collect();
        if zones.is_empty() {
            return result;
        }
        if !self.background_runs.swap(true, Ordering::Relaxed) {
            self.frames.events().add(cpu, Event::CompactDaemonWake, 1);
        }
        let deadline = self.deadline();
        let mut together = self.config.blocks_per_batch;
        let mut misses = 0;
        // Every round empties a block, makes the batch smaller, gives a zone up, or is one of a few misses.
        while result.emptied < max_blocks && self.below(self.config.reserve_high) {
            let Some(zone) = self.cheapest_zone(&zones) else {
                return result;
            };
            let most = together.min(max_blocks - result.emptied);
            let Some(round) = self.background_round(cpu, zone, most, &mut lease, deadline) else {
                // Somebody else chooses a block there: it is in good hands.
                zones.retain(|other| *other != zone);
                continue;
            };
            result.emptied += round.emptied;
            if round.emptied > 0 {
                if let Some(mut state) = self.try_zone_state(zone) {
                    state.background.succeeded();
                }
                continue;
            }
            misses += 1;
            if round.short && round.tried > 1 {
                // Blocks of one batch do not serve each other as targets; fewer of them leave more.
                together = round.tried / 2;
            } else if round.short || round.late || round.tried == 0 {
                zones.retain(|other| *other != zone);
                if let Some(mut state) = self.try_zone_state(zone) {
                    state
                        .background
                        .failed(&self.config, self.prospect(zone, LEAVES));
                }
            }
            if round.late || misses >= self.config.budget_blocks {
                // The host is slow and gets no more work now, or all that was tried refused: the next call looks at others.
                return result;
            }
        }
        result.more = self.below(self.config.reserve_high);
        self.background_runs.store(result.more, Ordering::Relaxed);
        result
    }

    #[inline(never)]
    fn may_try_background(&self, zone: ZoneId) -> bool {
        self.try_zone_state(zone).is_some_and(|mut state| {
            state
                .background
                .may_try(&self.config, || self.prospect(zone, LEAVES))
        })
    }

    /// The zone with the cheapest candidate; the first, where there is none.
    fn cheapest_zone(&self, zones: &[ZoneId]) -> Option<ZoneId> {
        zones
            .iter()
            .copied()
            .min_by_key(|&zone| self.cheapest_cost(zone))
    }

    /// Chooses blocks of a zone, empties them together and opens them; `None` when somebody else has the zone's lock.
    fn background_round(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        most: usize,
        lease: &mut Lease<'_>,
        deadline: u64,
    ) -> Option<Round> {
        let (batch, mut attempts, used) = {
            let mut state = self.try_zone_state(zone)?;
            self.forgive(zone, &mut state);
            let batch = self.choose(zone, &mut state, most);
            let (attempts, used) = self.begin_blocks(cpu, lease, &batch, LEAVES);
            (batch, attempts, used)
        };
        let stats = self.empty_blocks(cpu, lease, &mut attempts, used, deadline);
        self.frames.events().add(
            cpu,
            Event::CompactDaemonMigrated,
            stats.moved + stats.released,
        );
        let mut round = Round {
            tried: batch.len(),
            ..Round::default()
        };
        for attempt in attempts {
            match attempt.result() {
                Ok(block) => {
                    self.frames.unisolate_block(block);
                    round.emptied += 1;
                }
                Err(error) => {
                    round.short |= error.wants_room();
                    round.late |= error == EvacuateError::TimedOut;
                }
            }
        }
        Some(round)
    }

    /// The cheapest blocks of a zone that fit into one evacuation and are wanted; where there are none, one on probation.
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
        let most = self.blocks_with_room(zone, LEAVES, most);
        let mut room = WORKSPACE_FRAMES;
        let mut chosen = ArrayVec::new();
        if most == 0 {
            return chosen;
        }
        let wanted = usize::from(self.config.background_max_used);
        for block in self.cheapest_and_emptiest(zone) {
            let used = self.examine(block);
            if used <= room && used <= wanted {
                room -= used;
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
