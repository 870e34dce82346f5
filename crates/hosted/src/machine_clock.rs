//! A machine's clock, as a queue of actors uses it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use dirigible::schedule::{Clock, Current, time};
use dirigible_frames::Platform;

use crate::platform::{HostedPlatform, Mode};

/// Longest jump of virtual time while programs wait: they look at their deadlines in between.
const LONGEST_JUMP: u64 = time::MILLISECOND;
/// Longest sleep of a thread between two looks whether the run has ended.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// The clock of a machine, for an [`Engine`](dirigible::schedule::Engine) that runs on one of its threads.
///
/// In a deterministic machine, when all programs wait, time goes on to the next moment at which a device or an actor
/// has something to do, at most a millisecond at once.
#[derive(Clone, Copy, Debug)]
pub struct MachineClock<'a>(&'a HostedPlatform);

impl<'a> MachineClock<'a> {
    /// The clock of this machine.
    pub fn new(platform: &'a HostedPlatform) -> Self {
        Self(platform)
    }
}

impl Clock for MachineClock<'_> {
    fn now(&self) -> u64 {
        self.0.now()
    }

    fn wait_until(&self, until: u64, ended: &AtomicBool) {
        if self.0.mode() == Mode::Deterministic {
            return self.0.advance_to(until);
        }
        // Acquire: pairs with the release that ends the run.
        while !ended.load(Ordering::Acquire) {
            let Some(left) = until.checked_sub(self.0.now()).filter(|&left| left > 0) else {
                return;
            };
            thread::sleep(Duration::from_nanos(left).min(LONGEST_NAP));
        }
    }

    fn pass(&self, next: Option<u64>) {
        if self.0.mode() == Mode::Threads {
            return self.0.let_time_pass();
        }
        let now = self.0.now();
        let mut due = self.0.next_due();
        if due <= now {
            self.0.run_due();
            due = self.0.next_due();
            if due > now {
                return;
            }
            // A device that always has more to do does not stop the clock.
            due = now + 1;
        }
        let latest = now + LONGEST_JUMP;
        let next = next.unwrap_or(latest).max(now + 1);
        self.0.advance_to(due.min(next).min(latest));
    }

    fn longest_wait(&self) -> Option<u64> {
        (self.0.mode() == Mode::Threads).then_some(time::MILLISECOND)
    }

    fn catch_up(&self) {
        self.0.run_due();
    }

    fn with_current(&self, run: &mut dyn FnMut(&Current)) {
        HostedPlatform::with_current(run);
    }
}
