//! Moving frames: isolate, exchange, put back.
//!
//! An exchange of up to as many frames as a request holds is one inflate request with the new frames and, once that is
//! acknowledged, one deflate request with the old ones. So the host never holds less than it was promised, and nothing
//! is copied.
#![forbid(unsafe_code)]

use core::borrow::BorrowMut;

use dirigible_frames::{FrameState, Order, Pfn};
use dirigible_mobility::{MovePair, Outcome};

use crate::balloon::Balloon;
use crate::books::{Books, mark_of, unlinked_word};
use crate::request::{MAX_EXCHANGE, Phase, REQUESTS, RequestMemory, Role, Roles};

/// Names an exchange that its beginner still has to finish.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an exchange that is attended must be finished"]
pub struct ExchangeId(u8);

/// How [`Balloon::begin_exchange`] ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Begin {
    /// Do what [`Balloon::next_output`] says, then call [`Balloon::finish_exchange`].
    Started(ExchangeId),
    /// All request slots for exchanges are in use, and nothing has changed, the pairs included. Try again when an
    /// exchange has ended: when its pairs are fetched ([`Balloon::finish_exchange`]) or taken
    /// ([`Balloon::take_settled`]).
    NoRoom,
    /// Nothing can be moved: no pair was fit, or the device is broken. The pairs are refused.
    Refused,
}

