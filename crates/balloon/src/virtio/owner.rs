//! The balloon as an owner of movable frames.
#![forbid(unsafe_code)]

use dirigible_frames::{Pfn, Platform};
use dirigible_mobility::{MovableOwner, MovePair};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::VirtioBalloon;
use super::wait::Wait;
use crate::exchange::Begin;

impl<H: Hal, T: Transport + Send, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// One exchange: two messages.
    fn exchange(&self, pairs: &mut [MovePair]) {
        let mut wait = None;
        let exchange = loop {
            let begun = self.state.lock().balloon.begin_exchange(pairs);
            match begun {
                Begin::Started(exchange) => break exchange,
                Begin::Refused => return,
                Begin::NoRoom => {}
            }
            // Earlier exchanges have all slots and the host has not answered: this is its time, not the lock's.
            let wait =
                wait.get_or_insert_with(|| Wait::lasting(self.platform, self.config.wait_ns));
            self.pump();
            if !wait.go_on() {
                self.state.lock().balloon.refuse_all(pairs);
                return;
            }
        };
        self.pump();
        self.state.lock().balloon.finish_exchange(exchange, pairs);
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
    }

    fn putback(&self, frame: Pfn) {
        self.state.lock().balloon.putback(frame);
    }

    fn poll(&self, deadline: u64) -> bool {
        let settled = |balloon: &Self| {
            let state = balloon.state.lock();
            (state.balloon.settled(), state.balloon.pending_pairs())
        };
        let (before, _) = settled(self);
        let mut wait = Wait::until(self.platform, deadline);
        loop {
            self.pump();
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
