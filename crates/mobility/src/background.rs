//! Background compaction (kcompactd): keeps a reserve of wholly free blocks.

use dirigible_frames::sync::Ordering;
use dirigible_frames::{CpuId, Platform};

use crate::Mobility;
use crate::piece::Piece;
use crate::place::Lease;

/// What one call, or one piece in several steps, of background compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackgroundResult {
    /// Blocks emptied and opened again, wholly free.
    pub emptied: usize,
    /// The call stopped at its limit: another one right away would go on. False when the goal is reached, when
    /// nothing could be done, and while failures defer it: come back later.
    pub more: bool,
}

/// What one step of background compaction came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackgroundStep {
    /// There was nothing to do, or another step runs. Come back later.
    Idle,
    /// A piece of work is open and waits for answers of the host; it goes on in the next step.
    Pending,
    /// A piece of work is over.
    Worked(BackgroundResult),
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Whether background compaction has work: it has begun and not reached its goal, or should begin. Also true while
    /// failures defer it, so call [`compact_background`](Self::compact_background) at a pace, and at once again only
    /// when that reports `more`.
    pub fn wants_background(&self) -> bool {
        // Relaxed: a hint; `compact_background` looks again.
        if self.background_runs.load(Ordering::Relaxed) {
            self.below(self.config.reserve_high)
        } else {
            self.below(self.config.reserve_low)
        }
    }

    /// Whether fewer blocks are wholly free than `mark`; with the reserve off, whether a zone has enough free memory
    /// and no wholly free block.
    #[inline(never)]
    pub(crate) fn below(&self, mark: u64) -> bool {
        if self.config.reserve_low > 0 {
            return self.frames.free_blocks() < mark;
        }
        self.zone_ids().any(|zone| {
            self.frames.zone_free_blocks(zone) == 0
                && self.frames.zone_free_frames(zone) >= self.frames.watermarks(zone).high
        })
    }

    /// Empties up to `max_blocks` blocks, several together, as long as the reserve is short: it begins below
    /// `reserve_low` wholly free blocks and ends at `reserve_high`. What it sets aside meanwhile leaves each zone its
    /// low watermark, so that the requests of others succeed. A zone is left alone when nothing can be done in it;
    /// the call ends after `budget_blocks` vain rounds, and when the host does not answer in time. Never waits for a
    /// lock.
    ///
    /// It relaxes while the host has frames. Where that cannot be, use [`background_step`](Self::background_step).
    pub fn compact_background(&self, cpu: CpuId, max_blocks: usize) -> BackgroundResult {
        let Some((mut lease, mut piece)) = self.begin_background(cpu, max_blocks) else {
            return BackgroundResult::default();
        };
        let deadline = piece.deadline;
        loop {
            if let Some(result) = self.go_on(cpu, &mut piece, &mut lease, deadline) {
                return result;
            }
            self.platform.relax();
        }
    }

    /// The same work in steps that never wait: begins a piece of it, of up to `max_blocks` blocks, or goes on with
    /// the one that is open. While the host has frames and does not answer, the step ends
    /// ([`BackgroundStep::Pending`]), and the piece stays open.
    ///
    /// Call it again when an answer may have come, from any CPU. An open piece keeps one of the three workspaces and
    /// its blocks; everybody else goes on with the others. It is over when all is answered, or in the first step more
    /// than [`pending_timeout_ns`](crate::CompactionConfig::pending_timeout_ns) after its beginning, or after
    /// [`idle_polls`](crate::CompactionConfig::idle_polls) steps in a row in which nothing settled. So call this for
    /// as long as it gives `Pending`, or [give the piece up](Self::abandon_background_step).
    ///
    /// Never calls [`Platform::relax`] nor waits for a lock but the leaves. Owners are polled with a deadline that
    /// has passed: then they look at what is there, and do not wait. One step runs at a time; a call beside another,
    /// or from inside of compaction on the same CPU, does nothing ([`BackgroundStep::Idle`]; `Pending`, if a piece is
    /// open).
    pub fn background_step(&self, cpu: CpuId, max_blocks: usize) -> BackgroundStep {
        let Some(mut open) = self.background.try_lock() else {
            return BackgroundStep::Idle;
        };
        let mut lease = if let Some(piece) = &*open {
            let Some(lease) = self.try_resume(cpu) else {
                return BackgroundStep::Pending;
            };
            // Whoever comes late finds answers that were there in time.
            if self.platform.now() >= piece.deadline {
                self.take_answers(piece);
            }
            lease
        } else {
            let Some((lease, piece)) = self.begin_background(cpu, max_blocks) else {
                return BackgroundStep::Idle;
            };
            *open = Some(piece);
            lease
        };
        let Some(piece) = &mut *open else {
            return BackgroundStep::Idle;
        };
        match self.go_on(cpu, piece, &mut lease, self.platform.now()) {
            Some(result) => {
                *open = None;
                BackgroundStep::Worked(result)
            }
            None => {
                lease.park();
                BackgroundStep::Pending
            }
        }
    }

    /// Whether [`background_step`](Self::background_step) has left a piece open, or a step runs at this moment.
    pub fn background_is_open(&self) -> bool {
        self.background.try_lock().is_none_or(|open| open.is_some())
    }

    /// Gives up the piece that [`background_step`](Self::background_step) has left open, if there is one, without
    /// waiting: before a shutdown. What was not handed over goes back to its owners, blocks are opened, and pairs
    /// that are pending settle when their answers come ([`isolated_frames`](Self::isolated_frames) says how many
    /// frames are out).
    ///
    /// Gives whether nothing is open now. It is not so while a step runs on another CPU, or around this call: try
    /// again.
    pub fn abandon_background_step(&self, cpu: CpuId) -> bool {
        let Some(mut open) = self.background.try_lock() else {
            return false;
        };
        if let Some(piece) = &mut *open {
            let Some(mut lease) = self.try_resume(cpu) else {
                return false;
            };
            self.give_up(cpu, piece, &mut lease);
            *open = None;
        }
        true
    }

    /// What a piece of up to `max_blocks` blocks needs, if there is work.
    #[inline(never)]
    fn begin_background(&self, cpu: CpuId, max_blocks: usize) -> Option<(Lease<'_>, Piece)> {
        if max_blocks == 0 || !self.wants_background() {
            // Relaxed: written by whoever runs; the others take it for a hint.
            self.background_runs.store(false, Ordering::Relaxed);
            return None;
        }
        let lease = self.try_lease(cpu)?;
        let piece = self.begin_piece(cpu, max_blocks)?;
        Some((lease, piece))
    }
}
