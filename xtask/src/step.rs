//! One command of a task: it is announced and timed, and its failure is reported.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A command with a name.
pub struct Step<'a> {
    name: &'a str,
    command: &'a mut Command,
}

impl<'a> Step<'a> {
    /// A step that runs `command`.
    pub fn new(name: &'a str, command: &'a mut Command) -> Self {
        Self { name, command }
    }

    /// Runs the command and passes its output through.
    ///
    /// # Errors
    ///
    /// Which step failed, and how.
    pub fn run(self) -> Result<(), String> {
        let Self { name, command } = self;
        timed(name, || {
            let status = command
                .stdin(Stdio::null())
                .status()
                .map_err(|error| format!("{name}: cannot run {command:?}: {error}"))?;
            if status.success() {
                Ok(())
            } else {
                Err(format!("{name} failed ({status}): {command:?}"))
            }
        })
    }
}

/// Runs `work` and prints a line before and after it, the latter with the time that it took.
///
/// # Errors
///
/// The errors of `work`.
pub fn timed<T>(name: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    println!("==> {name}");
    let started = Instant::now();
    let result = work();
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    println!("<== {name}: {verdict} ({})", seconds(started.elapsed()));
    result
}

/// A duration in seconds, one decimal.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// A cargo command that runs at the root of the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    // Cargo passes its own path to its children.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The target directory of cargo.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
