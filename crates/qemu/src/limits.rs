//! Time limits: every wait has one.

use std::time::Duration;

/// Time limits, all multiplied by the user's patience.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// One answer: of `qemu --version`, or to one QMP command.
    pub answer: Duration,
    /// The control socket's greeting, for each GiB of memory that QEMU has to touch first …
    pub touch_gib: Duration,
    /// … and after that, or from the start if there is no control socket, the guest's first line.
    pub hello: Duration,
    /// After that until the guest is up.
    pub boot: Duration,
    /// Between two messages of a guest that runs a column.
    pub silence: Duration,
    /// A column may take this much longer than its timeline.
    pub slack: Duration,
    /// All of the guest's tests.
    pub tests: Duration,
    /// One step of the balloon's speed: a target reached, all memory written or read.
    pub step: Duration,
    /// Until the books of guest and host agree about a full balloon.
    pub agree: Duration,
    /// Until QEMU ends after the guest's last message.
    pub end: Duration,
}

/// The shortest limit: a busy host takes that long to start a process.
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
