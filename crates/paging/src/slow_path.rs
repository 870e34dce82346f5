//! The allocation slow path: what is tried, and in which order, if the allocator has no free frame.

use crate::source::{
    NoNotifier, OutOfMemory, OutOfMemoryNotifier, PageSource, Reclaim, StallObserver,
};
use dirigible_frames::{
    AllocError, AllocRequest, BalloonPlacement, Event, Fallback, FrameAllocator, Order, Pfn,
    Platform, Watermark,
};
use dirigible_mobility::{CompactResult, Mobility, evacuates};

/// A run of more frames than this is costly: the notifier is not called for it, and it does not wait for compaction.
const COSTLY: usize = 8;

/// How often a request that waits for compaction checks for frames if time hardly passes. A virtual clock does not
/// advance while nothing is charged.
const LOOKS: u64 = 10_000;
/// If time is real, a check takes longer than so many nanoseconds.
const LOOK_NS: u64 = 100;

/// The constants of the slow path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlowPathConfig {
    /// Frames that one call of reclaim is asked for, for a base page or for the balloon.
    pub batch: usize,
    /// Frames that one call of reclaim is asked for at most, for a huge page: no more than compaction lacks.
    pub huge_batch: usize,
    /// Frames asked of reclaim so that a block can be evacuated into them.
    pub evacuate_batch: usize,
    /// Most calls of reclaim for one base page. They end when one frees nothing.
    pub rounds: usize,
    /// The same for a run of more than 8 frames (Linux calls such orders costly): if the first rounds do not help, more
    /// are wasted.
    pub costly_rounds: usize,
    /// How often a block is evacuated for one unmovable or reclaimable request.
    pub evacuations: u32,
    /// Evacuate for unmovable and reclaimable requests that find no room in blocks of their type: set it where the
    /// allocator's fallback policy is [`Fallback::Evacuate`].
    pub fallback: Fallback,
    /// Whether a base request takes frames from blocks of other types before it fails, though that leaves hybrid blocks.
    /// Default yes: a program is worth more than a block.
    pub any_block_at_last: bool,
    /// The watermark below which the balloon does not allocate.
    pub balloon_watermark: Watermark,
    /// How long a base request that would fail waits for frames that compaction holds, in nanoseconds.
    pub settle_ns: u64,
    /// Frames that one call of the out-of-memory notifier is asked for: one message of a balloon.
    pub release_batch: usize,
    /// Most calls of the notifier for one base page. They end when one frees nothing.
    pub releases: u32,
}

impl Default for SlowPathConfig {
    fn default() -> Self {
        Self {
            batch: 32,
            huge_batch: 1024,
            evacuate_batch: 512,
            rounds: 16,
            costly_rounds: 2,
            evacuations: 2,
            fallback: Fallback::Evacuate,
            any_block_at_last: true,
            balloon_watermark: Watermark::Min,
            settle_ns: 200_000_000,
            release_batch: 256,
            releases: 8,
        }
    }
}

/// Allocates frames by every means but killing a task.
///
/// - *Base pages:* free frames; for unmovable and reclaimable requests, under [`Fallback::Evacuate`], a movable block
///   evacuated and converted; reclaim, for as long as it frees something; the whole-block reserve. Then, for runs of at
///   most 8 frames: the frames that compaction holds until it has moved others; and at last the
///   [notifier](OutOfMemoryNotifier), a balloon. The balloon is last, as its frames were promised to the host.
/// - *Huge pages:* a free block, a block captured by compaction, and both again after one large reclaim, if compaction may
///   have failed for want of room: no zone had twice a huge page above its low watermark. With that much free, more would
///   not help.
///
/// Whoever is not served at once wakes background reclaim. It looks at free memory itself as well, so requests that are
/// served do not.
///
/// Each means is tried a bounded number of times. So every request ends, with frames or with [`OutOfMemory`], whatever
/// other CPUs do.
pub struct SlowPath<'a, P: Platform> {
    frames: &'a FrameAllocator<'a>,
    mobility: &'a Mobility<'a, P>,
    platform: &'a P,
    reclaim: &'a dyn Reclaim,
    notifier: &'a dyn OutOfMemoryNotifier,
    observer: Option<&'a dyn StallObserver>,
    config: SlowPathConfig,
}

