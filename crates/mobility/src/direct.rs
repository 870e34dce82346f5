//! Compaction on behalf of one request: a block is emptied and handed to the one who asked.

use dirigible_frames::{
    CpuId, Event, FRAMES_PER_BLOCK, FrameClass, IsolatedBlock, Pfn, Platform, ZoneId,
};

use crate::mobility::{Working, Workspace};
use crate::{EvacuateError, Mobility};

/// How direct compaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a captured huge page is the caller's to free"]
pub enum CompactResult {
    /// An order-9 allocation of the wanted class, `Owned` and the caller's.
    Captured(Pfn),
    /// It was begun, and gave nothing: `compact_fail`.
    Failed,
    /// It was not begun: too little is free (reclaim first), or compaction already runs: `compact_skipped`.
    Skipped,
    /// It was not begun, for earlier failures: `compact_deferred`.
    Deferred,
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Empties one block, within the budget, and gives it to the caller as a huge page of `class`.
    ///
    /// In this order: a zone must have 512 free frames above its min watermark, else `Skipped` (what evacuation takes
    /// outside the block it frees inside, so that it lowers a zone's free frames by just the block that is captured);
    /// the compaction lock must be had within a bounded wait, else `Skipped`, as nothing began (a call from inside
    /// compaction on the same CPU does not wait); a standing deferral must let it pass, else `Deferred`. From there on
    /// it counts as a stall, and as a success or a fail.
    pub fn compact_direct(&self, cpu: CpuId, class: FrameClass) -> CompactResult {
        let events = self.frames.events();
        if !self.enough_free() {
            events.add(cpu, Event::CompactSkipped, 1);
            return CompactResult::Skipped;
        }
        let Some(mut working) = self.work(cpu) else {
            events.add(cpu, Event::CompactSkipped, 1);
            return CompactResult::Skipped;
        };
        let Workspace {
            direct, refusals, ..
        } = &mut *working;
        if !direct.may_try(&self.config, || self.prospect(refusals)) {
            events.add(cpu, Event::CompactDeferred, 1);
            return CompactResult::Deferred;
        }
        events.add(cpu, Event::CompactStall, 1);
        if let Some(head) = self.capture(cpu, class, &mut working) {
            events.add(cpu, Event::CompactSuccess, 1);
            working.direct.succeeded();
            return CompactResult::Captured(head);
        }
        events.add(cpu, Event::CompactFail, 1);
        let Workspace {
            direct, refusals, ..
        } = &mut *working;
        direct.failed(&self.config, self.prospect(refusals));
        CompactResult::Failed
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

    fn capture(&self, cpu: CpuId, class: FrameClass, working: &mut Working<'_>) -> Option<Pfn> {
        let mut budget = self.config.budget_blocks;
        for zone in self.zone_ids() {
            if !self.can_lose_block(zone, 0) {
                continue;
            }
            while let Ok(block) = self.empty_cheapest(cpu, Some(zone), working, &mut budget) {
                match self.frames.capture_block(block, class) {
                    Ok(head) => return Some(head),
                    Err(block) => self.frames.unisolate_block(block),
                }
            }
        }
        None
    }

    /// Empties the cheapest block that can be, trying at most `budget` of them.
    fn empty_cheapest(
        &self,
        cpu: CpuId,
        zone: Option<ZoneId>,
        working: &mut Working<'_>,
        budget: &mut usize,
    ) -> Result<IsolatedBlock, EvacuateError> {
        let mut last = EvacuateError::NoCandidate;
        // Blocks with as many used frames as one for which there were too few targets are not worth a try.
        let mut too_many = u32::MAX;
        for block in self.candidates(cpu, zone, &mut working.refusals) {
            if self.used(block) >= too_many {
                continue;
            }
            if !self.has_targets(block) {
                (last, too_many) = (EvacuateError::NoTargets, self.used(block));
                continue;
            }
            if *budget == 0 {
                break;
            }
            *budget -= 1;
            let used = self.used(block);
            let (jobs, _) = self.evacuate_blocks(cpu, working, &[block]);
            for job in jobs {
                if let Some(token) = job.token {
                    return Ok(token);
                }
                last = job.error.unwrap_or(last);
                if last == EvacuateError::NoTargets {
                    too_many = used;
                }
            }
        }
        Err(last)
    }

    /// Empties the cheapest movable block and gives it to the migratetype of `class`: the fallback policy `evacuate`,
    /// for a request of that class which found its own blocks full. No hybrid block is left.
    ///
    /// # Errors
    ///
    /// The reason of the last block tried, or [`EvacuateError::NoCandidate`]; [`EvacuateError::Busy`] when compaction
    /// runs and goes on running for the bounded wait, or is where this call comes from.
    pub fn evacuate_for(&self, cpu: CpuId, class: FrameClass) -> Result<(), EvacuateError> {
        let mut working = self.work(cpu).ok_or(EvacuateError::Busy)?;
        let mut budget = self.config.budget_blocks;
        let block = self.empty_cheapest(cpu, None, &mut working, &mut budget)?;
        self.frames.convert_block(block, class.migratetype());
        self.frames.events().add(cpu, Event::BlockEvacuated, 1);
        Ok(())
    }
}
