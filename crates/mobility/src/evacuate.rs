//! Evacuation: everything that is used in a block moves elsewhere, or everything stays.

use arrayvec::ArrayVec;
use dirigible_frames::sync::Ordering;
use dirigible_frames::{
    BlockId, BlockState, Cost, CpuId, Event, FRAMES_PER_BLOCK, FrameClass, FrameFlags, FrameState,
    IsolateError, IsolatedBlock, Order, Pfn, Platform,
};

use crate::config::{MAX_BATCH_BLOCKS, WORKSPACE_FRAMES};
use crate::migrate::{Freed, Kind, gather};
use crate::mobility::{Working, Workspace};
use crate::{MigrateStats, Mobility, MovePair, Outcome};

/// Why a block was not emptied. Nothing is lost in any of these cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvacuateError {
    /// Another compaction runs, and went on running for the whole of the bounded wait.
    #[error("another compaction runs")]
    Busy,
    /// No block is left to try.
    #[error("no block can be emptied")]
    NoCandidate,
    /// The block has unmovable frames or a huge allocation: it is never begun.
    #[error("the block holds what cannot move")]
    Unmovable,
    /// The allocator would not isolate the block.
    #[error("the block cannot be isolated")]
    Isolate(IsolateError),
    /// Together with the blocks before it, it holds more frames than the workspace.
    #[error("too many frames for one batch")]
    NoRoom,
    /// There are fewer targets outside the block than used frames in it.
    #[error("too few free frames in other movable blocks")]
    NoTargets,
    /// This frame is pinned, under way, of no registered owner, or its owner refused to isolate or to move it.
    #[error("frame {0} was refused")]
    Refused(Pfn),
    /// Pairs were still pending at the deadline; they settle when the answer comes.
    #[error("moves were still pending at the deadline")]
    TimedOut,
    /// Everything moved that was there, and still the block is not wholly free.
    #[error("the block did not become wholly free")]
    NotEmpty,
}

impl EvacuateError {
    /// Whether it says something about the block that lasts until the block changes.
    const fn lasts(self) -> bool {
        matches!(self, Self::Refused(_) | Self::TimedOut | Self::NotEmpty)
    }
}

/// One block under evacuation.
pub(crate) struct Job {
    pub(crate) block: BlockId,
    /// Held while the block is being emptied; in a job that is over, the emptied block.
    pub(crate) token: Option<IsolatedBlock>,
    pub(crate) error: Option<EvacuateError>,
    /// One past the last of its pairs, as collected.
    end: usize,
}

