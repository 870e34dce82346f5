//! How long is waited for what. Every wait has an end.

use std::time::Duration;

/// Time limits, all multiplied by the user's patience.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// One answer: of `qemu --version`, or to one QMP command.
    pub answer: Duration,
    /// QEMU's control socket, for each GiB of memory that it has to touch first …
    pub touch_gib: Duration,
    /// … and from there, or without a control socket from the start, the guest's first line.
    pub hello: Duration,
    /// From there until the guest is up.
    pub boot: Duration,
    /// Between two messages of a guest that runs a column.
    pub silence: Duration,
    /// A column may take this much longer than its timeline.
    pub slack: Duration,
    /// All of the guest's tests.
    pub tests: Duration,
    /// One step of the balloon's speed: a target reached, all memory written or read.
    pub step: Duration,
    /// The books of guest and host agree after this long at the latest.
    pub agree: Duration,
    /// QEMU's end after the guest's.
    pub end: Duration,
}

/// No limit is shorter: a busy host takes that long to start a process.
const LEAST: Duration = Duration::from_secs(2);

impl Limits {
    /// The limits, multiplied by `patience` thousandths.
    pub(crate) fn new(patience: u64) -> Self {
        let seconds =
            |seconds: u64| Duration::from_millis(seconds.saturating_mul(patience)).max(LEAST);
        Self {
            answer: seconds(10),
            touch_gib: seconds(15),
            hello: seconds(20),
            boot: seconds(60),
            silence: seconds(60),
            slack: seconds(120),
            tests: seconds(120),
            step: seconds(120),
            agree: seconds(2),
            end: seconds(10),
        }
    }
}
