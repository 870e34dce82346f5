//! A machine's clock, as a queue of actors uses it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use dirigible::schedule::{Clock, Current};
use dirigible_frames::Platform;

use crate::platform::{HostedPlatform, Mode};

/// Longest sleep of a thread between two looks whether the run has ended.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// The clock of a machine, for an [`Engine`](dirigible::schedule::Engine) that runs on one of its threads.
///
/// In a deterministic machine, when all programs wait, time goes on to the next moment at which a device or an actor has
/// something to do.
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
        let until = self.0.next_due().min(next.unwrap_or(u64::MAX));
        match self.0.mode() {
            Mode::Deterministic if (self.0.now() + 1..u64::MAX).contains(&until) => {
                self.0.advance_to(until);
            }
            _ => self.0.let_time_pass(),
        }
    }

    fn with_current(&self, run: &mut dyn FnMut(&Current)) {
        HostedPlatform::with_current(run);
    }
}
