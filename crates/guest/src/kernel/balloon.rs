//! The balloon's driver on this machine, and the interface through which the experiment drives it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible::balloon_worker::InterruptLine;
use dirigible_balloon::{BalloonDriver, MAX_PFNS, VirtioBalloon};
use dirigible_workload::{balloon::BalloonControl, protocol::Message};
use virtio_drivers::transport::DeviceType;

use super::{
    arch::line::Line,
    console::send,
    hal::GuestHal,
    platform::GuestPlatform,
    transport::{self, LineTransport},
};

/// The driver over PCI, with at most `N` frame numbers in a message.
pub type Driver<'a, const N: usize = MAX_PFNS> =
    VirtioBalloon<'a, GuestHal, LineTransport, GuestPlatform, N>;

/// Finds the machine's balloon device.
///
/// # Errors
///
/// There is none, or it cannot be accessed.
pub fn device() -> Result<LineTransport, alloc::string::String> {
    match transport::find(DeviceType::MemoryBalloon).next() {
        Some(Ok(transport)) => Ok(transport),
        Some(Err(error)) => Err(alloc::format!("the balloon device cannot be used: {error}")),
        None => Err(
            "the machine has no balloon device: start it with -device virtio-balloon-pci".into(),
        ),
    }
}

/// The balloon as the experiment sees it. The hypervisor sets its target.
pub struct BalloonPort<'a> {
    driver: &'a dyn BalloonDriver,
    line: Option<&'static Line>,
    /// The largest balloon target of the schedule, in frames.
    full: u64,
    was_full: AtomicBool,
    largest: AtomicU64,
}

impl<'a> BalloonPort<'a> {
    /// The balloon of `driver`, whose device interrupts on `line`. It is full when it holds `full` frames.
    pub fn new(driver: &'a dyn BalloonDriver, line: Option<&'static Line>, full: u64) -> Self {
        Self {
            driver,
            line,
            full,
            was_full: AtomicBool::new(false),
            largest: AtomicU64::new(0),
        }
    }

    /// The most frames that it held after any step.
    pub fn largest(&self) -> u64 {
        // Relaxed, as for `was_full`: one worker writes; the report is made when all actors have ended.
        self.largest.load(Ordering::Relaxed)
    }
}

impl BalloonControl for BalloonPort<'_> {
    /// Does nothing: the command sets the target through the hypervisor.
    fn set_target(&self, _frames: u64) {}

    fn target(&self) -> u64 {
        self.driver.target()
    }

    fn actual(&self) -> u64 {
        self.driver.actual()
    }

    fn stepped(&self) {
        let actual = self.driver.actual();
        self.largest.fetch_max(actual, Ordering::Relaxed);
        let is_full = self.full > 0 && actual == self.full;
        if is_full && !self.was_full.load(Ordering::Relaxed) {
            send(&Message::BalloonFull { frames: actual });
        }
        self.was_full.store(is_full, Ordering::Relaxed);
    }
}

impl InterruptLine for BalloonPort<'_> {
    fn is_pending(&self) -> bool {
        self.line.is_none_or(Line::is_pending)
    }
}