impl<B: Books + ?Sized, const N: usize, M: BorrowMut<RequestMemory<N>>> Balloon<'_, B, N, M> {
    /// Takes a frame off the list for compaction: `Listed` -> `Isolated`. Refuses frames that are not on this
    /// balloon's list at this moment, and all frames while mobility is off, the balloon is stopping, or there is a
    /// [`fault`](Self::fault).
    pub fn isolate(&mut self, frame: Pfn) -> bool {
        if !self.config.mobility || self.is_stopping() || self.fault().is_some() {
            return false;
        }
        if !self.is_listed_here(frame) {
            return false;
        }
        if self.list.unlink(self.books, frame, self.mark()).is_err() {
            self.damaged(self.list.len());
            return false;
        }
        if self
            .books
            .transition(frame, FrameState::Listed, FrameState::Isolated)
            .is_err()
        {
            // Off the list and in a foreign state: lost, and reported.
            self.damaged(1);
            return false;
        }
        self.isolated += 1;
        self.stats.isolated += 1;
        true
    }

    /// Takes an isolated frame back. `true`: it is on the list again. `false`: the device was reset since it was
    /// isolated, the frame is the guest's again (`Allocated`) and the caller gives it to the allocator, as with
    /// [`Output::Free`](crate::balloon::Output::Free). A frame that was not isolated from this balloon is left alone.
    #[must_use = "a frame that is not on the list again is to be freed"]
    pub fn putback(&mut self, frame: Pfn) -> bool {
        let is_ours = self.in_span(frame)
            && self.books.state(frame) == FrameState::Isolated
            && self.books.owner(frame) == Some(self.id);
        if !is_ours {
            return true;
        }
        let Some(mark) = mark_of(self.books.word(frame)) else {
            // Its word was written over, so it is unknown which device had it.
            self.damaged(1);
            return true;
        };
        let is_current = mark == self.mark();
        let count = match is_current {
            true => &mut self.isolated,
            false => &mut self.orphans,
        };
        let Some(rest) = count.checked_sub(1) else {
            // No frame of this balloon is out, so this is another's.
            return true;
        };
        *count = rest;
        self.stats.returned += 1;
        if is_current {
            self.relist(frame, FrameState::Isolated);
            return true;
        }
        // As it was counted when the frame was given.
        if mark & 1 == 1 {
            self.books.adjust_managed(&mut core::iter::once(frame), 1);
        }
        let freed = self
            .books
            .transition(frame, FrameState::Isolated, FrameState::Allocated);
        if freed.is_err() {
            self.damaged(1);
        }
        freed.is_err()
    }

    /// Begins to exchange the `from` frames (isolated, this balloon's) for the `to` frames (held by the caller):
    /// at most as many pairs as one request holds, with outcome `Todo`. Pairs that are not fit are refused one by
    /// one; the others are left `Todo` until [`finish_exchange`](Self::finish_exchange).
    pub fn begin_exchange(&mut self, pairs: &mut [MovePair]) -> Begin {
        if self.fault().is_some() {
            return self.refuse_all(pairs);
        }
        if self.in_use(Roles::EXCHANGES) + 2 > MAX_EXCHANGE {
            return Begin::NoRoom;
        }
        let mut free = (0..REQUESTS).filter(|&at| self.requests[at].phase == Phase::Free);
        let (Some(new), Some(old)) = (free.next(), free.next()) else {
            return Begin::NoRoom;
        };
        self.requests[new].begin(Role::ExchangeIn(old as u8), Phase::Ready);
        self.requests[old].begin(Role::ExchangeOut(new as u8), Phase::Held);
        for pair in pairs
            .iter_mut()
            .filter(|pair| pair.outcome == Outcome::Todo)
        {
            if !self.take_pair(new, old, pair) {
                pair.outcome = Outcome::Refused;
                self.stats.refused += 1;
            }
        }
        if self.requests[new].len() == 0 {
            self.requests[new].release();
            self.requests[old].release();
            return Begin::Refused;
        }
        self.requests[new].attended = true;
        Begin::Started(ExchangeId(new as u8))
    }

    fn take_pair(&mut self, new: usize, old: usize, pair: &MovePair) -> bool {
        let fit = pair.order == Order::BASE
            && self.in_span(pair.from)
            && self.in_span(pair.to)
            && self.books.state(pair.from) == FrameState::Isolated
            && self.books.owner(pair.from) == Some(self.id)
            && self.books.word(pair.from) == unlinked_word(self.mark())
            && self.requests.push(new, pair.to);
        if !fit {
            return false;
        }
        if self
            .books
            .transition(pair.to, FrameState::Allocated, FrameState::Entering)
            .is_err()
        {
            self.requests.pop(new);
            return false;
        }
        self.books
            .claim(pair.to, self.id, unlinked_word(self.mark()));
        let pushed = self.requests.push(old, pair.from);
        debug_assert!(pushed, "both slots hold the same number");
        true
    }

    /// Refuses every pair that is still `Todo`.
    fn refuse_all(&mut self, pairs: &mut [MovePair]) -> Begin {
        self.stats.refused += end_todo(pairs, Outcome::Refused);
        Begin::Refused
    }

    /// Ends the attendance of an exchange: writes the outcome into its pairs (the same slice that began it).
    /// Pairs that the host has not answered become `Pending`. When they have ended they stay in the requests of their
    /// exchange until [`take_settled`](Self::take_settled) hands them out.
    pub fn finish_exchange(&mut self, exchange: ExchangeId, pairs: &mut [MovePair]) {
        let new = usize::from(exchange.0);
        let Role::ExchangeIn(old) = self.requests[new].role else {
            return;
        };
        let outcome = match self.requests[new].phase {
            Phase::Done => self.requests[new].outcome,
            _ => Outcome::Pending,
        };
        end_todo(pairs, outcome);
        self.requests[new].attended = false;
        if outcome != Outcome::Pending {
            self.end_exchange(new, usize::from(old));
        }
    }

    /// Hands out pairs that [`finish_exchange`](Self::finish_exchange) left `Pending` and that have ended since, each
    /// once: writes them to the front of `out`, with outcome `Moved` or `Refused`, and gives how many. Fewer than `out`
    /// holds: there are no more at the moment.
    ///
    /// Of a pair that has moved, `from` is in state `Allocated` and the caller's to be freed. Of a refused one,
    /// `from` is `Isolated` and to be [put back](Self::putback), and `to` is `Allocated` and the caller's again.
    ///
    /// Pairs that nobody takes keep the requests of their exchange: at most two exchanges, then
    /// [`begin_exchange`](Self::begin_exchange) has no room. Nothing else waits for them, neither
    /// [`device_reset`](Self::device_reset) nor [`restart`](Self::restart).
    pub fn take_settled(&mut self, out: &mut [MovePair]) -> usize {
        let mut taken = 0;
        for new in 0..REQUESTS {
            let Role::ExchangeIn(old) = self.requests[new].role else {
                continue;
            };
            if !self.requests[new].is_settled() {
                continue;
            }
            let old = usize::from(old);
            let (at, outcome) = (self.requests[new].handed_out, self.requests[new].outcome);
            let end = self.requests[new].len().min(at + out.len() - taken);
            for n in at..end {
                let (from, to) = (self.requests.frame(old, n), self.requests.frame(new, n));
                out[taken] = MovePair {
                    outcome,
                    ..MovePair::base(from, to)
                };
                taken += 1;
            }
            self.requests[new].handed_out = end;
            if end == self.requests[new].len() {
                self.end_exchange(new, old);
            }
        }
        taken
    }

    /// All pairs of the exchange are with whoever asked for them: its requests are free again.
    fn end_exchange(&mut self, new: usize, old: usize) {
        self.exchanges_ended += 1;
        self.requests[new].release();
        self.requests[old].release();
    }

    /// The exchange has ended. Its beginner fetches the outcome; if it does not attend any more, the pairs wait to be
    /// taken.
    fn settle(&mut self, new: usize, outcome: Outcome) {
        self.requests[new].outcome = outcome;
        self.requests[new].phase = Phase::Done;
    }

    /// The new frames are with the host: the old ones may leave it.
    pub(crate) fn exchange_arrived(&mut self, new: usize, old: usize) {
        self.arrive(new);
        self.requests[new].phase = Phase::Held;
        for n in 0..self.requests[old].len() {
            let frame = self.requests.frame(old, n);
            if self
                .books
                .transition(frame, FrameState::Isolated, FrameState::Leaving)
                .is_err()
            {
                self.damaged(1);
            }
        }
        self.isolated -= (self.requests[old].len() as u64).min(self.isolated);
        self.requests[old].phase = Phase::Ready;
    }

    /// The old frames are the guest's: the exchange is done.
    pub(crate) fn exchange_left(&mut self, old: usize, new: usize) {
        self.stats.frames_moved += self.leave(old);
        self.requests[old].phase = Phase::Held;
        self.settle(new, Outcome::Moved);
    }

    /// The host was not told of the exchange, or has forgotten it: everything is as before.
    pub(crate) fn exchange_refused(&mut self, new: usize) {
        self.stats.refused += self.requests[new].len() as u64;
        self.settle(new, Outcome::Refused);
    }
}

/// Gives all pairs that are `Todo` this outcome, and counts them. Not inlined, as the compiler unrolls the loop.
#[inline(never)]
pub(crate) fn end_todo(pairs: &mut [MovePair], outcome: Outcome) -> u64 {
    let mut ended = 0;
    for pair in pairs
        .iter_mut()
        .filter(|pair| pair.outcome == Outcome::Todo)
    {
        pair.outcome = outcome;
        ended += 1;
    }
    ended
}
