//! The balloon as an owner of movable frames.
#![forbid(unsafe_code)]

use dirigible_frames::{Pfn, Platform};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::VirtioBalloon;
use super::jobs::Jobs;
use super::wait::Wait;
use crate::exchange::{Begin, end_todo};

impl<H: Hal, T: Transport + Send, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// One exchange: two messages. Nothing here waits, and nothing touches the configuration space.
    fn exchange(&self, pairs: &mut [MovePair]) {
        let begin = |pairs: &mut [MovePair]| self.state.lock().balloon.begin_exchange(pairs);
        let mut begun = begin(pairs);
        if begun == Begin::NoRoom {
            // An answer that nobody has taken yet may make room.
            self.turn(Jobs::SWIFT);
            begun = begin(pairs);
        }
        match begun {
            Begin::Started(exchange) => {
                self.turn(Jobs::SWIFT);
                self.state.lock().balloon.finish_exchange(exchange, pairs);
            }
            Begin::Refused => {}
            Begin::NoRoom => {
                end_todo(pairs, Outcome::Busy);
            }
        }
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
            // The device was reset meanwhile: the frame is the guest's.
            self.give_back(&[frame]);
        }
    }

    fn poll(&self, deadline: u64) -> bool {
        let settled = |balloon: &Self| {
            let state = balloon.state.lock();
            (state.balloon.settled(), state.balloon.pending_pairs())
        };
        let (before, _) = settled(self);
        let mut wait = Wait::until(self.platform, deadline);
        loop {
            self.turn(Jobs::SWIFT);
            self.publish();
            self.keep_ledger();
            let (now, pending) = settled(self);
            if now != before {
                return true;
            }
            if pending == 0 || !wait.go_on() {
                return false;
            }
        }
    }
}
