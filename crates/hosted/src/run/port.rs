//! The balloon as the experiment uses it: driver and host side in one.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dirigible::balloon_worker::InterruptLine;
use dirigible_balloon::{BalloonDriver, VirtioBalloon};
use dirigible_workload::{
    balloon::BalloonControl,
    report::{Residency, Tenths},
};

use crate::{GuestRam, HostBalloon, HostedHal, HostedPlatform, InProcessTransport};

/// The driver over this machine's transport.
pub(crate) type Driver<'a> = VirtioBalloon<'a, HostedHal, InProcessTransport, HostedPlatform>;

/// Longest time that the interrupt's thread sleeps without looking up.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// Both ends of the balloon, and what is measured when it is full for the first time.
pub(crate) struct BalloonPort<'a> {
    driver: &'a dyn BalloonDriver,
    host: &'a HostBalloon,
    ram: &'a GuestRam,
    /// The schedule's fullest, in frames.
    full: u64,
    largest: AtomicU64,
    resident_full: OnceLock<(u64, u64)>,
}

impl<'a> BalloonPort<'a> {
    /// The balloon of `driver` and `host`, at its fullest with `full` frames.
    pub(crate) fn new(
        driver: &'a dyn BalloonDriver,
        host: &'a HostBalloon,
        ram: &'a GuestRam,
        full: u64,
    ) -> Self {
        Self {
            driver,
            host,
            ram,
            full,
            largest: AtomicU64::new(0),
            resident_full: OnceLock::new(),
        }
    }

    /// Most frames that it ever held after a step.
    pub(crate) fn largest(&self) -> u64 {
        self.largest.load(Ordering::Relaxed)
    }

    /// Resident memory before the balloon (`empty` frames) and when it was full; what it held then, 0 if it never was
    /// full.
    pub(crate) fn residency(&self, empty: u64) -> Residency {
        let (resident, held) = self.resident_full.get().copied().unwrap_or_default();
        Residency {
            empty_balloon_mib: Tenths::mib_of_frames(empty),
            full_balloon_mib: Tenths::mib_of_frames(resident),
            balloon_mib: Tenths::mib_of_frames(held),
        }
    }

    fn measure(&self) -> io::Result<()> {
        let actual = self.driver.actual();
        // Relaxed: one worker writes it, the report reads it when the worker has ended.
        self.largest.fetch_max(actual, Ordering::Relaxed);
        if self.full > 0 && actual == self.full && self.resident_full.get().is_none() {
            let resident = self.ram.resident_frames()?;
            let _ = self.resident_full.set((resident, actual));
        }
        Ok(())
    }

    /// The bottom half of the device's interrupt, for a thread of its own: sleeps until the device interrupts.
    pub(crate) fn serve_interrupts(&self, ended: &AtomicBool) {
        let line = self.host.interrupt();
        // Acquire: pairs with the release that ends the run.
        while !ended.load(Ordering::Acquire) {
            let seen = line.count();
            if line.is_pending() {
                self.driver.handle_interrupt();
            } else {
                line.wait_past(seen, LONGEST_SLEEP);
            }
        }
    }
}

impl BalloonControl for BalloonPort<'_> {
    fn set_target(&self, frames: u64) {
        // The schedule was checked against the guest's memory; a target that is refused shows in the report's means.
        let _ = self.host.set_target(frames);
    }

    fn target(&self) -> u64 {
        self.host.target()
    }

    fn actual(&self) -> u64 {
        self.driver.actual()
    }

    fn stepped(&self) {
        // Residency decides nothing; where it cannot be had, the report says 0.
        let _ = self.measure();
    }
}

impl InterruptLine for BalloonPort<'_> {
    fn is_pending(&self) -> bool {
        self.host.interrupt().is_pending()
    }
}
