//! Compaction on behalf of one request: a block is emptied and handed to the one who asked.

use dirigible_frames::{
    CpuId, Event, FRAMES_PER_BLOCK, FrameClass, IsolatedBlock, Pfn, Platform, Watermark, ZoneId,
};

use crate::evacuate::{Attempt, Attempts};
use crate::workspace::Lease;
use crate::zone::ZoneState;
use crate::{EvacuateError, Mobility};

/// How direct compaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a captured huge page is the caller's to free"]
pub enum CompactResult {
    /// An order-9 allocation of the wanted class, `Owned` and the caller's.
    Captured(Pfn),
    /// It was begun, and gave nothing: `compact_fail`.
    Failed,
    /// It was not begun: too little is free (reclaim first), or as much compaction as there can be runs already:
    /// `compact_skipped`.
    Skipped,
    /// It was not begun, for earlier failures: `compact_deferred`.
    Deferred,
}

/// What one call may still spend.
struct Effort {
    /// Blocks to be begun.
    budget: usize,
    /// Candidates to be looked at.
    looks: usize,
    /// When nothing is waited for any more.
    deadline: u64,
}

/// How a search for one block in one zone ended.
enum Found {
    /// This block, isolated and wholly free.
    Emptied(IsolatedBlock),
    /// None: for the last one's reason, with no candidate left that could be tried.
    Exhausted(EvacuateError),
    /// None, and the effort is spent; there are more candidates.
    Spent(EvacuateError),
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Empties one block, within the budget, and gives it to the caller as a huge page of `class`.
    ///
    /// In this order: a zone must have 512 free frames above its min watermark, else `Skipped` (what is set aside outside
    /// the block and what is free in it are 512 frames together, so that it lowers a zone's free frames by just the block
    /// that is captured); a workspace must be had within a bounded wait, else `Skipped`, as nothing began (a call from
    /// inside compaction on the same CPU does not wait); in one of the zones a standing deferral must let it pass, else
    /// `Deferred`. From there on it counts as a stall, and as a success or a fail.
    ///
    /// It waits for the host no longer than [`pending_timeout_ns`](crate::CompactionConfig::pending_timeout_ns) in all,
    /// and holds no lock meanwhile.
    pub fn compact_direct(&self, cpu: CpuId, class: FrameClass) -> CompactResult {
        let events = self.frames.events();
        let lease = if self.enough_free() {
            self.lease(cpu)
        } else {
            None
        };
        let Some(mut lease) = lease else {
            events.add(cpu, Event::CompactSkipped, 1);
            return CompactResult::Skipped;
        };
        let mut effort = self.effort();
        let (mut began, mut deferred) = (false, false);
        for zone in self.zone_ids() {
            if !self.can_lose_block(zone, 0) {
                continue;
            }
            let may_try = self.zone_state(zone).map(|mut state| {
                self.forgive(zone, &mut state);
                state
                    .direct
                    .may_try(&self.config, || self.prospect(zone, Watermark::Min))
            });
            match may_try {
                None => continue,
                Some(false) => {
                    deferred = true;
                    continue;
                }
                Some(true) if !began => {
                    began = true;
                    events.add(cpu, Event::CompactStall, 1);
                }
                Some(true) => {}
            }
            if let Some(head) = self.capture(cpu, zone, class, &mut lease, &mut effort) {
                events.add(cpu, Event::CompactSuccess, 1);
                return CompactResult::Captured(head);
            }
        }
        match (began, deferred) {
            (true, _) => {
                events.add(cpu, Event::CompactFail, 1);
                CompactResult::Failed
            }
            (false, true) => {
                events.add(cpu, Event::CompactDeferred, 1);
                CompactResult::Deferred
            }
            (false, false) => {
                events.add(cpu, Event::CompactSkipped, 1);
                CompactResult::Skipped
            }
        }
    }

    /// Whether some zone can lose a block and stay at its min watermark; frames in CPU caches count once drained.
    fn enough_free(&self) -> bool {
        let passes = |cached| {
            self.zone_ids()
                .any(|zone| self.can_lose_block(zone, cached))
        };
        if passes(0) {
            return true;
        }
        if !passes(self.frames.cached_frames()) {
            return false;
        }
        self.frames.drain_cpu_caches();
        passes(0)
    }

    /// Whether the zone keeps its min watermark without 512 of its free frames, if `more` were free.
    fn can_lose_block(&self, zone: ZoneId, more: u64) -> bool {
        let floor = self
            .frames
            .watermarks(zone)
            .min
            .saturating_add(FRAMES_PER_BLOCK as u64);
        self.frames.zone_free_frames(zone).saturating_add(more) >= floor
    }

    fn effort(&self) -> Effort {
        Effort {
            budget: self.config.budget_blocks,
            looks: self.config.look,
            deadline: self.deadline(),
        }
    }

