//! How a run on QEMU fails.

use std::{fmt, io, path::PathBuf, time::Duration};

use dirigible_workload::params::ParamsError;
use thiserror::Error;

use crate::{options::Accel, qmp::QmpError};

/// Why a run has no result, and where to look further.
#[derive(Debug, Error)]
pub struct RunError {
    /// What went wrong.
    #[source]
    pub cause: Cause,
    /// What QEMU printed on its standard error; may be empty.
    pub stderr: String,
    /// Where the serial port's output was kept.
    pub log: Option<PathBuf>,
}

impl RunError {
    /// An error without output or log: QEMU was not started.
    pub(crate) fn before_start(cause: Cause) -> Self {
        Self {
            cause,
            stderr: String::new(),
            log: None,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if !self.stderr.is_empty() {
            write!(f, "\nQEMU's standard error: {}", self.stderr)?;
        }
        if let Some(log) = &self.log {
            write!(f, "\nthe guest's serial port: {}", log.display())?;
        }
        Ok(())
    }
}

/// What went wrong.
#[derive(Debug, Error)]
pub enum Cause {
    /// Parameters that are out of range.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The host did not give what the run needs.
    #[error("{what}: {error}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// The host's error.
        error: io::Error,
    },
    /// QEMU's control socket failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The guest's first message did not come.
    #[error("{}", no_hello(*.accel, *.limit))]
    NoHello {
        /// What runs its instructions.
        accel: Accel,
        /// How long was waited.
        limit: Duration,
    },
    /// KVM gave up on the guest.
    #[error("KVM cannot run the guest (an internal error of KVM); --accel tcg works everywhere")]
    Kvm,
    /// The guest began and did not come up.
    #[error("the guest began to boot but was not ready after {} s", .limit.as_secs_f32())]
    NotReady {
        /// How long was waited.
        limit: Duration,
    },
    /// The guest sends no more messages.
    #[error("the guest hangs: no message for {} s, the last was {last}", .limit.as_secs_f32())]
    Silent {
        /// How long was waited.
        limit: Duration,
        /// The last message.
        last: String,
    },
    /// The run takes too long.
    #[error("the guest is late: no report after {} s", .limit.as_secs())]
    Late {
        /// How long was waited.
        limit: Duration,
    },
    /// A step of a measurement takes too long.
    #[error("the guest did not {what} within {} s{state}", .limit.as_secs_f32())]
    Step {
        /// What it was to do.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
        /// How far it came, in brackets, or nothing.
        state: String,
    },
    /// The guest's tests take too long.
    #[error("the guest's tests hang: not done after {} s, {}", .limit.as_secs_f32(), last_test(.after))]
    TestsHang {
        /// How long was waited.
        limit: Duration,
        /// The test that ended last.
        after: Option<String>,
    },
    /// Some of the guest's tests failed.
    #[error("{failed} of the guest's tests failed")]
    TestsFailed {
        /// How many.
        failed: u64,
    },
    /// The kernel failed.
    #[error("the guest panicked: {why}{}", indented(.lines))]
    Panic {
        /// Where and why.
        why: String,
        /// What it printed after that.
        lines: Vec<String>,
    },
    /// The guest reports that its task failed.
    #[error("the guest failed: {why}")]
    Failed {
        /// Why.
        why: String,
    },
    /// A message that cannot be parsed.
    #[error("malformed message from the guest ({why}): {line}")]
    Damaged {
        /// The line's beginning.
        line: String,
        /// What is wrong with it.
        why: String,
    },
    /// A message that does not fit the state of the run.
    #[error("the guest sent `{message}` where {wanted} was expected")]
    Unexpected {
        /// The message's beginning.
        message: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// QEMU has ended with status 0.
    #[error("the guest reset without a message (a triple fault?)")]
    Reset,
    /// The guest ended with success before it sent its result.
    #[error("the guest ended before it was done")]
    EndedEarly,
    /// The guest ended with failure and sent no reason.
    #[error("the guest failed without giving a reason")]
    EndedBadly,
    /// QEMU has ended otherwise.
    #[error("QEMU ended with {how}")]
    Ended {
        /// How.
        how: String,
    },
    /// QEMU still runs after the guest's last message.
    #[error("the guest did not turn off within {} s after its last message", .limit.as_secs_f32())]
    NoEnd {
        /// How long was waited.
        limit: Duration,
    },
    /// The books of guest and host about the balloon differ.
    #[error("the balloon: {what}")]
    Balloon {
        /// How.
        what: String,
    },
    /// The guest's report is not the one that was asked for.
    #[error("the guest's report: {what}")]
    Report {
        /// What is wrong with it.
        what: String,
    },
}

fn no_hello(accel: Accel, limit: Duration) -> String {
    let seconds = limit.as_secs_f32();
    match accel {
        Accel::Tcg => format!("the guest printed nothing within {seconds} s"),
        Accel::Kvm => format!(
            "the guest did not come up under KVM: it printed nothing within {seconds} s; --accel tcg works everywhere"
        ),
    }
}

fn last_test(last: &Option<String>) -> String {
    match last {
        Some(name) => format!("the last that ended was {name}"),
        None => "none has ended".into(),
    }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
