//! The balloon as an owner of movable frames.
#![forbid(unsafe_code)]

use dirigible_frames::sync::Ordering;
use dirigible_frames::{Pfn, Platform};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::posted::TransportWork;
use super::wait::Wait;
use super::{State, VirtioBalloon};
use crate::exchange::{Begin, end_todo};

impl<H: Hal, T: Transport + Send, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// One exchange: two messages. Nothing here waits, and nothing touches the configuration space.
    fn exchange(&self, pairs: &mut [MovePair]) {
        let begun = self.state.lock().balloon.begin_exchange(pairs);
        match begun {
            Begin::Started(exchange) => {
                self.turn(TransportWork::SWIFT);
                self.state.lock().balloon.finish_exchange(exchange, pairs);
            }
            Begin::Refused => {}
            Begin::NoRoom => {
                // An answer that nobody has looked at may make room, once the pairs that it settles are taken.
                self.turn(TransportWork::SWIFT);
                end_todo(pairs, Outcome::Busy);
            }
        }
    }
}

impl<'a, H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'a, H, T, P, N> {
    /// Takes an isolated frame back: onto the list, or to the allocator if the device was reset meanwhile.
    #[inline(never)]
    pub(super) fn take_back(&self, frame: Pfn) {
        let is_listed = {
            let mut state = self.state.lock();
            let is_listed = state.balloon.putback(frame);
            if !is_listed {
                state.returning += 1;
            } else if state.balloon.is_listed_here(frame) {
                // Whatever the ledger says at the moment: it may have been isolated while that was something else.
                self.keep_frame(&mut state, frame);
            }
            is_listed
        };
        if !is_listed {
            self.give_back(&[frame]);
        }
    }

    /// After a call that may have settled pairs.
    pub(super) fn note_settled(&self, state: &State<'a, H, N>) {
        // Release pairs with the acquire in `take_settled`.
        let has_settled = state.balloon.settled_pairs() > 0;
        self.has_settled.store(has_settled, Ordering::Release);
    }
}

impl<H: Hal, T: Transport + Send, P: Platform, const N: usize> MovableOwner
    for VirtioBalloon<'_, H, T, P, N>
{
    fn isolate(&self, frame: Pfn) -> bool {
        self.state.lock().balloon.isolate(frame)
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        for batch in pairs.chunks_mut(self.config.exchange_batch) {
            self.exchange(batch);
        }
        self.publish();
    }

    fn putback(&self, frame: Pfn) {
        self.take_back(frame);
    }

    fn poll(&self, deadline: u64) -> bool {
        let before = self.state.lock().balloon.exchanges_ended();
        let mut wait = Wait::until(self.platform, deadline);
        loop {
            self.turn(TransportWork::SWIFT);
            self.publish();
            self.keep_ledger();
            let (progress, is_pending) = {
                let balloon = &self.state.lock().balloon;
                let ended = balloon.exchanges_ended() != before;
                (
                    ended || balloon.settled_pairs() > 0,
                    balloon.pending_pairs() > 0,
                )
            };
            if progress {
                return true;
            }
            if !is_pending || !wait.go_on() {
                return false;
            }
        }
    }

    fn take_settled(&self, out: &mut [MovePair]) -> usize {
        // Acquire pairs with the release in `note_settled`. What settles behind this look is for the next call.
        if !self.has_settled.load(Ordering::Acquire) {
            return 0;
        }
        let mut state = self.state.lock();
        let taken = state.balloon.take_settled(out);
        self.note_settled(&state);
        taken
    }
}