    /// Captures a block of one zone, and keeps the zone's deferral.
    fn capture(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        class: FrameClass,
        lease: &mut Lease<'_>,
        effort: &mut Effort,
    ) -> Option<Pfn> {
        loop {
            match self.empty_cheapest(cpu, zone, Watermark::Min, lease, effort) {
                Found::Emptied(block) => match self.frames.capture_block(block, class) {
                    Ok(head) => {
                        if let Some(mut state) = self.zone_state(zone) {
                            state.direct.succeeded();
                        }
                        return Some(head);
                    }
                    Err(block) => self.frames.unisolate_block(block),
                },
                Found::Exhausted(_) => {
                    if let Some(mut state) = self.zone_state(zone) {
                        state
                            .direct
                            .failed(&self.config, self.prospect(zone, Watermark::Min));
                    }
                    return None;
                }
                // There is more to try: the next request goes on where this one stopped.
                Found::Spent(_) => return None,
            }
        }
    }

    /// Empties the cheapest block of a zone that can be.
    fn empty_cheapest(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        watermark: Watermark,
        lease: &mut Lease<'_>,
        effort: &mut Effort,
    ) -> Found {
        let mut last = EvacuateError::NoCandidate;
        loop {
            let begun = {
                let Some(mut state) = self.zone_state(zone) else {
                    return Found::Spent(EvacuateError::Busy);
                };
                self.begin_cheapest(cpu, zone, &mut state, watermark, lease, effort, &mut last)
            };
            let (mut attempts, used) = match begun {
                Ok(begun) => begun,
                Err(ended) => return ended,
            };
            self.empty_blocks(cpu, lease, &mut attempts, used, effort.deadline);
            for attempt in attempts {
                match attempt.result() {
                    Ok(block) => return Found::Emptied(block),
                    Err(error) => last = error,
                }
            }
            if last == EvacuateError::TimedOut {
                // The host is slow. It gets no more work from this request.
                return Found::Exhausted(last);
            }
        }
    }

    /// Begins the cheapest block of a zone that can be begun. `last` becomes the reason of the last one that could not.
    #[expect(clippy::too_many_arguments)]
    fn begin_cheapest(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        state: &mut ZoneState,
        watermark: Watermark,
        lease: &mut Lease<'_>,
        effort: &mut Effort,
        last: &mut EvacuateError,
    ) -> Result<(Attempts, usize), Found> {
        loop {
            self.forgive(zone, state);
            let candidates = self.cheapest(zone);
            if candidates.is_empty() {
                return Err(Found::Exhausted(*last));
            }
            if self.blocks_with_room(zone, watermark, 1) == 0 {
                return Err(Found::Exhausted(EvacuateError::NoTargets));
            }
            for block in candidates {
                if effort.looks == 0 || effort.budget == 0 {
                    return Err(Found::Spent(*last));
                }
                effort.looks -= 1;
                self.examine(block);
                let (mut attempts, used) = self.begin_blocks(cpu, lease, &[block], watermark);
                effort.budget -= usize::from(attempts.iter().any(|attempt| attempt.cost_work));
                if attempts.iter().any(Attempt::is_alive) {
                    return Ok((attempts, used));
                }
                self.empty_blocks(cpu, lease, &mut attempts, used, effort.deadline);
                *last = attempts
                    .pop()
                    .and_then(|attempt| attempt.error)
                    .unwrap_or(*last);
                if last.wants_room() {
                    return Err(Found::Exhausted(*last));
                }
            }
        }
    }

    /// Empties the cheapest movable block and gives it to the migratetype of `class`: the fallback policy `evacuate`,
    /// for a request of that class which found its own blocks full. No hybrid block is left.
    ///
    /// What is set aside meanwhile leaves each zone its low watermark, so that the requests of others succeed.
    ///
    /// # Errors
    ///
    /// The reason of the last block tried, or [`EvacuateError::NoCandidate`]; [`EvacuateError::Busy`] when as much
    /// compaction as there can be runs and goes on running for the bounded wait, or when the call comes from inside it.
    pub fn evacuate_for(&self, cpu: CpuId, class: FrameClass) -> Result<(), EvacuateError> {
        let mut lease = self.lease(cpu).ok_or(EvacuateError::Busy)?;
        let mut effort = self.effort();
        let mut last = EvacuateError::NoCandidate;
        for zone in self.zone_ids() {
            match self.empty_cheapest(cpu, zone, Watermark::Low, &mut lease, &mut effort) {
                Found::Emptied(block) => {
                    self.frames.convert_block(block, class.migratetype());
                    self.frames.events().add(cpu, Event::BlockEvacuated, 1);
                    return Ok(());
                }
                Found::Exhausted(error) | Found::Spent(error) => last = error,
            }
        }
        Err(last)
    }
}
