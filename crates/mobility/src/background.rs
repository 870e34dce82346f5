//! Background compaction (kcompactd): keeps a reserve of wholly free blocks.

use arrayvec::ArrayVec;
use dirigible_frames::sync::Ordering;
use dirigible_frames::{BlockId, CpuId, Event, Platform};

use crate::config::{MAX_BATCH_BLOCKS, WORKSPACE_FRAMES};
use crate::mobility::{Working, Workspace};
use crate::{EvacuateError, Mobility};

/// What one call of background compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackgroundResult {
    /// Blocks emptied and opened again, wholly free.
    pub emptied: usize,
    /// The call stopped at its limit: another one right away would go on. False when the goal is reached, when
    /// nothing could be done, and while failures defer it: come back later.
    pub more: bool,
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Whether background compaction has work: it has begun and not reached its goal, or should begin. Also true while
    /// failures defer it, so call [`compact_background`](Self::compact_background) at a pace, and at once again only
    /// when that says `more`.
    pub fn wants_background(&self) -> bool {
        // Relaxed: a hint; `compact_background` looks again under the compaction lock.
        if self.background_runs.load(Ordering::Relaxed) {
            self.below(self.config.reserve_high)
        } else {
            self.below(self.config.reserve_low)
        }
    }

    /// Whether fewer blocks are wholly free than `mark`; with the reserve off, whether a zone is below its low watermark
    /// without any.
    fn below(&self, mark: u64) -> bool {
        if self.config.reserve_low > 0 {
            return self.frames.free_blocks() < mark;
        }
        self.zone_ids().any(|zone| {
            self.frames.zone_free_blocks(zone) == 0
                && self.frames.zone_free_frames(zone) < self.frames.watermarks(zone).low
        })
    }

    /// Empties up to `max_blocks` blocks, several together, as long as the reserve is short: it begins below
    /// `reserve_low` wholly free blocks and ends at `reserve_high`. Gives up after `budget_blocks` vain rounds, or when
    /// targets are short even for one block. Never waits for the compaction lock.
    pub fn compact_background(&self, cpu: CpuId, max_blocks: usize) -> BackgroundResult {
        let mut result = BackgroundResult::default();
        if max_blocks == 0 || !self.wants_background() {
            // Relaxed, here and below: written by whoever runs; the others take it for a hint.
            self.background_runs.store(false, Ordering::Relaxed);
            return result;
        }
        let Some(mut working) = self.try_work(cpu) else {
            return result;
        };
        let Workspace {
            background,
            refusals,
            ..
        } = &mut *working;
        if !background.may_try(&self.config, || self.prospect(refusals)) {
            return result;
        }
        if !self.background_runs.swap(true, Ordering::Relaxed) {
            self.frames.events().add(cpu, Event::CompactDaemonWake, 1);
        }
        let mut together = self.config.blocks_per_batch;
        let mut misses = 0;
        // Every round empties a block, or makes the batch smaller, or is one of a few misses.
        while result.emptied < max_blocks && self.below(self.config.reserve_high) {
            let batch = self.choose(cpu, together.min(max_blocks - result.emptied), &mut working);
            let (emptied, short) = self.empty_batch(cpu, &batch, &mut working);
            result.emptied += emptied;
            if emptied > 0 {
                working.background.succeeded();
                continue;
            }
            misses += 1;
            if short && batch.len() > 1 {
                // Blocks of one batch do not serve each other as targets; fewer of them leave more.
                together = batch.len() / 2;
            } else if short || batch.is_empty() || misses >= self.config.budget_blocks {
                let Workspace {
                    background,
                    refusals,
                    ..
                } = &mut *working;
                background.failed(&self.config, self.prospect(refusals));
                return result;
            }
            // Else all of the batch refused: that is remembered, and the next round looks elsewhere.
        }
        result.more = self.below(self.config.reserve_high);
        self.background_runs.store(result.more, Ordering::Relaxed);
        result
    }

    /// The cheapest blocks that fit into one evacuation and are wanted.
    fn choose(
        &self,
        cpu: CpuId,
        most: usize,
        working: &mut Working<'_>,
    ) -> ArrayVec<BlockId, MAX_BATCH_BLOCKS> {
        let missing = self
            .config
            .reserve_high
            .saturating_sub(self.frames.free_blocks())
            .max(1);
        let most = most
            .min(usize::try_from(missing).unwrap_or(usize::MAX))
            .min(MAX_BATCH_BLOCKS);
        let mut room = WORKSPACE_FRAMES as u32;
        let mut chosen = ArrayVec::new();
        for block in self.candidates(cpu, None, &mut working.refusals) {
            let used = self.used(block);
            if chosen.len() == most {
                break;
            }
            let fits = used <= room && used <= u32::from(self.config.background_max_used);
            if fits && self.has_targets(block) {
                room -= used;
                chosen.push(block);
            }
        }
        chosen
    }

    /// Evacuates a batch and opens what was emptied; gives how many blocks that is, and whether targets were short.
    fn empty_batch(
        &self,
        cpu: CpuId,
        batch: &[BlockId],
        working: &mut Working<'_>,
    ) -> (usize, bool) {
        let (jobs, stats) = self.evacuate_blocks(cpu, working, batch);
        self.frames.events().add(
            cpu,
            Event::CompactDaemonMigrated,
            stats.moved + stats.released,
        );
        let (mut emptied, mut short) = (0, false);
        for job in jobs {
            short |= job.error == Some(EvacuateError::NoTargets);
            if let Some(block) = job.token {
                self.frames.unisolate_block(block);
                emptied += 1;
            }
        }
        (emptied, short)
    }
}
