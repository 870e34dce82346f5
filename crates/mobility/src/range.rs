//! A contiguous range in the making: a window of blocks is isolated, emptied and captured, or put back.
//!
//! All blocks are isolated before the first frame moves, and wholly free ones are captured at once. So no target lies
//! in the window, nobody takes what becomes free in it, and the watermark is tested for the whole of it. Block by
//! block it could not be so: the allocator keeps targets out of isolated blocks only, and a frame would move from one
//! block of the window to the next, and again. What is isolated and not empty yet stands in the workspace, which
//! bounds it ([`MAX_RANGE_USED`](crate::MAX_RANGE_USED)). It is then emptied in batches, as many blocks at a time as
//! a workspace holds frames of, and each emptied block is captured: it needs no place any more, and is known by its
//! state if it must be given back.
//!
//! In the end single frames are made of the captured blocks, and those outside of the range are freed.

use arrayvec::ArrayVec;
use dirigible_frames::{
    BlockId, BlockState, CpuId, FRAMES_PER_BLOCK, FrameClass, IsolateError, IsolatedBlock, Order,
    Pfn, Platform, Refusal, Watermark,
};

use crate::config::{MAX_BATCH_BLOCKS, WORKSPACE_FRAMES};
use crate::evacuate::{Attempt, Attempts};
use crate::migrate::Freed;
use crate::place::Lease;
use crate::plan::Purpose;
use crate::window::Window;
use crate::{EvacuateError, Mobility};

/// How often blocks of one window are isolated and tried again after a frame of them was under way.
const RETRIES: usize = 4;

/// What stood in the way, and in which block.
pub(crate) struct Obstacle {
    pub(crate) block: BlockId,
    pub(crate) error: EvacuateError,
}

/// One window under evacuation.
pub(crate) struct Range {
    cpu: CpuId,
    class: FrameClass,
    watermark: Watermark,
    pub(crate) window: Window,
    /// So many blocks of the window, from its first on, are ours: isolated and in the workspace, or captured, or lost.
    pub(crate) taken: usize,
    /// Blocks that were ours and were opened, because they could not be emptied.
    lost: ArrayVec<BlockId, MAX_BATCH_BLOCKS>,
    retries: usize,
}

