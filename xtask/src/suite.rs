//! `cargo xtask test`: everything that a change must pass.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    no_std, pitfalls,
    step::{Step, cargo, root, seconds, target, timed},
};

/// Runs all steps, the cheapest first, and ends with the closing line of all tests together. A step that fails does not
/// keep the others from running: one run tells all that is wrong.
///
/// # Errors
///
/// The steps that failed.
pub fn run(quick: bool) -> Result<(), String> {
    let started = Instant::now();
    let mut failures = Vec::new();
    let mut total = Totals::default();
    let mut note = |result: Result<(), String>| failures.extend(result.err());
    note(Step::new("format", &mut cargo(&["fmt", "--all", "--check"])).run());
    note(timed("pitfalls", pitfalls::check));
    note(timed("no_std", no_std::check));
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    note(Step::new("clippy", &mut cargo(&clippy)).run());
    let docs = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    note(Step::new("docs", cargo(&docs).env("RUSTDOCFLAGS", "-D warnings")).run());
    note(deny());
    if !quick {
        note(timed("model checks", || model_checks(&mut total)));
        note(smoke());
    }
    let mut all = cargo(&["test", "--workspace", "--no-fail-fast"]);
    note(timed("tests", || tests(&mut all, &mut total)));
    let elapsed = started.elapsed();
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    println!(
        "{} of the steps failed, {} in all\n",
        failures.len(),
        seconds(elapsed)
    );
    println!("{}", total.closing_line(failures.is_empty(), elapsed));
    match failures.is_empty() {
        true => Ok(()),
        false => Err(format!("{} steps failed", failures.len())),
    }
}

/// Licences and advisories, where cargo-deny is installed. It needs the network, so a failure to fetch is not ours.
fn deny() -> Result<(), String> {
    let installed = cargo(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !installed {
        println!("==> deny: skipped, cargo-deny is not installed");
        return Ok(());
    }
    let checks = ["deny", "--offline", "check", "bans", "licenses", "sources"];
    Step::new("deny", &mut cargo(&checks)).run()
}

/// The tests that need `--cfg shuttle`, in a target folder of their own: the flag rebuilds everything.
fn model_checks(total: &mut Totals) -> Result<(), String> {
    for (folder, test) in model_checked()? {
        let manifest = folder.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)
            .map_err(|error| format!("cannot read {}: {error}", manifest.display()))?;
        let mut command = cargo(&["test", "--test", &test, "--manifest-path"]);
        command.arg(&manifest);
        if has_shuttle_feature(&text) {
            command.args(["--features", "shuttle"]);
        }
        command
            .env("RUSTFLAGS", "--cfg shuttle")
            .env("CARGO_TARGET_DIR", target().join("shuttle"));
        tests(&mut command, total)?;
    }
    Ok(())
}

/// Crates and their tests called `shuttle…`.
fn model_checked() -> Result<Vec<(PathBuf, String)>, String> {
    let mut found = Vec::new();
    let crates = root().join("crates");
    let folders = fs::read_dir(&crates)
        .map_err(|error| format!("cannot read {}: {error}", crates.display()))?;
    for folder in folders.filter_map(Result::ok).map(|entry| entry.path()) {
        let Ok(tests) = fs::read_dir(folder.join("tests")) else {
            continue;
        };
        for test in tests.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = test.file_stem().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| name.starts_with("shuttle")) else {
                continue;
            };
            if test.extension().is_some_and(|extension| extension == "rs") {
                found.push((folder.clone(), name.to_string()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a manifest has a feature `shuttle`, of its own or by an optional dependency.
fn has_shuttle_feature(manifest: &str) -> bool {
    manifest.lines().any(|line| {
        line.starts_with("shuttle = [")
            || (line.starts_with("shuttle = {") && line.contains("optional = true"))
    })
}

/// A small run of the command as a user starts it.
fn smoke() -> Result<(), String> {
    let run = "run --release --quiet -- stress-highalloc --memory 256M --balloon 64M --step 16M --profile quick";
    Step::new(
        "a run of the command",
        &mut cargo(&run.split(' ').collect::<Vec<_>>()),
    )
    .run()
}

/// Runs a cargo test command, passes its output through and adds up its closing lines.
fn tests(command: &mut Command, total: &mut Totals) -> Result<(), String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            *total += Totals::of_closing_line(&line).unwrap_or_default();
        }
    }
    let status = child
        .wait()
        .map_err(|error| format!("cannot wait for {command:?}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("tests failed ({status}): {command:?}")),
    }
}

/// What the closing lines of test binaries say, added up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// What a line like `test result: ok. 3 passed; 0 failed; …` says.
    fn of_closing_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut total = Self::default();
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else {
                continue;
            };
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => total.passed = number,
                "failed" => total.failed = number,
                "ignored" => total.ignored = number,
                _ => {}
            }
        }
        Some(total)
    }

    /// Such a line.
    fn closing_line(self, all_well: bool, elapsed: Duration) -> String {
        let Self {
            passed,
            failed,
            ignored,
        } = self;
        let verdict = if all_well && failed == 0 {
            "ok"
        } else {
            "FAILED"
        };
        format!(
            "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; \
             finished in {:.2}s",
            elapsed.as_secs_f64()
        )
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up() {
        let line = "test result: ok. 33 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let mut total = Totals::of_closing_line(line).unwrap();
        assert_eq!(
            total,
            Totals {
                passed: 33,
                failed: 0,
                ignored: 2
            }
        );
        total +=
            Totals::of_closing_line("test result: FAILED. 1 passed; 4 failed; 0 ignored").unwrap();
        assert_eq!(
            total,
            Totals {
                passed: 34,
                failed: 4,
                ignored: 2
            }
        );
        assert!(
            total
                .closing_line(true, Duration::ZERO)
                .starts_with("test result: FAILED. 34 passed; 4 failed;")
        );
        assert_eq!(Totals::of_closing_line("test a ... ok"), None);
    }
}
