//! Devices that fail: looked for, reset, set up anew.
//!
//! Nobody waits for the device: a reset is ordered by one call and looked at by those that follow.
#![forbid(unsafe_code)]

use dirigible_frames::Platform;
use dirigible_frames::sync::Ordering;
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::wire::Wire;
use super::{Core, DiskState, VirtioDisk};
use crate::DiskError;

/// How the device is, as the driver sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Condition {
    Live,
    /// It is to be reset, or the reset that was ordered is not confirmed.
    Resetting {
        /// When the driver gives up.
        until: u64,
        /// Whether the device stays reset.
        last: bool,
    },
    Dead,
    Abandoned,
}

impl Condition {
    pub(super) const fn state(self) -> DiskState {
        match self {
            Self::Live => DiskState::Live,
            Self::Resetting { .. } => DiskState::Resetting,
            Self::Dead => DiskState::Dead,
            Self::Abandoned => DiskState::Abandoned,
        }
    }

    pub(super) const fn is_resetting(self) -> bool {
        matches!(self, Self::Resetting { .. })
    }
}

impl<H: Hal, T: Transport, P: Platform> VirtioDisk<'_, H, T, P> {
    /// The device is to be reset; `last`: for good.
    pub(super) fn begin_reset(&self, core: &mut Core, last: bool) {
        let until = self
            .platform
            .now()
            .saturating_add(self.config.reset_timeout_ns);
        let last = last || core.restarts >= self.config.restart_limit;
        core.restarts += 1;
        core.stats.resets += 1;
        core.condition = Condition::Resetting { until, last };
        self.urgent.store(true, Ordering::Release);
    }

    /// Begins a reset when a request was not answered in time; else says when to look again.
    pub(super) fn look_at_deadlines(&self, core: &mut Core, now: u64) {
        let first = core.places.first_deadline();
        if now >= first {
            self.begin_reset(core, false);
            return;
        }
        let look_at = match first {
            u64::MAX => u64::MAX,
            _ => first.min(now.saturating_add(self.config.ask_ns)),
        };
        self.look_at.store(look_at, Ordering::Relaxed);
    }

    /// Asks the device whether it has failed, and brings a reset forward.
    #[cold]
    pub(super) fn attend(&self) {
        if let Some(mut wire) = self.wire.try_lock() {
            self.attend_at(&mut wire);
        }
        // What came meanwhile.
        self.use_wire();
    }

    fn attend_at(&self, wire: &mut Wire<T>) {
        let mut core = self.core.lock();
        if core.condition == Condition::Live && wire.has_failed() {
            self.begin_reset(&mut core, false);
        }
        let Condition::Resetting { until, last } = core.condition else {
            return;
        };
        // Nobody else changes the condition now: that takes the wire.
        drop(core);
        wire.order_reset();
        let is_quiet = wire.confirmed().is_some();
        if !is_quiet && self.platform.now() < until {
            return;
        }
        // All requests have ended, and nobody sends one: the rings are ours.
        let restarted = is_quiet && !last && self.restart(wire);
        let mut core = self.core.lock();
        let begun = until.saturating_sub(self.config.reset_timeout_ns);
        let error = |deadline| match is_quiet {
            false => DiskError::Abandoned,
            true if deadline <= begun || !restarted => DiskError::Lost,
            true => DiskError::Interrupted,
        };
        core.stats.lost += u64::from(core.places.end_all(error));
        core.condition = match (is_quiet, restarted) {
            (false, _) => Condition::Abandoned,
            (true, false) => Condition::Dead,
            (true, true) => Condition::Live,
        };
        core.available = 0;
        // The used ring was cleared. If a device has written there already, it lies.
        self.seen.store(0, Ordering::Release);
        self.look_at.store(u64::MAX, Ordering::Relaxed);
        // The requests that have just ended are to be taken.
        self.urgent.store(true, Ordering::Release);
    }

    /// Sets a quiet device up anew; `false` if it does not let itself be, or is not the disk that it was. It is quiet
    /// then, or about to be.
    fn restart(&self, wire: &mut Wire<T>) -> bool {
        self.ring.clear();
        let negotiated = wire.negotiate(&self.config);
        let is_same = negotiated
            .is_ok_and(|device| device.shape == self.ring.shape && device.blocks >= self.blocks);
        if is_same {
            wire.start(&self.ring);
        } else {
            wire.order_reset();
        }
        is_same
    }
}