impl Range {
    pub(crate) fn new(cpu: CpuId, class: FrameClass, watermark: Watermark, window: Window) -> Self {
        Self {
            cpu,
            class,
            watermark,
            window,
            taken: 0,
            lost: ArrayVec::new(),
            retries: RETRIES,
        }
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Isolates all blocks of a window and captures those that are wholly free. The zone's lock is held. What is
    /// taken when this fails is for [`put_window_back`](Self::put_window_back).
    pub(crate) fn isolate_window(
        &self,
        range: &mut Range,
        lease: &mut Lease<'_>,
    ) -> Result<(), Obstacle> {
        let window = range.window;
        // Before anything is isolated, which takes the lock of each CPU.
        for block in window.blocks() {
            self.examine(block);
            if self.frames.ledger(block).state() == BlockState::Isolated {
                let error = EvacuateError::Isolate(IsolateError::Isolated);
                return Err(Obstacle { block, error });
            }
            // Room in a workspace is no matter: the window is emptied in batches.
            if let Some(error) = self.unfit(block, &mut { usize::MAX }) {
                self.refuse(range.cpu, block, error);
                return Err(Obstacle { block, error });
            }
        }
        while range.taken < window.blocks {
            let end = window.blocks.min(range.taken + MAX_BATCH_BLOCKS);
            let piece: ArrayVec<BlockId, MAX_BATCH_BLOCKS> =
                window.part(range.taken, end).collect();
            let mut failed = None;
            let watermark = range.watermark;
            self.frames
                .isolate_blocks(&piece, watermark, |block, isolated| {
                    let error = match isolated {
                        // What is ours has no gap.
                        Ok(token) if failed.is_some() => return self.frames.unisolate_block(token),
                        Ok(token) => match self.keep(range.class, token, lease) {
                            Ok(()) => {
                                range.taken += 1;
                                return;
                            }
                            Err(error) => error,
                        },
                        Err(why) => EvacuateError::Isolate(why),
                    };
                    failed.get_or_insert(Obstacle { block, error });
                });
            if let Some(obstacle) = failed {
                return Err(obstacle);
            }
        }
        let used = lease.held.iter().map(|token| self.used_in(token)).sum();
        match self.lacks_targets(used, range.watermark) {
            Some(error) => Err(Obstacle {
                block: window.first,
                error,
            }),
            None => Ok(()),
        }
    }

    fn used_in(&self, token: &IsolatedBlock) -> usize {
        self.frames.ledger(token.block()).used().into()
    }

    /// Captures an isolated block if it is wholly free; else its token goes to the workspace, from whose end the next
    /// batch comes. Blocks with a refusal stand at the end: they are the likeliest to fail, and then little has
    /// moved. The others follow from the lowest on.
    fn keep(
        &self,
        class: FrameClass,
        token: IsolatedBlock,
        lease: &mut Lease<'_>,
    ) -> Result<(), EvacuateError> {
        let Err(token) = self.frames.capture_block(token, class) else {
            return Ok(());
        };
        if lease.held.is_full() {
            self.frames.unisolate_block(token);
            return Err(EvacuateError::NoRoom);
        }
        match self.frames.ledger(token.block()).refusal() {
            Refusal::None => lease.held.insert(0, token),
            _ => lease.held.push(token),
        }
        Ok(())
    }

    /// Empties and captures the blocks of an isolated window that are not empty, batch by batch.
    pub(crate) fn empty_window(
        &self,
        range: &mut Range,
        lease: &mut Lease<'_>,
    ) -> Result<(), Obstacle> {
        while !lease.held.is_empty() {
            let zone = self.frames.zone_of_block(range.window.first);
            let Some(state) = self.zone_state(zone) else {
                let block = range.window.first;
                let error = EvacuateError::Busy;
                return Err(Obstacle { block, error });
            };
            let mut attempts = Attempts::new();
            let mut room = WORKSPACE_FRAMES;
            while let Some(left) = lease
                .held
                .last()
                .and_then(|token| room.checked_sub(self.used_in(token)))
                && !attempts.is_full()
            {
                room = left;
                attempts.extend(lease.held.pop().map(Attempt::for_range));
            }
            let mut plan = self.plan(None, Purpose::Named(range.watermark));
            let used = self.begin_isolated(range.cpu, lease, &mut attempts, &mut plan);
            drop(state);
            let mut failed = attempts
                .iter()
                .find_map(|attempt| Some((attempt.block, attempt.error?)));
            if failed.is_some() {
                // The window is not to be had like this: nothing of the batch moves.
                for attempt in attempts.iter_mut().filter(|attempt| attempt.is_alive()) {
                    attempt.error = Some(EvacuateError::NoRoom);
                }
            }
            self.empty_blocks(range.cpu, lease, &mut attempts, used, self.deadline());
            for attempt in attempts {
                let block = attempt.block;
                let error = match attempt.result() {
                    Ok(token) => match self.keep(range.class, token, lease) {
                        Ok(()) => continue,
                        Err(error) => error,
                    },
                    Err(error) => error,
                };
                range.lost.push(block);
                failed.get_or_insert((block, error));
            }
            if let Some((block, error)) = failed {
                self.regain(range, lease, Obstacle { block, error })?;
            }
        }
        Ok(())
    }

    /// Isolates the blocks of a batch again that were lost because a frame was under way, a few times in each window:
    /// in many blocks there is often one, and a moment later it is where it belongs.
    fn regain(
        &self,
        range: &mut Range,
        lease: &mut Lease<'_>,
        obstacle: Obstacle,
    ) -> Result<(), Obstacle> {
        let momentary = matches!(
            obstacle.error,
            EvacuateError::UnderWay(_) | EvacuateError::NotEmpty
        );
        if !momentary || range.retries == 0 {
            return Err(obstacle);
        }
        range.retries -= 1;
        self.platform.relax();
        while let Some(&block) = range.lost.last() {
            let mut error = None;
            self.frames
                .isolate_blocks(&[block], range.watermark, |_, isolated| {
                    error = isolated
                        .map_err(EvacuateError::Isolate)
                        .and_then(|token| self.keep(range.class, token, lease))
                        .err();
                });
            if let Some(error) = error {
                return Err(Obstacle { block, error });
            }
            range.lost.pop();
            // The others first: the frame has so much longer to arrive.
            if lease
                .held
                .last()
                .is_some_and(|token| token.block() == block)
            {
                lease.held.rotate_right(1);
            }
        }
        Ok(())
    }

    /// Opens what is still isolated of a window and frees what was captured of it.
    pub(crate) fn put_window_back(&self, range: &Range, lease: &mut Lease<'_>) {
        // First those that were captured, while those in the workspace can be told from them: a block that is open
        // may be anybody's huge page a moment later.
        for block in range.window.part(0, range.taken) {
            let captured = self.frames.ledger(block).state() == BlockState::Huge;
            if captured && !range.lost.contains(&block) {
                let head = self.frames.block_start(block);
                Freed::new(self.frames, range.cpu).push(head, Order::HUGE);
            }
        }
        while let Some(token) = lease.held.pop() {
            self.frames.unisolate_block(token);
        }
    }

    /// Makes single frames of a captured window, and frees those that are not among the `frames` frames from `first`
    /// on.
    pub(crate) fn carve(&self, range: &Range, first: Pfn, frames: usize) {
        let mut outside = Freed::new(self.frames, range.cpu);
        let wanted = first..first.plus(frames as u64);
        for block in range.window.blocks() {
            let head = self.frames.block_start(block);
            self.frames.split_huge(head);
            let end = head.plus(FRAMES_PER_BLOCK as u64);
            if wanted.start <= head && end <= wanted.end {
                continue;
            }
            (0..FRAMES_PER_BLOCK as u64)
                .map(|at| head.plus(at))
                .filter(|frame| !wanted.contains(frame))
                .for_each(|frame| outside.push(frame, Order::BASE));
        }
    }
}
