//! One command of a chore: announced, timed, and loud when it fails.

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
    /// A step that is `command`.
    pub fn new(name: &'a str, command: &'a mut Command) -> Self {
        Self { name, command }
    }

    /// Runs it, its output passed through.
    ///
    /// # Errors
    ///
    /// Says which step failed and how.
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

/// Runs `work` between two lines that name it, the second with the time that it took.
///
/// # Errors
///
/// Those of `work`.
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

/// Cargo, at the root of the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    // Cargo tells its children which cargo it is.
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

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
