//! Waiting that always ends.
#![forbid(unsafe_code)]

use dirigible_frames::Platform;

/// How often a wait may find the clock where it was: a virtual clock may stand still while nothing is done.
const STANDSTILL: u32 = 4096;

/// A wait with a deadline.
pub(super) struct Wait<'p, P: Platform> {
    platform: &'p P,
    deadline: u64,
    seen: u64,
    standstill: u32,
}

impl<'p, P: Platform> Wait<'p, P> {
    pub(super) fn until(platform: &'p P, deadline: u64) -> Self {
        Self {
            platform,
            deadline,
            seen: platform.now(),
            standstill: 0,
        }
    }

    #[inline(never)]
    pub(super) fn lasting(platform: &'p P, ns: u64) -> Self {
        Self::until(platform, platform.now().saturating_add(ns))
    }

    /// Lets others run for a moment; `false` when the wait is over.
    #[inline(never)]
    pub(super) fn go_on(&mut self) -> bool {
        let now = self.platform.now();
        if now >= self.deadline {
            return false;
        }
        if now == self.seen {
            self.standstill += 1;
            if self.standstill > STANDSTILL {
                return false;
            }
        } else {
            (self.seen, self.standstill) = (now, 0);
        }
        self.platform.relax();
        true
    }
}
