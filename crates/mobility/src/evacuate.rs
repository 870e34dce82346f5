//! Evacuation: everything that is used in a block moves elsewhere, or everything stays.

use arrayvec::ArrayVec;
use dirigible_frames::sync::spin_hint;
use dirigible_frames::{
    BlockId, BlockState, Cost, CpuId, Event, FrameClass, FrameState, IsolateError, IsolatedBlock,
    Order, Pfn, Platform, Watermark,
};

use crate::config::{MAX_BATCH_BLOCKS, WORKSPACE_FRAMES};
use crate::migrate::Freed;
use crate::plan::{Plan, Purpose};
use crate::workspace::Workspace;
use crate::{Mobility, MovePair};

/// How often a frame without a state is looked at again.
const SPINS: usize = 64;

/// Why a block was not emptied. Nothing is lost in any of these cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvacuateError {
    /// All workspaces, or the zone, were in use for the whole of the bounded wait; or the call came from inside
    /// compaction.
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
    /// Together with the blocks before it, it holds more frames than the workspace; in a range, more blocks are partly
    /// used than can be isolated together.
    #[error("too many frames for one batch")]
    NoRoom,
    /// There are fewer targets outside the block than used frames in it, or they are needed above the watermark.
    #[error("too few free frames in other movable blocks, or above the watermark")]
    NoTargets,
    /// This frame has no registered owner, or its owner refused to isolate or to move it.
    #[error("frame {0} was refused")]
    Refused(Pfn),
    /// This frame was on its way from one holder to another, or pinned: it may be different in a moment.
    #[error("frame {0} is under way")]
    UnderWay(Pfn),
    /// Pairs were still pending at the deadline; they settle when the answer comes.
    #[error("moves were still pending at the deadline")]
    TimedOut,
    /// Everything moved that was there, and still the block is not wholly free.
    #[error("the block did not become wholly free")]
    NotEmpty,
}

impl EvacuateError {
    /// Whether what is missing is room outside the block: with fewer blocks at a time, or more free memory, it may go.
    pub(crate) const fn wants_room(self) -> bool {
        matches!(
            self,
            Self::NoTargets | Self::Isolate(IsolateError::BelowWatermark)
        )
    }
}

/// One block under evacuation.
pub(crate) struct Attempt {
    pub(crate) block: BlockId,
    /// Held while the block is being emptied; when the evacuation is over, the emptied block.
    pub(crate) token: Option<IsolatedBlock>,
    pub(crate) error: Option<EvacuateError>,
    /// Whether frames of it were isolated: a failure before that was cheap.
    pub(crate) worked_on: bool,
    /// Whether targets may come from wholly free blocks where there are no others.
    pub(crate) breaks_whole: bool,
    /// One past the last of its pairs, as collected.
    end: usize,
    /// For what frames of it are being written, to be dropped afterwards.
    pub(crate) writes: Option<Purpose>,
    /// Frames of it that are moved.
    pub(crate) moves: u16,
    /// What an observer has said of it.
    pub(crate) least: Option<u16>,
}

impl Attempt {
    /// One whose block is isolated already, for a range.
    pub(crate) fn for_range(token: IsolatedBlock) -> Self {
        Self {
            block: token.block(),
            token: Some(token),
            error: None,
            worked_on: false,
            breaks_whole: true,
            end: 0,
            writes: None,
            moves: 0,
            least: None,
        }
    }

    /// Whether it goes on.
    pub(crate) fn is_alive(&self) -> bool {
        self.token.is_some() && self.error.is_none()
    }

    /// How it ended.
    pub(crate) fn result(self) -> Result<IsolatedBlock, EvacuateError> {
        self.token
            .ok_or(self.error.unwrap_or(EvacuateError::NotEmpty))
    }
}

