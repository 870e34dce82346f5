//! Sums up the closing lines of test binaries.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

/// Runs a test command, passes its output through and adds up its closing lines.
///
/// # Errors
///
/// The command cannot be run, or failed.
pub fn tests(command: &mut Command, total: &mut Totals) -> Result<(), String> {
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

/// The sums of the closing lines of test binaries.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// Parses a line like `test result: ok. 3 passed; 0 failed; …`.
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

    /// A closing line with these sums.
    pub fn closing_line(self, all_well: bool, elapsed: Duration) -> String {
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
