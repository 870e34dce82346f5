//! How a run on QEMU fails.

use std::{fmt, io, path::PathBuf, time::Duration};

use dirigible_workload::params::ParamsError;
use thiserror::Error;

use crate::{options::Accel, qmp::QmpError};

/// Why a run has no result, and what is left to look at.
#[derive(Debug, Error)]
pub struct RunError {
    /// What went wrong.
    #[source]
    pub cause: Cause,
    /// What QEMU said on its standard error; empty for nothing.
    pub stderr: String,
    /// Where the serial port's output was kept.
    pub log: Option<PathBuf>,
}

impl RunError {
    /// An error with nothing left to look at: QEMU was not started.
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
            write!(f, "\nQEMU says: {}", self.stderr)?;
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
    /// Parameters that no run can be made of.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The host did not give what the run needs.
    #[error("{what}: {error}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// What the host said.
        error: io::Error,
    },
    /// QEMU's control socket failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The guest did not say its first word.
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
    #[error("the guest began to boot and was not ready after {} s", .limit.as_secs_f32())]
    NotReady {
        /// How long was waited.
        limit: Duration,
    },
    /// The guest has fallen silent.
    #[error("the guest hangs: not a word for {} s, the last was {last}", .limit.as_secs_f32())]
    Silent {
        /// How long was waited.
        limit: Duration,
        /// The last word.
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
        /// What it said after that.
        lines: Vec<String>,
    },
    /// The guest says that its task cannot be done.
    #[error("the guest failed: {why}")]
    Failed {
        /// Why.
        why: String,
    },
    /// A message that cannot be understood.
    #[error("the guest says what cannot be understood ({why}): {line}")]
    Damaged {
        /// The line's beginning.
        line: String,
        /// What is wrong with it.
        why: String,
    },
    /// A message out of turn.
    #[error("the guest says `{said}` where {wanted} was expected")]
    OutOfTurn {
        /// The message's beginning.
        said: String,
        /// What should have come.
        wanted: &'static str,
    },
    /// QEMU has ended with status 0.
    #[error("the guest reset without a word (a triple fault?)")]
    Reset,
    /// The guest says that all was well, without what was asked for.
    #[error("the guest ended before it was done")]
    EndedEarly,
    /// The guest says that it failed, and not why.
    #[error("the guest failed and did not say why")]
    EndedBadly,
    /// QEMU has ended otherwise.
    #[error("QEMU ended with {how}")]
    Ended {
        /// How.
        how: String,
    },
    /// QEMU goes on after the guest's last word.
    #[error("the guest did not turn off within {} s after its last word", .limit.as_secs_f32())]
    NoEnd {
        /// How long was waited.
        limit: Duration,
    },
    /// Guest and host do not agree about the balloon.
    #[error("the balloon: {what}")]
    Balloon {
        /// About what.
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
        Accel::Tcg => format!("the guest did not say a word within {seconds} s"),
        Accel::Kvm => format!(
            "the guest did not come up under KVM: not a word within {seconds} s; --accel tcg works everywhere"
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
