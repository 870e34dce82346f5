//! Compaction on behalf of one request: a block is emptied and handed to the one who asked.

use dirigible_frames::{
    BlockId, CpuId, Event, FRAMES_PER_BLOCK, FrameClass, IsolatedBlock, Pfn, Platform, Watermark,
    ZoneId,
};

use crate::evacuate::{Attempt, Attempts};
use crate::place::Lease;
use crate::plan::Purpose;
use crate::zone::ZoneState;
use crate::{EvacuateError, Mobility};

/// How direct compaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a captured huge page is the caller's to free"]
pub enum CompactResult {
    /// An order-9 allocation of the wanted class, `Allocated` and the caller's.
    Captured(Pfn),
    /// It was begun, and gave nothing: `compact_fail`.
    Failed,
    /// It was not begun: too little is free (reclaim first), or all workspaces are in use:
    /// `compact_skipped`.
    Skipped,
    /// It was not begun, for earlier failures: `compact_deferred`.
    Deferred,
}

/// Blocks on probation that a search tries at most: one before the others, one after them.
const RETRIES: usize = 2;

/// A search for one block in one zone.
struct Search {
    cpu: CpuId,
    zone: ZoneId,
    purpose: Purpose,
    /// Blocks that may still be begun.
    budget: usize,
    /// Candidates that may still be looked at.
    looks: usize,
    /// Blocks on probation that may still be tried.
    retries: usize,
    /// When nothing is waited for, and nothing begun, any more.
    deadline: u64,
    /// Why the last block was not emptied.
    last: EvacuateError,
}