/// What one request may still try.
struct Effort {
    order: Order,
    rounds: usize,
    evacuations: u32,
    stalled: bool,
}

impl<'a, P: Platform> SlowPath<'a, P> {
    /// A slow path over the allocator of `mobility`, with `reclaim` to free frames.
    pub fn new(
        mobility: &'a Mobility<'a, P>,
        reclaim: &'a dyn Reclaim,
        config: SlowPathConfig,
    ) -> Self {
        let (frames, platform) = (mobility.frames(), mobility.platform());
        Self {
            frames,
            mobility,
            platform,
            reclaim,
            notifier: &NoNotifier,
            observer: None,
            config,
        }
    }

    /// The same, with a notifier that is called before a base request fails. It is not called for requests of the
    /// balloon, which would release frames to get some.
    #[must_use]
    pub fn with_notifier(self, notifier: &'a dyn OutOfMemoryNotifier) -> Self {
        Self { notifier, ..self }
    }

    /// The same, with an observer of each request that the first attempt does not serve. Requests that it serves have
    /// no additional cost. Requests of the balloon are not observed.
    #[must_use]
    pub fn observed_by(self, observer: &'a dyn StallObserver) -> Self {
        Self {
            observer: Some(observer),
            ..self
        }
    }

    /// Allocates frames for a balloon, placed as `how` says. Fills `out` from the front, and gives how many frames it
    /// got. Reclaims what is missing in small batches, until one frees nothing. Never breaks the whole-block reserve.
    /// Fewer frames than `out` holds are not a failure: the balloon tries again.
    pub fn take_balloon(&self, how: BalloonPlacement, out: &mut [Pfn]) -> usize {
        let mut effort = self.effort(Order::BASE);
        effort.rounds += out.len().div_ceil(self.config.batch.max(1));
        let mark = self.config.balloon_watermark;
        let mut taken = 0;
        while taken < out.len() {
            let cpu = self.platform.cpu();
            taken += self.frames.alloc_balloon(cpu, how, mark, &mut out[taken..]);
            if taken == out.len() {
                break;
            }
            self.reclaim.wake();
            if matches!(how, BalloonPlacement::Unmovable) {
                // One frame is allocated as for any unmovable request, which makes room for more.
                let request = AllocRequest::unmovable().with_watermark(mark);
                let first = self.frames.alloc(self.platform.cpu(), request);
                let Ok(frame) = first.or_else(|why| self.try_base(request, why, &mut effort))
                else {
                    break;
                };
                out[taken] = frame;
                taken += 1;
            } else if !self.reclaim_round(self.config.batch, &mut effort) {
                break;
            }
        }
        taken
    }

    fn effort(&self, order: Order) -> Effort {
        let costly = order.frames() > COSTLY;
        Effort {
            order,
            rounds: if costly {
                self.config.costly_rounds
            } else {
                self.config.rounds
            },
            evacuations: self.config.evacuations,
            stalled: false,
        }
    }

    /// Serves a request below a huge page, whose first attempt failed for `why`.
    fn alloc_base(&self, request: AllocRequest, why: AllocError) -> Result<Pfn, OutOfMemory> {
        let mut effort = self.effort(request.order);
        self.try_base(request, why, &mut effort)
            // The reserve is broken before a task fails.
            .or_else(|OutOfMemory| self.break_reserve(request))
            .or_else(|_| self.await_compaction(request, &mut effort))
            .or_else(|OutOfMemory| self.release(request, &mut effort))
            .or_else(|OutOfMemory| self.take_from_any_block(request))
            .or_else(|OutOfMemory| self.failed())
    }

    /// Free frames in blocks of other types, if they may be used: the request would fail else.
    fn take_from_any_block(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        if !self.config.any_block_at_last {
            return Err(OutOfMemory);
        }
        let cpu = self.platform.cpu();
        let request = request.breaking_reserve().from_any_block();
        self.frames.alloc(cpu, request).map_err(|_| OutOfMemory)
    }