/// The blocks of one evacuation, in the order in which they were asked for.
pub(crate) type Jobs = ArrayVec<Job, MAX_BATCH_BLOCKS>;

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Empties a block, and gives it isolated and wholly free: capture it, convert it or open it again.
    ///
    /// Before anything moves, targets for all used frames are reserved outside the block and all used frames are
    /// isolated. If that cannot be done for every one of them, all are put back and the block is opened again.
    ///
    /// # Errors
    ///
    /// See [`EvacuateError`].
    pub fn evacuate(&self, block: BlockId) -> Result<IsolatedBlock, EvacuateError> {
        let mut result = Err(EvacuateError::NoCandidate);
        self.evacuate_many(&[block], |_, outcome| result = outcome);
        result
    }

    /// Empties several blocks together, so that their balloon frames share exchanges with the host. Calls `each` once
    /// for every block, after the compaction lock was released. Blocks succeed and fail one by one.
    ///
    /// Blocks after the eighth, and those that do not fit into the workspace of 1,024 frames together with those before
    /// them, are not begun ([`EvacuateError::NoRoom`]).
    pub fn evacuate_many(
        &self,
        blocks: &[BlockId],
        mut each: impl FnMut(BlockId, Result<IsolatedBlock, EvacuateError>),
    ) {
        let cpu = self.platform.cpu();
        let now = &blocks[..blocks.len().min(MAX_BATCH_BLOCKS)];
        let jobs = match self.work(cpu) {
            Some(mut working) => self.evacuate_blocks(cpu, &mut working, now).0,
            None => {
                now.iter()
                    .for_each(|&block| each(block, Err(EvacuateError::Busy)));
                ArrayVec::new()
            }
        };
        for job in jobs {
            each(
                job.block,
                job.token
                    .ok_or(job.error.unwrap_or(EvacuateError::NotEmpty)),
            );
        }
        for &block in &blocks[now.len()..] {
            each(block, Err(EvacuateError::NoRoom));
        }
    }

    /// Evacuates at most [`MAX_BATCH_BLOCKS`] blocks under the compaction lock.
    pub(crate) fn evacuate_blocks(
        &self,
        cpu: CpuId,
        working: &mut Working<'_>,
        blocks: &[BlockId],
    ) -> (Jobs, MigrateStats) {
        let space: &mut Workspace = working;
        let mut jobs = Jobs::new();
        // All blocks are isolated before the first target is taken: no block of the batch serves as target.
        let mut collected = 0;
        for &block in blocks.iter().take(MAX_BATCH_BLOCKS) {
            jobs.push(self.begin(block, &mut space.pairs, &mut collected));
        }
        let mut used = 0;
        let mut from = 0;
        for job in &mut jobs {
            let range = from..job.end;
            from = job.end;
            if job.token.is_some() && job.error.is_none() {
                self.isolate_frames(
                    cpu,
                    job,
                    &mut space.pairs,
                    range,
                    &mut used,
                    &mut space.targets,
                );
            }
        }
        let stats = self.move_out(cpu, &mut jobs, &mut space.pairs[..used]);
        for job in &mut jobs {
            self.finish(cpu, job, space);
        }
        (jobs, stats)
    }

    /// Isolates a block and collects its used frames at `pairs[*collected..]`.
    fn begin(
        &self,
        block: BlockId,
        pairs: &mut [MovePair; WORKSPACE_FRAMES],
        collected: &mut usize,
    ) -> Job {
        let mut job = Job {
            block,
            token: None,
            error: None,
            end: *collected,
        };
        let ledger = self.frames.ledger(block);
        let used = FRAMES_PER_BLOCK - usize::from(ledger.free());
        if ledger.unmovable() > 0 || ledger.state() == BlockState::Huge {
            job.error = Some(EvacuateError::Unmovable);
            return job;
        }
        if used > WORKSPACE_FRAMES - *collected {
            job.error = Some(EvacuateError::NoRoom);
            return job;
        }
        match self.frames.isolate_block(block) {
            Ok(token) => job.token = Some(token),
            Err(why) => {
                job.error = Some(EvacuateError::Isolate(why));
                return job;
            }
        }
        // From here on nothing is allocated from the block: used frames only become fewer. (Between the look above and
        // the isolation they can have become more.) Frames that other CPUs were taking or freeing at that moment have no
        // state yet; they have one soon.
        let all_seen = || {
            let used = FRAMES_PER_BLOCK - usize::from(self.frames.ledger(block).free());
            self.frames.used_frames(block).count() == used
        };
        if !self.soon(all_seen) {
            job.error = Some(EvacuateError::NotEmpty);
            return job;
        }
        for frame in self.frames.used_frames(block) {
            if self.refuses_at_sight(frame) {
                job.error = Some(EvacuateError::Refused(frame));
                return job;
            }
            let Some(place) = pairs.get_mut(job.end) else {
                job.error = Some(EvacuateError::NoRoom);
                return job;
            };
            *place = MovePair::base(frame, frame);
            job.end += 1;
        }
        *collected = job.end;
        job
    }

    /// Whether it is plain without asking the owner that a used frame cannot be isolated now. Saves the taking of targets.
    fn refuses_at_sight(&self, frame: Pfn) -> bool {
        self.frames.frame(frame).is_none_or(|info| {
            let listed = info.state == FrameState::Listed && info.order == Order::BASE;
            let pinned = info.flags.contains(FrameFlags::PINNED);
            // A free frame was given back since the block's field was read.
            info.state != FrameState::Free && (!listed || pinned || !info.class.is_movable())
        })
    }

    /// Takes targets for the pairs in `range`, then isolates all their frames; moves the pairs down to `pairs[*used..]`.
    /// If either falls short, everything is undone and the job failed.
    fn isolate_frames(
        &self,
        cpu: CpuId,
        job: &mut Job,
        pairs: &mut [MovePair],
        range: core::ops::Range<usize>,
        used: &mut usize,
        targets: &mut [Pfn; FRAMES_PER_BLOCK],
    ) {
        let mut unused = Freed::new(self.frames, cpu);
        let wanted = range.len().min(FRAMES_PER_BLOCK);
        let got = self.frames.take_targets(job.block, &mut targets[..wanted]);
        if got < range.len() {
            targets[..got]
                .iter()
                .for_each(|&target| unused.push(target, Order::BASE));
            job.error = Some(EvacuateError::NoTargets);
            return;
        }
        let start = *used;
        let mut counts = [0u64; 2];
        for (index, at) in range.enumerate() {
            let (frame, target) = (pairs[at].from, targets[index]);
            match self.isolate_frame(frame) {
                Some((kind, Order::BASE)) => {
                    counts[usize::from(kind.class == FrameClass::Balloon)] += 1;
                    // `*used` never overtakes `at`: pairs move down or stay.
                    pairs[*used] = MovePair::base(frame, target);
                    *used += 1;
                }
                Some((kind, order)) => {
                    // A frame that became the head of something larger since it was looked at.
                    self.accounts.isolated(
                        self.frames.events(),
                        cpu,
                        kind.class,
                        order.frames() as u64,
                    );
                    self.putback_frame(cpu, frame);
                    job.error = Some(EvacuateError::Refused(frame));
                }
                None if self.frames.state(frame) == FrameState::Free => {
                    unused.push(target, Order::BASE);
                }
                None => job.error = Some(EvacuateError::Refused(frame)),
            }
            if job.error.is_some() {
                targets[index..got]
                    .iter()
                    .for_each(|&target| unused.push(target, Order::BASE));
                break;
            }
        }
        self.platform.charge(Cost::Isolate((*used - start) as u32));
        for (class, n) in [FrameClass::Movable, FrameClass::Balloon]
            .into_iter()
            .zip(counts)
        {
            if n > 0 {
                self.accounts.isolated(self.frames.events(), cpu, class, n);
            }
        }
        if job.error.is_some() {
            for pair in &pairs[start..*used] {
                self.putback_frame(cpu, pair.from);
                unused.push(pair.to, Order::BASE);
            }
            *used = start;
        }
    }

    /// Migrates isolated pairs of several blocks, balloon frames first: while the host works on them, the others are
    /// copied. A block of which one pair is refused is given up, and its remaining pairs are put back.
    fn move_out(&self, cpu: CpuId, jobs: &mut Jobs, pairs: &mut [MovePair]) -> MigrateStats {
        let mut stats = MigrateStats::default();
        let of_balloon = |pair: &MovePair| {
            self.isolated_kind(pair.from)
                .is_some_and(|kind| kind.class == FrameClass::Balloon)
        };
        gather(pairs, of_balloon);
        let mut waiting_owners: u32 = 0;
        let mut rest = &mut *pairs;
        while let Some(kind) = rest.first().and_then(|pair| self.isolated_kind(pair.from)) {
            let group = gather(rest, |pair| self.isolated_kind(pair.from) == Some(kind));
            let (group, others) = rest.split_at_mut(group);
            rest = others;
            let size = match kind.class {
                FrameClass::Balloon => self.config.exchange_batch,
                _ => WORKSPACE_FRAMES,
            };
            for batch in group.chunks_mut(size) {
                let moved = self.move_batch(cpu, jobs, kind, batch);
                if moved.pending > 0 {
                    waiting_owners |= 1 << (u32::from(kind.owner.get()) % u32::BITS);
                }
                stats.add(moved);
            }
        }
        debug_assert!(rest.is_empty(), "every pair of the workspace is isolated");
        if waiting_owners != 0 {
            let pending = gather(pairs, |pair| pair.outcome == Outcome::Pending);
            self.wait_for(jobs, &mut pairs[..pending], waiting_owners);
        }
        stats
    }

    /// Migrates one batch, without the pairs of blocks that were given up meanwhile: those are put back.
    fn move_batch(
        &self,
        cpu: CpuId,
        jobs: &mut Jobs,
        kind: Kind,
        batch: &mut [MovePair],
    ) -> MigrateStats {
        let alive = gather(batch, |pair| self.job_of(jobs, pair.from).is_some());
        let (batch, given_up) = batch.split_at_mut(alive);
        let mut unused = Freed::new(self.frames, cpu);
        for pair in given_up {
            pair.outcome = Outcome::Refused;
            self.putback_frame(cpu, pair.from);
            unused.push(pair.to, Order::BASE);
        }
        drop(unused);
        if batch.is_empty() {
            return MigrateStats::default();
        }
        let stats = self.migrate_batch(cpu, kind, batch);
        for pair in batch.iter().filter(|pair| pair.outcome == Outcome::Refused) {
            if let Some(job) = self.job_of(jobs, pair.from) {
                jobs[job].error = Some(EvacuateError::Refused(pair.from));
            }
        }
        stats
    }

    /// The job that still tries to empty the block of `frame`.
    fn job_of(&self, jobs: &Jobs, frame: Pfn) -> Option<usize> {
        let block = self.frames.block_of(frame)?;
        jobs.iter()
            .position(|job| job.block == block && job.token.is_some() && job.error.is_none())
    }

    /// Waits until the pending pairs have settled, or until the deadline: then their blocks are given up.
    fn wait_for(&self, jobs: &mut Jobs, pending: &mut [MovePair], owners: u32) {
        let deadline = self
            .platform
            .now()
            .saturating_add(self.config.pending_timeout_ns);
        let mut left = pending.len();
        let mut idle = 0;
        // Every turn either settles a pair or is idle, so there are at most `pending.len()` x `idle_polls` turns.
        while left > 0 && idle < self.config.idle_polls {
            // Acquire pairs with the release in `complete`.
            let before = self.settled.load(Ordering::Acquire);
            // Looked at after the counter was read: what settles later changes the counter.
            left = gather(&mut pending[..left], |pair| {
                !matches!(
                    self.frames.state(pair.from),
                    FrameState::Free | FrameState::Listed
                )
            });
            if left == 0 || self.platform.now() >= deadline {
                break;
            }
            let mut progress = false;
            for class in (0..u32::BITS).filter(|class| owners & (1 << class) != 0) {
                let owner = u8::try_from(class)
                    .ok()
                    .and_then(dirigible_frames::OwnerClass::new);
                if let Some(owner) = owner.and_then(|class| self.registry.enter(class)) {
                    progress |= owner.poll(deadline);
                }
            }
            if progress || self.settled.load(Ordering::Acquire) != before {
                idle = 0;
            } else {
                idle += 1;
                self.platform.relax();
            }
        }
        for pair in &pending[..left] {
            if let Some(job) = self.job_of(jobs, pair.from) {
                jobs[job].error = Some(EvacuateError::TimedOut);
            }
        }
    }

    /// Ends a job: an emptied block stays isolated in its token, any other is opened again.
    fn finish(&self, cpu: CpuId, job: &mut Job, space: &mut Workspace) {
        let Some(token) = job.token.take() else {
            return;
        };
        let events = self.frames.events();
        if job.error.is_none() && self.becomes_whole(job.block) {
            events.add(cpu, Event::CompactBlockEmptied, 1);
            job.token = Some(token);
            return;
        }
        let error = *job.error.get_or_insert(EvacuateError::NotEmpty);
        self.frames.unisolate_block(token);
        events.add(cpu, Event::CompactBlockAborted, 1);
        if error.lasts() {
            let until = self
                .platform
                .now()
                .saturating_add(self.config.refusal_memory_ns);
            // After the block was opened, which counts as a change. What changes in between unseen costs one
            // `refusal_memory_ns` at most.
            space
                .refusals
                .remember(job.block, self.frames.block_changes(job.block), until);
        }
    }

    /// Whether the block is wholly free, allowing for frees that other CPUs are in the middle of.
    fn becomes_whole(&self, block: BlockId) -> bool {
        self.soon(|| usize::from(self.frames.ledger(block).free()) == FRAMES_PER_BLOCK)
    }

    /// Whether something is so, now or within a few moments.
    fn soon(&self, so: impl Fn() -> bool) -> bool {
        (0..16).any(|_| {
            let is = so();
            if !is {
                self.platform.relax();
            }
            is
        })
    }
}
