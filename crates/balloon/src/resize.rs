//! Inflation and deflation.
#![forbid(unsafe_code)]

use core::borrow::BorrowMut;

use dirigible_frames::{FrameState, Pfn};

use crate::Features;
use crate::balloon::{Balloon, Work};
use crate::books::{Books, unlinked_word};
use crate::request::{MAX_PLAIN, MAX_RELIEF, Phase, RequestMemory, Role, Roles};

impl<B: Books + ?Sized, const N: usize, M: BorrowMut<RequestMemory<N>>> Balloon<'_, B, N, M> {
    /// A request of the kind of `role` that is still to be sent and not full.
    fn unsent(&self, role: Role) -> Option<usize> {
        let fits = |slot: &crate::request::Slot| {
            slot.phase == Phase::Ready && slot.role == role && slot.len() < self.config.batch
        };
        self.requests.slots().iter().position(fits)
    }

    /// For how many frames there is a place in requests of this kind.
    pub(crate) fn room(&self, role: Role) -> usize {
        let is_left = match role {
            Role::Relief => self.in_use(Roles::RELIEF) < MAX_RELIEF,
            _ => self.in_use(Roles::INFLATE | Roles::DEFLATE) < MAX_PLAIN,
        };
        match self.unsent(role) {
            Some(at) => self.config.batch - self.requests[at].len(),
            None if is_left => self.config.batch,
            None => 0,
        }
    }

    /// A request to add frames to.
    fn open(&mut self, role: Role) -> Option<usize> {
        if self.room(role) == 0 {
            return None;
        }
        self.unsent(role).or_else(|| {
            let at = self.free_slot()?;
            self.requests[at].begin(role, Phase::Ready);
            Some(at)
        })
    }

    /// Nothing more is added for now: releases a request to which nothing was added.
    fn close(&mut self, at: usize) {
        if self.requests[at].len() == 0 {
            self.requests[at].release();
        }
    }

    /// There was no free frame: inflation rests for the retry delay. Gives when the rest ends.
    pub fn inflate_failed(&mut self, now: u64) -> u64 {
        self.stats.retries += 1;
        self.retry_at = now.saturating_add(self.config.retry_delay_ns);
        self.retry_at
    }

    /// Begins to give frames (in state `Allocated`) to the host, and gives how many from the front it takes: fewer
    /// when the target has changed meanwhile. The others stay the caller's.
    ///
    /// They join a request that [`next_output`](Self::next_output) has not handed out yet, as far as it has room: a
    /// large request can be put together by several calls.
    pub fn begin_inflate(&mut self, frames: &[Pfn], now: u64) -> usize {
        let Work::Inflate(want) = self.plan(now) else {
            return 0;
        };
        let Some(slot) = self.open(Role::Inflate) else {
            return 0;
        };
        let word = unlinked_word(self.mark());
        let mut taken = 0;
        for &frame in frames.iter().take(want) {
            if !self.in_span(frame)
                || self
                    .books
                    .transition(frame, FrameState::Allocated, FrameState::Entering)
                    .is_err()
            {
                break;
            }
            self.books.claim(frame, self.id, word);
            let pushed = self.requests.push(slot, frame);
            debug_assert!(pushed, "want is at most a request's length");
            taken += 1;
        }
        self.close(slot);
        taken
    }

    /// Begins to take up to `want` frames back, fewer when the target has changed meanwhile: those of `preferred` that
    /// are on the list, then the newest. Gives how many. Frames in compaction's hands are passed over.
    ///
    /// They join a request that has not been handed out, as in [`begin_inflate`](Self::begin_inflate).
    pub fn begin_deflate(&mut self, want: usize, preferred: &[Pfn], now: u64) -> usize {
        match self.plan(now) {
            Work::Deflate(planned) => self
                .take_back(Role::Deflate, want.min(planned), preferred)
                .map_or(0, |(begun, _)| begun),
            _ => 0,
        }
    }

    /// How many frames were taken, and the slot that has them.
    #[inline(never)]
    fn take_back(&mut self, role: Role, want: usize, preferred: &[Pfn]) -> Option<(usize, usize)> {
        if self.fault().is_some() {
            return None;
        }
        let slot = self.open(role)?;
        let before = self.requests[slot].len();
        let full = self.config.batch.min(before.saturating_add(want));
        for &frame in preferred {
            if self.requests[slot].len() == full {
                break;
            }
            if self.is_listed_here(frame) {
                self.dequeue(slot, frame);
            }
        }
        while self.requests[slot].len() < full && self.fatal.is_none() {
            match self.list.newest(self.books) {
                Ok(Some(frame)) => self.dequeue(slot, frame),
                Ok(None) => break,
                Err(_) => self.damaged(self.list.len()),
            }
        }
        let begun = self.requests[slot].len() - before;
        self.close(slot);
        (begun > 0).then_some((begun, slot))
    }

    /// Deflates up to `want` frames because the guest is out of memory, and lets inflation rest. 0 without
    /// `DEFLATE_ON_OOM`.
    ///
    /// One request is kept for it. While that one is with the host it uses the others, and gives 0 when all of them are
    /// in use.
    pub fn begin_oom_deflate(&mut self, want: usize, preferred: &[Pfn], now: u64) -> usize {
        if !self.features.contains(Features::DEFLATE_ON_OOM) {
            return 0;
        }
        self.rest_until = now.saturating_add(self.config.oom_rest_ns);
        let role = match self.room(Role::Relief) {
            0 => Role::Deflate,
            _ => Role::Relief,
        };
        let Some((begun, slot)) = self.take_back(role, want, preferred) else {
            return 0;
        };
        // Counted when the host has let go of them.
        self.requests[slot].relief += begun as u64;
        begun
    }

    /// Listed -> Leaving.
    fn dequeue(&mut self, slot: usize, frame: Pfn) {
        if self.list.unlink(self.books, frame, self.mark()).is_err() {
            self.damaged(self.list.len());
            return;
        }
        match self
            .books
            .transition(frame, FrameState::Listed, FrameState::Leaving)
        {
            Ok(()) => {
                let pushed = self.requests.push(slot, frame);
                debug_assert!(pushed, "the caller counted");
            }
            // Off the list and in a foreign state: lost, and reported.
            Err(_) => self.damaged(1),
        }
    }
}