    fn break_reserve(&self, request: AllocRequest) -> Result<Pfn, AllocError> {
        let cpu = self.platform.cpu();
        self.frames.alloc(cpu, request.breaking_reserve())
    }

    /// What is tried first, after an attempt that failed for `why`.
    fn try_base(
        &self,
        request: AllocRequest,
        mut why: AllocError,
        effort: &mut Effort,
    ) -> Result<Pfn, OutOfMemory> {
        let batch = self.config.batch.max(2 * request.order.frames());
        let evacuates = matches!(self.config.fallback, Fallback::Evacuate) && evacuates(&request);
        loop {
            if evacuates {
                let left = &mut effort.evacuations;
                let cpu = self.platform.cpu();
                match self.mobility.alloc_after(cpu, request, why, left) {
                    Ok(frame) => return Ok(frame),
                    Err(error) => why = error,
                }
            }
            let more = match why {
                // For want of targets, most likely: with more room the next attempt, if there is one, may do better.
                AllocError::Fragmented if evacuates => {
                    effort.evacuations > 0 && self.reclaim_round(self.config.evacuate_batch, effort)
                }
                _ => self.reclaim_round(batch, effort),
            };
            if !more {
                return Err(OutOfMemory);
            }
            match self.frames.alloc(self.platform.cpu(), request) {
                Ok(frame) => return Ok(frame),
                Err(error) => why = error,
            }
        }
    }

    /// Waits for frames that compaction has set aside while it, or the host, works on a move.
    fn await_compaction(
        &self,
        request: AllocRequest,
        effort: &mut Effort,
    ) -> Result<Pfn, OutOfMemory> {
        let is_held = || self.frames.isolated_blocks() > 0;
        if request.order.frames() > COSTLY || !is_held() {
            return Err(OutOfMemory);
        }
        let begun = self.platform.now();
        let mut looks = 0;
        // Others may take these frames first: then waits for those of the next evacuation.
        loop {
            if let Some(frame) = self.look_for_frames(request, begun, &mut looks) {
                return Ok(frame);
            }
            let result = self.once_more(request, effort);
            if result.is_ok() || !is_held() || self.is_over(begun, looks) {
                return result;
            }
        }
    }

    /// Whether the wait for compaction that began at `begun` is over, after `looks` checks.
    fn is_over(&self, begun: u64, looks: u64) -> bool {
        let passed = self.platform.now().saturating_sub(begun);
        let stands_still = looks >= LOOKS && passed < looks * LOOK_NS;
        passed >= self.config.settle_ns || stands_still
    }

    /// Checks for a free frame until no block is being evacuated, or the wait that began at `begun` is over.
    fn look_for_frames(&self, request: AllocRequest, begun: u64, looks: &mut u64) -> Option<Pfn> {
        let mut seen = None;
        loop {
            if self.is_over(begun, *looks) || self.frames.isolated_blocks() == 0 {
                return None;
            }
            // An attempt drains the caches of all CPUs, so it is made only if the number of free frames has changed. As
            // that may miss frames that were freed and taken in between, it is also made now and then.
            let free = Some(self.frames.free_frames());
            if (free != seen || looks.is_multiple_of(256))
                && let Ok(frame) = self.break_reserve(request)
            {
                return Some(frame);
            }
            seen = free;
            *looks += 1;
            self.platform.relax();
        }
    }

    /// Calls the notifier, the last means.
    fn release(&self, request: AllocRequest, effort: &mut Effort) -> Result<Pfn, OutOfMemory> {
        if request.order.frames() > COSTLY {
            return Err(OutOfMemory);
        }
        for _ in 0..self.config.releases {
            if self.notifier.release(self.config.release_batch) == 0 {
                // What it released for another CPU may be enough for both.
                return self.break_reserve(request).map_err(|_| OutOfMemory);
            }
            if let Ok(frame) = self.once_more(request, effort) {
                return Ok(frame);
            }
        }
        Err(OutOfMemory)
    }

