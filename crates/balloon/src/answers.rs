//! Outputs and answers: requests go out, answers come in, frames change hands.
#![forbid(unsafe_code)]

use core::borrow::BorrowMut;

use dirigible_frames::{FrameState, Pfn};

use crate::balloon::{Balloon, Output, ProtocolError};
use crate::books::Books;
use crate::request::{Message, Phase, REQUESTS, RequestId, RequestMemory, Role, Roles};
use crate::{Fault, Queue};

impl<B: Books + ?Sized, const N: usize, M: BorrowMut<RequestMemory<N>>> Balloon<'_, B, N, M> {
    /// The next thing to do, or `None`. `message` receives the frames that it is about.
    pub fn next_output(&mut self, now: u64, message: &mut Message<N>) -> Option<Output> {
        if self.is_draining() && self.drain(message) {
            return Some(Output::Free);
        }
        for at in 0..REQUESTS {
            match (self.requests[at].phase, self.requests[at].role) {
                (Phase::Ready, _) if self.fatal.is_some() => self.withdraw(at),
                (Phase::Ready, role) => return Some(self.send(at, role, now, message)),
                _ => {}
            }
            let slot = &self.requests[at];
            if slot.phase == Phase::Done && slot.role.is_among(Roles::RESIZING) {
                message.fill(self.requests.pfns(at));
                self.requests[at].release();
                return Some(Output::Free);
            }
        }
        let actual = self.actual();
        if self.reported != Some(actual) && !self.down && self.fatal != Some(Fault::Removed) {
            self.reported = Some(actual);
            return Some(Output::WriteActual(actual as u32));
        }
        None
    }

    fn send(&mut self, at: usize, role: Role, now: u64, message: &mut Message<N>) -> Output {
        self.requests[at].phase = Phase::Sent;
        self.requests[at].sent_at = now;
        message.fill(self.requests.pfns(at));
        self.stats.messages += 1;
        if matches!(role, Role::ExchangeIn(_) | Role::ExchangeOut(_)) {
            self.stats.migrate_messages += 1;
        }
        Output::Send {
            queue: queue_of(role),
            request: RequestId::new(at as u8),
        }
    }

    /// The host has used a request. Its answer is not trusted: one that fits no request is counted and changes nothing.
    ///
    /// # Errors
    /// [`ProtocolError`] when the answer fits no request. The caller decides how many of them it tolerates, and calls
    /// [`protocol_broken`](Self::protocol_broken). (`VirtioBalloon` never passes on such an answer: an entry of the
    /// used ring that fits no descriptor cannot be skipped, so it ends the queue.)
    pub fn complete(&mut self, queue: Queue, request: RequestId) -> Result<(), ProtocolError> {
        let at = request.index();
        let fits = self
            .requests
            .get(at)
            .is_some_and(|slot| slot.phase == Phase::Sent && queue_of(slot.role) == queue);
        if !fits || self.fatal == Some(Fault::Removed) {
            self.stats.protocol_errors += 1;
            return Err(ProtocolError);
        }
        self.silent = None;
        match self.requests[at].role {
            Role::Inflate => {
                let given = self.arrive(at);
                self.promised += given;
                self.stats.inflated += given;
                self.requests[at].release();
            }
            Role::Deflate | Role::Relief => {
                let back = self.leave(at);
                self.promised -= back.min(self.promised);
                self.stats.deflated += back;
                self.stats.oom_deflated += self.requests[at].relief.min(back);
                self.requests[at].phase = Phase::Done;
            }
            Role::ExchangeIn(out) => self.exchange_arrived(at, usize::from(out)),
            Role::ExchangeOut(new) => self.exchange_left(at, usize::from(new)),
        }
        Ok(())
    }

    /// The device broke the protocol in a way that is not tolerated: counts it and sends nothing more until the
    /// device is reset and restarted.
    pub fn protocol_broken(&mut self) {
        self.stats.protocol_errors += 1;
        if self.fatal.is_none() {
            let errors = u32::try_from(self.stats.protocol_errors).unwrap_or(u32::MAX);
            self.fatal = Some(Fault::Protocol { errors });
        }
    }

    /// The queue did not take a request that [`Output::Send`] asked for: its frames go back to where they were.
    /// No further request is sent.
    pub fn send_failed(&mut self, request: RequestId) {
        let at = request.index();
        if self.fatal.is_none() {
            self.fatal = Some(Fault::Refused);
        }
        if self
            .requests
            .get(at)
            .is_some_and(|slot| slot.phase == Phase::Sent)
        {
            self.stats.messages -= 1;
            if matches!(
                self.requests[at].role,
                Role::ExchangeIn(_) | Role::ExchangeOut(_)
            ) {
                self.stats.migrate_messages -= 1;
            }
            self.withdraw(at);
        }
    }

    /// Undoes a request that the host has not seen.
    fn withdraw(&mut self, at: usize) {
        let slot = &mut self.requests[at];
        match slot.role {
            Role::Inflate => {
                self.unclaim(at);
                // Handed out as frames to be freed.
                self.requests[at].phase = Phase::Done;
            }
            Role::Deflate | Role::Relief => {
                for n in 0..self.requests[at].len() {
                    let frame = self.requests.frame(at, n);
                    self.relist(frame, FrameState::Leaving);
                }
                self.requests[at].release();
                self.undone += 1;
            }
            Role::ExchangeIn(_) => {
                self.unclaim(at);
                self.exchange_refused(at);
            }
            // The host has the new frames already, and keeps the old ones until it can be told.
            Role::ExchangeOut(_) => slot.phase = Phase::Sent,
        }
    }

    /// Entering -> Allocated, for frames that the host was never told of or has forgotten.
    #[inline(never)]
    pub(crate) fn unclaim(&mut self, at: usize) {
        for n in 0..self.requests[at].len() {
            let frame = self.requests.frame(at, n);
            if self
                .books
                .transition(frame, FrameState::Entering, FrameState::Allocated)
                .is_err()
            {
                self.damaged(1);
            }
            self.books.disown(frame);
        }
    }

    /// The host has the frames of slot `at`: Entering -> Listed. Gives how many.
    pub(crate) fn arrive(&mut self, at: usize) -> u64 {
        self.count_managed(at, -1);
        for n in 0..self.requests[at].len() {
            let frame = self.requests.frame(at, n);
            self.relist(frame, FrameState::Entering);
        }
        self.requests[at].len() as u64
    }

    /// `from` -> Listed, as the newest.
    pub(crate) fn relist(&mut self, frame: Pfn, from: FrameState) {
        match self.books.transition(frame, from, FrameState::Listed) {
            Ok(()) => self.list.push(self.books, frame),
            Err(_) => self.damaged(1),
        }
    }

    /// The host has let go of the frames of slot `at`: Leaving -> Allocated. They keep the balloon's owner number, so
    /// that the code that frees them knows where they came from. Gives how many.
    pub(crate) fn leave(&mut self, at: usize) -> u64 {
        self.count_managed(at, 1);
        for n in 0..self.requests[at].len() {
            let frame = self.requests.frame(at, n);
            if self
                .books
                .transition(frame, FrameState::Leaving, FrameState::Allocated)
                .is_err()
            {
                self.damaged(1);
            }
        }
        self.requests[at].len() as u64
    }

    /// All frames of slot `at` at once: the count is shared by all CPUs.
    #[inline(never)]
    fn count_managed(&self, at: usize, delta: i64) {
        if self.adjusts_managed() {
            let numbers = self.requests.pfns(at).iter();
            let mut frames = numbers.map(|&number| Pfn::new(u64::from(number)));
            self.books.adjust_managed(&mut frames, delta);
        }
    }
}

const fn queue_of(role: Role) -> Queue {
    match role {
        Role::Inflate | Role::ExchangeIn(_) => Queue::Inflate,
        Role::Deflate | Role::Relief | Role::ExchangeOut(_) => Queue::Deflate,
    }
}