/// The blocks of one evacuation, in the order in which they were asked for.
pub(crate) type Attempts = ArrayVec<Attempt, MAX_BATCH_BLOCKS>;

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Empties a block, and gives it isolated and wholly free: capture it, convert it or open it again.
    ///
    /// Before anything moves, targets for all used frames are reserved outside the block and all used frames are
    /// isolated. If that cannot be done for every one of them, all are put back and the block is opened again. What is
    /// set aside meanwhile leaves each zone its min watermark.
    ///
    /// # Errors
    ///
    /// See [`EvacuateError`].
    pub fn evacuate(&self, block: BlockId) -> Result<IsolatedBlock, EvacuateError> {
        let mut result = Err(EvacuateError::NoCandidate);
        self.evacuate_each(&[block], &mut |_, outcome| result = outcome);
        result
    }

    /// Empties several blocks together, so that their balloon frames share exchanges with the host. Calls `each` once
    /// for every block, with no lock of mobility held. Blocks succeed and fail one by one.
    ///
    /// Blocks after the eighth, and those that do not fit into a workspace of [`WORKSPACE_FRAMES`] frames together with
    /// those before them, are not begun ([`EvacuateError::NoRoom`]).
    pub fn evacuate_many(
        &self,
        blocks: &[BlockId],
        mut each: impl FnMut(BlockId, Result<IsolatedBlock, EvacuateError>),
    ) {
        self.evacuate_each(blocks, &mut each);
    }

    /// [`evacuate_many`](Self::evacuate_many), once for all callers.
    fn evacuate_each(
        &self,
        blocks: &[BlockId],
        each: &mut dyn FnMut(BlockId, Result<IsolatedBlock, EvacuateError>),
    ) {
        let cpu = self.platform.cpu();
        let (now, later) = blocks.split_at(blocks.len().min(MAX_BATCH_BLOCKS));
        let mut attempts = Attempts::new();
        if let Some(mut lease) = self.lease(cpu)
            && let Some(zones) = self.zones_of(now)
        {
            let used;
            (attempts, used) =
                self.begin_blocks(cpu, &mut lease, now, Purpose::Named(Watermark::Min));
            drop(zones);
            self.empty_blocks(cpu, &mut lease, &mut attempts, used, self.deadline());
        }
        if attempts.is_empty() {
            now.iter()
                .for_each(|&block| each(block, Err(EvacuateError::Busy)));
        }
        for attempt in attempts {
            let block = attempt.block;
            each(block, attempt.result());
        }
        later
            .iter()
            .for_each(|&block| each(block, Err(EvacuateError::NoRoom)));
    }

    /// When an evacuation that begins now gives up what is still pending.
    pub(crate) fn deadline(&self) -> u64 {
        self.platform
            .now()
            .saturating_add(self.config.pending_timeout_ns)
    }

    /// Isolates at most [`MAX_BATCH_BLOCKS`] blocks, reserves targets for all their used frames and isolates these.
    /// What is set aside leaves the watermark of `purpose`, for which frames may be dropped. Blocks that fall short
    /// are over, and open, when this returns. The locks of the blocks' zones are held. Gives the attempts and how many
    /// pairs of the workspace are theirs; [`empty_blocks`](Self::empty_blocks) goes on.
    pub(crate) fn begin_blocks(
        &self,
        cpu: CpuId,
        space: &mut Workspace,
        blocks: &[BlockId],
        purpose: Purpose,
    ) -> (Attempts, usize) {
        // Only the blocks of one zone are emptied for a purpose that drops.
        let mut plan = self.plan(
            blocks.iter().find(|&&block| self.frames.has_block(block)),
            purpose,
        );
        let mut attempts = Attempts::new();
        let mut fit = ArrayVec::<BlockId, MAX_BATCH_BLOCKS>::new();
        let mut room = WORKSPACE_FRAMES;
        for &block in blocks.iter().take(MAX_BATCH_BLOCKS) {
            let error = self.unfit(block, &mut room);
            match error {
                None => fit.push(block),
                Some(error) => self.refuse(cpu, block, error),
            }
            attempts.push(Attempt {
                block,
                token: None,
                error,
                worked_on: false,
                breaks_whole: false,
                end: 0,
                writes: None,
                moves: 0,
                least: None,
            });
        }
        if let Some(&first) = fit.first() {
            self.tell_chosen(first, &mut attempts, &plan);
        }
        // All blocks are isolated before the first target is taken: no block of the batch serves as target.
        let mut fits = attempts
            .iter_mut()
            .filter(|attempt| attempt.error.is_none());
        self.frames
            .isolate_blocks(&fit, purpose.leaves(), |_, isolated| {
                if let Some(attempt) = fits.next() {
                    match isolated {
                        Ok(token) => attempt.token = Some(token),
                        Err(why) => attempt.error = Some(EvacuateError::Isolate(why)),
                    }
                }
            });
        let used = self.begin_isolated(cpu, space, &mut attempts, &mut plan);
        (attempts, used)
    }

    /// The second half of [`begin_blocks`](Self::begin_blocks): reserves targets for all used frames of the blocks
    /// that are isolated by now, and isolates these frames. Gives how many pairs of the workspace are theirs.
    pub(crate) fn begin_isolated(
        &self,
        cpu: CpuId,
        space: &mut Workspace,
        attempts: &mut Attempts,
        plan: &mut Plan,
    ) -> usize {
        let mut collected = 0;
        for attempt in attempts.iter_mut() {
            if attempt.token.is_some() {
                match self.collect(attempt.block, &mut space.pairs, collected) {
                    Ok(end) => collected = end,
                    Err(error) => attempt.error = Some(error),
                }
            }
            // A block that was refused half way leaves no pair behind.
            attempt.end = collected;
        }
        let mut used = 0;
        let mut from = 0;
        for attempt in attempts.iter_mut() {
            let range = from..attempt.end;
            from = attempt.end;
            if attempt.is_alive() {
                self.isolate_frames(cpu, attempt, &mut space.pairs, range, &mut used, plan);
            }
        }
        self.finish_dead(cpu, attempts);
        used
    }

    /// Why a block is not begun, by its ledger and its frames; takes its used frames off `room`.
    pub(crate) fn unfit(&self, block: BlockId, room: &mut usize) -> Option<EvacuateError> {
        if !self.frames.has_block(block) {
            return Some(EvacuateError::Isolate(IsolateError::Unknown));
        }
        let ledger = self.frames.ledger(block);
        if ledger.unmovable() > 0 || ledger.state() == BlockState::Huge {
            return Some(EvacuateError::Unmovable);
        }
        let Some(left) = room.checked_sub(usize::from(ledger.used())) else {
            return Some(EvacuateError::NoRoom);
        };
        // Before the block is isolated, which takes the lock of each CPU.
        let mut refused = None;
        self.each_used(block, &mut |frame| {
            refused = self.obvious_refusal(frame);
            refused.is_none()
        });
        if refused.is_none() {
            *room = left;
        }
        refused
    }

    /// Collects the used frames of an isolated block at `pairs[start..]`; gives the end.
    fn collect(
        &self,
        block: BlockId,
        pairs: &mut [MovePair; WORKSPACE_FRAMES],
        start: usize,
    ) -> Result<usize, EvacuateError> {
        // Nothing is allocated from the block any more: used frames only become fewer. (Before it was isolated they
        // can have become more.) Frames that other CPUs were taking or freeing at that moment have no state yet; they
        // have one in a few instructions. Not waited for with `relax`: the zone's lock is held.
        let all_seen = || {
            let used = usize::from(self.frames.ledger(block).used());
            let mut count = 0;
            self.each_used(block, &mut |_| {
                count += 1;
                true
            });
            let seen = count == used;
            if !seen {
                spin_hint();
            }
            seen
        };
        if !(0..SPINS).any(|_| all_seen()) {
            return Err(EvacuateError::NotEmpty);
        }
        let mut end = start;
        let mut refused = None;
        self.each_used(block, &mut |frame| {
            refused = self.obvious_refusal(frame);
            match pairs.get_mut(end) {
                _ if refused.is_some() => return false,
                Some(pair) => *pair = MovePair::base(frame, frame),
                None => refused = Some(EvacuateError::NoRoom),
            }
            end += 1;
            refused.is_none()
        });
        refused.map_or(Ok(end), Err)
    }

    /// Calls `look` for each used frame of a block until it gives `false`. Once for all who look.
    #[inline(never)]
    fn each_used(&self, block: BlockId, look: &mut dyn FnMut(Pfn) -> bool) {
        for frame in self.frames.used_frames(block) {
            if !look(frame) {
                return;
            }
        }
    }

    /// Cheap pre-check: why a used frame obviously cannot be isolated. Saves the reservation of targets.
    #[inline(never)]
    pub(crate) fn obvious_refusal(&self, frame: Pfn) -> Option<EvacuateError> {
        let Some(info) = self.frames.frame(frame) else {
            return Some(EvacuateError::Refused(frame));
        };
        let pinned = info.flags.contains(dirigible_frames::FrameFlags::PINNED);
        match info.state {
            // Given back since the block's field was read.
            FrameState::Free => None,
            _ if !info.class.is_movable() => Some(EvacuateError::Refused(frame)),
            // The ledger knows of pins: this one is younger than the choice of the block.
            _ if pinned => Some(EvacuateError::UnderWay(frame)),
            FrameState::Listed if info.order == Order::BASE => None,
            // A run, of whatever owner: only single frames are moved out of a block.
            FrameState::Listed | FrameState::Tail => Some(EvacuateError::Refused(frame)),
            _ => Some(EvacuateError::UnderWay(frame)),
        }
    }

    /// Reserves targets for the pairs in `range`, then isolates all their frames; moves the pairs down to
    /// `pairs[*used..]`. Where frames may be dropped, all are isolated first: then those that move get their targets,
    /// and the others leave. If any of that falls short, everything is undone and the attempt failed; what was dropped
    /// stays so.
    fn isolate_frames(
        &self,
        cpu: CpuId,
        attempt: &mut Attempt,
        pairs: &mut [MovePair],
        range: core::ops::Range<usize>,
        used: &mut usize,
        plan: &mut Plan,
    ) {
        let mut unused = Freed::new(self.frames, cpu);
        if !plan.drops {
            let watermark = plan.purpose.leaves();
            let reserved = self.reserve_targets(cpu, attempt, &mut pairs[range.clone()], watermark);
            if reserved < range.len() {
                unused.targets(&pairs[range]);
                attempt.error = Some(EvacuateError::NoTargets);
                return;
            }
        }
        attempt.worked_on = true;
        let start = *used;
        let mut counts = [0u64; 2];
        for at in range.clone() {
            let MovePair { from, to, .. } = pairs[at];
            match self.isolate_frame(from) {
                Some((kind, Order::BASE)) => {
                    counts[usize::from(kind.class == FrameClass::Balloon)] += 1;
                    // `*used` never overtakes `at`: pairs move down or stay.
                    pairs[*used] = MovePair::base(from, to);
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
                    self.putback_frame(cpu, from);
                    attempt.error = Some(EvacuateError::UnderWay(from));
                }
                None => match self.frames.state(from) {
                    FrameState::Free => unused.targets(&pairs[at..=at]),
                    FrameState::Listed => attempt.error = Some(EvacuateError::Refused(from)),
                    _ => attempt.error = Some(EvacuateError::UnderWay(from)),
                },
            }
            if attempt.error.is_some() {
                unused.targets(&pairs[at..range.end]);
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
        if plan.drops && attempt.error.is_none() {
            *used = start + self.decide(cpu, attempt, &mut pairs[start..*used], plan);
        }
        attempt.moves = (*used - start) as u16;
        if attempt.error.is_some() {
            for pair in &pairs[start..*used] {
                self.putback_frame(cpu, pair.from);
            }
            unused.targets(&pairs[start..*used]);
            *used = start;
        }
    }

    /// Ends the attempts that failed; none of their pairs is in the workspace any more, or all that are have been
    /// handed over.
    pub(crate) fn finish_dead(&self, cpu: CpuId, attempts: &mut Attempts) {
        for attempt in attempts.iter_mut().filter(|attempt| !attempt.is_alive()) {
            self.finish(cpu, attempt, false);
        }
    }

    /// Ends an attempt; `whole`: its block was emptied.
    pub(crate) fn finish(&self, cpu: CpuId, attempt: &mut Attempt, whole: bool) {
        let Some(token) = attempt.token.take() else {
            return;
        };
        let events = self.frames.events();
        if whole {
            events.add(cpu, Event::CompactBlockEmptied, 1);
            self.emptied(attempt.block);
            attempt.token = Some(token);
            return;
        }
        let error = *attempt.error.get_or_insert(EvacuateError::NotEmpty);
        events.add(cpu, Event::CompactBlockAborted, 1);
        self.open_refused(cpu, token, error);
    }
}