/// How a search ended.
enum Found {
    /// This block, isolated and wholly free.
    Emptied(IsolatedBlock),
    /// None, with no candidate left that could be tried, or no time.
    Exhausted,
    /// None, and the effort is spent; there are more candidates.
    Spent,
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Empties one block, within the budget, and gives it to the caller as a huge page of `class`
    /// ([`Captured`](CompactResult::Captured)).
    ///
    /// In this order: a zone must have 512 free frames above its min watermark, else
    /// [`Skipped`](CompactResult::Skipped) (what is set aside outside the block and what is free in it are 512 frames
    /// together, so that it lowers a zone's free frames by just the block that is captured); a workspace must be had
    /// within a bounded wait, else `Skipped` as well (a call from inside compaction on the same CPU does not wait);
    /// in one of the zones a standing deferral must let it pass, else [`Deferred`](CompactResult::Deferred). From
    /// there on it counts as a stall, and as a success (`Captured`) or a fail ([`Failed`](CompactResult::Failed)).
    ///
    /// It waits for the host no longer than [`pending_timeout_ns`](crate::CompactionConfig::pending_timeout_ns) in all,
    /// and holds no lock meanwhile.
    pub fn compact_direct(&self, cpu: CpuId, class: FrameClass) -> CompactResult {
        let events = self.frames.events();
        // What has settled meanwhile is free, and no obstacle any more.
        self.drain_settled();
        let lease = if self.enough_free() {
            self.lease(cpu)
        } else {
            None
        };
        let Some(mut lease) = lease else {
            events.add(cpu, Event::CompactSkipped, 1);
            return CompactResult::Skipped;
        };
        let deadline = self.deadline();
        let (mut began, mut deferred) = (false, false);
        for zone in self.zone_ids() {
            if !self.can_lose_block(zone, 0) || (began && self.platform.now() >= deadline) {
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
            let search = self.search(cpu, zone, Purpose::HugePage, deadline);
            if let Some(head) = self.capture(search, class, &mut lease) {
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
        if self.some_zone_can(0) {
            return true;
        }
        if !self.some_zone_can(self.frames.cached_frames()) {
            return false;
        }
        self.frames.drain_cpu_caches();
        self.some_zone_can(0)
    }

    #[inline(never)]
    fn some_zone_can(&self, cached: u64) -> bool {
        self.zone_ids()
            .any(|zone| self.can_lose_block(zone, cached))
    }

    /// Whether the zone keeps its min watermark without 512 frames and without those that are stranded, if `more` were
    /// free: all of them free ones, or some of them dropped.
    #[inline(never)]
    fn can_lose_block(&self, zone: ZoneId, more: u64) -> bool {
        let min = self.frames.watermarks(zone).min;
        let lost = FRAMES_PER_BLOCK as u64 + self.frames.stranded_frames(zone);
        let drops = self.most_drops(zone, Purpose::HugePage);
        self.frames.zone_free_frames(zone) + more + drops >= min.saturating_add(lost)
    }

    fn search(&self, cpu: CpuId, zone: ZoneId, purpose: Purpose, deadline: u64) -> Search {
        Search {
            cpu,
            zone,
            purpose,
            budget: self.config.budget_blocks,
            looks: self.config.look,
            retries: RETRIES,
            deadline,
            last: EvacuateError::NoCandidate,
        }
    }

    /// Captures a block of one zone, and keeps the zone's deferral up to date.
    fn capture(&self, mut search: Search, class: FrameClass, lease: &mut Lease<'_>) -> Option<Pfn> {
        let zone = search.zone;
        loop {
            match self.empty_cheapest(&mut search, lease) {
                Found::Emptied(block) => {
                    let captured = self.frames.capture_block(block, class);
                    let head = captured
                        .map_err(|block| self.frames.unisolate_block(block))
                        .ok();
                    if head.is_some() {
                        // The page is captured: its request does not wait for the lock to note the success.
                        if let Some(mut state) = self.try_zone_state(zone) {
                            state.direct.succeeded();
                        }
                        return head;
                    }
                }
                Found::Exhausted => {
                    if let Some(mut state) = self.zone_state(zone) {
                        let left = self.prospect(zone, Watermark::Min);
                        state.direct.failed(&self.config, left);
                    }
                    return None;
                }
                // No reason to defer: candidates are left, and the next request may find one.
                Found::Spent => return None,
            }
        }
    }

    /// Empties the cheapest block that can be.
    fn empty_cheapest(&self, search: &mut Search, lease: &mut Lease<'_>) -> Found {
        loop {
            let begun = match self.zone_state(search.zone) {
                Some(mut state) => self.begin_cheapest(search, &mut state, lease),
                None => {
                    search.last = EvacuateError::Busy;
                    Err(Found::Spent)
                }
            };
            let (mut attempts, used) = match begun {
                Ok(begun) => begun,
                Err(ended) => return ended,
            };
            self.empty_blocks(search.cpu, lease, &mut attempts, used, search.deadline);
            self.tell_emptied(&attempts);
            for attempt in attempts {
                match attempt.result() {
                    Ok(block) => return Found::Emptied(block),
                    Err(error) => search.last = error,
                }
            }
            if self.platform.now() >= search.deadline {
                // The host is slow. It gets no more work from this request.
                return Found::Exhausted;
            }
        }
    }

    /// Begins the cheapest block that can be begun.
    fn begin_cheapest(
        &self,
        search: &mut Search,
        state: &mut ZoneState,
        lease: &mut Lease<'_>,
    ) -> Result<(Attempts, usize), Found> {
        self.forgive(search.zone, state);
        loop {
            let Some(block) = self.next_candidate(search, state) else {
                return Err(Found::Exhausted);
            };
            let (zone, watermark) = (search.zone, search.purpose.leaves());
            let drops = self.most_drops(zone, search.purpose);
            if self.blocks_with_room(zone, watermark, 1, drops) == 0 {
                search.last = EvacuateError::NoTargets;
                return Err(Found::Exhausted);
            }
            if search.looks == 0 || search.budget == 0 {
                return Err(Found::Spent);
            }
            search.looks -= 1;
            self.examine(block);
            let (attempts, used) = self.begin_blocks(search.cpu, lease, &[block], search.purpose);
            for attempt in &attempts {
                search.budget -= usize::from(attempt.worked_on);
                search.last = attempt.error.unwrap_or(search.last);
            }
            if attempts.iter().any(Attempt::is_alive) {
                return Ok((attempts, used));
            }
            if search.last.wants_room() {
                return Err(Found::Exhausted);
            }
        }
    }

    /// The block to be tried next. One on probation comes before the others if it is as cheap, so that it has its
    /// turn, and one after them.
    fn next_candidate(&self, search: &mut Search, state: &mut ZoneState) -> Option<BlockId> {
        let owed = self.may_drop(search.zone, search.purpose);
        let fresh = self.take_best(&mut self.cheapest(search.zone), owed);
        if search.retries == RETRIES {
            search.retries -= 1;
            let retry = self.on_probation(search.zone, state);
            let as_cheap = |&block: &BlockId| {
                fresh.is_none_or(|fresh| self.candidate(block).cost(owed) <= fresh.cost(owed))
            };
            if let Some(retry) = retry.filter(as_cheap) {
                return Some(retry);
            }
        }
        if let Some(fresh) = fresh {
            return Some(fresh.block());
        }
        search.retries = search.retries.checked_sub(1)?;
        self.on_probation(search.zone, state)
    }

    /// Empties the cheapest movable block and gives it to the migratetype of `class`: the fallback policy `evacuate`,
    /// for a request of that class which found its own blocks full. No hybrid block is left.
    ///
    /// What is set aside meanwhile leaves each zone its low watermark, so that the requests of others succeed.
    ///
    /// # Errors
    ///
    /// The reason of the last block tried, or [`EvacuateError::NoCandidate`]; [`EvacuateError::Busy`] when all
    /// workspaces stay in use for the bounded wait, or when the call comes from inside compaction on the same CPU.
    pub fn evacuate_for(&self, cpu: CpuId, class: FrameClass) -> Result<(), EvacuateError> {
        let mut lease = self.lease(cpu).ok_or(EvacuateError::Busy)?;
        let deadline = self.deadline();
        let mut last = EvacuateError::NoCandidate;
        for zone in self.zone_ids() {
            let mut search = self.search(cpu, zone, Purpose::Room, deadline);
            if let Found::Emptied(block) = self.empty_cheapest(&mut search, &mut lease) {
                self.frames.convert_block(block, class.migratetype());
                self.frames.events().add(cpu, Event::BlockEvacuated, 1);
                return Ok(());
            }
            last = search.last;
            if self.platform.now() >= deadline {
                break;
            }
        }
        Err(last)
    }
}
