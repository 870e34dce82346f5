//! The child's side: runs one column and prints its report.
//!
//! The task is the first line of standard input, which the parent then keeps open: when it is closed the parent has
//! ended, and this process exits. Progress goes to standard error, a line each; other lines there are error messages.
//! The report goes to standard output at the end.

use std::{
    io::{self, BufRead, Write},
    time::{Duration, Instant},
};

use dirigible_workload::report::{Observer, Progress};
use serde::Serialize;

use crate::{
    failure::Failure,
    plan::{ChildTask, Place},
};

/// What a line of progress begins with.
pub const PROGRESS: &str = "@progress";

/// Runs the task on standard input.
///
/// # Errors
///
/// A task that cannot be read is a usage error. Otherwise the error of the run.
pub fn run() -> Result<(), Failure> {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    let task: ChildTask = read
        .ok()
        .and_then(|_| serde_json::from_str(&line).ok())
        .ok_or_else(|| {
            Failure::Usage(
                "run-column is for the command's own use: no task on standard input".into(),
            )
        })?;
    std::thread::spawn(exit_with_parent);
    let json = run_task(&task)?;
    let mut out = io::stdout().lock();
    out.write_all(&json)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::Run(format!("cannot write the report: {error}")))
}

fn run_task(task: &ChildTask) -> Result<Vec<u8>, Failure> {
    let params = &task.params;
    let lines = &mut Lines::default();
    let column = match &task.place {
        Place::Hosted => dirigible_hosted::run::run_column(task.column, params, lines)
            .map_err(|error| error.to_string()),
        Place::Qemu(machine) => dirigible_qemu::run_column(task.column, params, machine, 0, lines)
            .map_err(|error| error.to_string()),
    };
    json(&column.map_err(Failure::Run)?)
}

fn json(report: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(report)
        .map_err(|error| Failure::Run(format!("cannot print the report: {error}")))
}

/// Waits until standard input is closed, because the parent has ended, and exits.
fn exit_with_parent() {
    // Nothing more is sent there, and an error means the same as the end.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    std::process::exit(1);
}

/// Least time between two lines: a virtual second may take only a millisecond.
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
        // That the parent has ended is noticed on standard input.
        let _ = writeln!(io::stderr().lock(), "{PROGRESS} {now_ms} {end_ms} {phase}");
    }
}