    /// The first means again, now that there is more memory.
    fn once_more(&self, request: AllocRequest, effort: &mut Effort) -> Result<Pfn, OutOfMemory> {
        self.break_reserve(request).or_else(|why| {
            // A kernel request cannot use frames in movable blocks, but there is room now to empty one.
            effort.evacuations = self.config.evacuations;
            self.try_base(request, why, effort)
        })
    }

    /// Reclaims once more; `false` when there was nothing to reclaim, or it was done often enough.
    fn reclaim_round(&self, batch: usize, effort: &mut Effort) -> bool {
        let Some(rounds) = effort.rounds.checked_sub(1) else {
            return false;
        };
        effort.rounds = rounds;
        self.reclaim(batch, effort.order, &mut effort.stalled) > 0
    }

    /// Serves a request for a huge page, whose first attempt failed.
    fn alloc_huge(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        for attempt in 0..2 {
            if attempt > 0
                && let Ok(frame) = self.frames.alloc(self.platform.cpu(), request)
            {
                return Ok(frame);
            }
            let result = self
                .mobility
                .compact_direct(self.platform.cpu(), request.class);
            if let CompactResult::Captured(frame) = result {
                return Ok(frame);
            }
            if attempt == 0 {
                let missing = self.missing_room().min(self.config.huge_batch);
                if missing == 0 || self.reclaim(missing, Order::HUGE, &mut false) == 0 {
                    break;
                }
            }
        }
        self.failed()
    }

    /// Frames that the zone that lacks fewest lacks for compaction: it needs a block above the min watermark, and as much
    /// again is for those who allocate meanwhile. Reclaim on behalf of a huge page ends at the same mark.
    fn missing_room(&self) -> usize {
        let room = 2 * Order::HUGE.frames() as u64;
        let missing = self.frames.zones().map(|zone| {
            let mark = self.frames.watermarks(zone).low.saturating_add(room);
            let free = self.frames.zone_free_frames(zone);
            mark.saturating_sub(free.saturating_sub(self.frames.stranded_frames(zone)))
        });
        missing.min().unwrap_or(0) as usize
    }

    /// Serves a request whose first attempt failed for `why`, and notifies the observer.
    #[cold]
    fn stall(&self, request: AllocRequest, why: AllocError) -> Result<Pfn, OutOfMemory> {
        self.reclaim.wake();
        let watch = self
            .observer
            .map(|observer| (observer, self.platform.now()));
        let got = if request.order == Order::HUGE {
            self.alloc_huge(request)
        } else {
            self.alloc_base(request, why)
        };
        if let Some((observer, since)) = watch {
            let ns = self.platform.now().saturating_sub(since);
            observer.stalled(request, ns, got.is_ok());
        }
        got
    }

    /// Reclaims `frames` frames and counts the events. Who reclaims charges the cost.
    fn reclaim(&self, frames: usize, order: Order, stalled: &mut bool) -> usize {
        let cpu = self.platform.cpu();
        if !core::mem::replace(stalled, true) {
            self.frames.events().add(cpu, Event::AllocStall, 1);
        }
        let freed = self.reclaim.reclaim(frames, order);
        self.frames
            .events()
            .add(cpu, Event::PgReclaimed, freed as u64);
        freed
    }

    fn failed(&self) -> Result<Pfn, OutOfMemory> {
        self.frames
            .events()
            .add(self.platform.cpu(), Event::OutOfMemory, 1);
        Err(OutOfMemory)
    }
}

impl<P: Platform> PageSource for SlowPath<'_, P> {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        match self.frames.alloc(self.platform.cpu(), request) {
            Ok(frame) => Ok(frame),
            Err(why) => self.stall(request, why),
        }
    }

    fn free(&self, frame: Pfn, order: Order) {
        let freed = self.frames.free(self.platform.cpu(), frame, order);
        debug_assert!(freed.is_ok(), "{frame} was not owned by its user");
    }
}
