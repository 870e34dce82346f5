//! The balloon's worker as a daemon.

use dirigible_balloon::{BalloonDriver, FrameSource, Step};

use crate::daemon::{Daemon, Next};

/// How often the balloon's worker looks, and how much it does at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BalloonWorkerConfig {
    /// Time between two looks, in nanoseconds. Default 10 ms.
    pub tick_ns: u64,
    /// Requests that it sends at most in one look. Default 4: 4 MiB in 10 ms.
    pub messages: usize,
}

impl Default for BalloonWorkerConfig {
    fn default() -> Self {
        Self {
            tick_ns: 10_000_000,
            messages: 4,
        }
    }
}

/// A device's interrupt line.
pub trait InterruptLine: Sync {
    /// Whether the device has interrupted since its driver looked last.
    fn is_pending(&self) -> bool;
}

/// Settles pairs that the host answered late.
pub(crate) trait Drain: Sync {
    fn drain(&self);
}

/// Works toward the balloon's target at a steady pace.
pub struct BalloonWorker<'a> {
    balloon: &'a dyn BalloonDriver,
    source: &'a dyn FrameSource,
    drain: Option<&'a dyn Drain>,
    line: Option<&'a dyn InterruptLine>,
    config: BalloonWorkerConfig,
}

impl<'a> BalloonWorker<'a> {
    /// The worker of `balloon`, which takes its frames from `source`. Somebody else calls the driver's bottom half, and
    /// [`Mobility::drain_settled`](dirigible_mobility::Mobility::drain_settled) where there is compaction.
    pub fn new(
        balloon: &'a dyn BalloonDriver,
        source: &'a dyn FrameSource,
        config: BalloonWorkerConfig,
    ) -> Self {
        Self {
            balloon,
            source,
            drain: None,
            line: None,
            config,
        }
    }

    /// The same, which also settles pairs that the host answered late.
    pub(crate) fn draining(self, drain: &'a dyn Drain) -> Self {
        Self {
            drain: Some(drain),
            ..self
        }
    }

    /// The same, which calls the driver's bottom half itself when `line` is pending.
    #[must_use]
    pub fn with_line(self, line: &'a dyn InterruptLine) -> Self {
        Self {
            line: Some(line),
            ..self
        }
    }
}

impl Daemon for BalloonWorker<'_> {
    fn step(&mut self, now: u64) -> Next {
        if self.line.is_some_and(|line| line.is_pending()) {
            self.balloon.handle_interrupt();
        }
        if let Some(drain) = self.drain {
            drain.drain();
        }
        let tick = now.saturating_add(self.config.tick_ns);
        match self.balloon.step(self.source, self.config.messages) {
            Step::Busy => Next::At(tick),
            // A new target may come at any time, also while the balloon rests because no frame was to be had.
            _ => Next::Event { latest: tick },
        }
    }
}
