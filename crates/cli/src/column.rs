//! The child's side: runs one column, or the twin, and prints its report.
//!
//! The job comes as the first line of standard input, which the parent then keeps open: when it ends, the parent is gone
//! (killed, interrupted, crashed) and so is this process. Progress goes to standard error, one line each; what else is
//! written there is an error message. The report goes to standard output when all is done.

use std::{
    io::{self, BufRead, Write},
    time::{Duration, Instant},
};

use dirigible_workload::report::{Observer, Progress};

use crate::{failure::Failure, plan::Job};

/// What a line of progress begins with.
pub const PROGRESS: &str = "@progress";

/// Does what standard input says.
///
/// # Errors
///
/// A job that cannot be read is a usage error; the rest is what the run says.
pub fn run() -> Result<(), Failure> {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    let job: Job = read
        .ok()
        .and_then(|_| serde_json::from_str(&line).ok())
        .ok_or_else(|| {
            Failure::Usage(
                "run-column is for the command's own use: no job on standard input".into(),
            )
        })?;
    std::thread::spawn(leave_with_the_parent);
    let json = run_job(&job)?;
    let mut out = io::stdout().lock();
    out.write_all(&json)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::Run(format!("cannot write the report: {error}")))
}

fn run_job(job: &Job) -> Result<Vec<u8>, Failure> {
    let params = crate::machine::params(job);
    let lines = &mut Lines::default();
    let report = match (job.column, &job.plan.qemu) {
        (Some(_), None) => dirigible_hosted::run::run_column(&params, lines)
            .map_err(|error| error.to_string())
            .map(|report| serde_json::to_vec(&report)),
        (Some(_), Some(machine)) => dirigible_qemu::run_column(&params, machine, 0, lines)
            .map_err(|error| error.to_string())
            .map(|report| serde_json::to_vec(&report)),
        // The twin has no machine.
        (None, _) => Ok(serde_json::to_vec(&dirigible_workload::twin::run_twin(
            &params,
        ))),
    };
    report
        .map_err(Failure::Run)?
        .map_err(|error| Failure::Run(format!("cannot print the report: {error}")))
}

/// Waits for the end of standard input, which is the end of the parent.
fn leave_with_the_parent() {
    // Whatever is read or goes wrong: nothing more is expected there.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    std::process::exit(1);
}

/// Least time between two lines: nobody reads faster, and a virtual second may take a millisecond.
const BETWEEN_LINES: Duration = Duration::from_millis(100);

/// Prints progress as lines on standard error, a few in a second.
#[derive(Default)]
struct Lines {
    last: Option<Instant>,
}

impl Observer for Lines {
    fn progress(&mut self, progress: Progress) {
        if self.last.is_some_and(|last| last.elapsed() < BETWEEN_LINES) {
            return;
        }
        self.last = Some(Instant::now());
        let Progress {
            phase,
            now_ms,
            end_ms,
        } = progress;
        // A parent that has gone is met on standard input.
        let _ = writeln!(io::stderr().lock(), "{PROGRESS} {now_ms} {end_ms} {phase}");
    }
}
