//! `guest-test`: runs the guest kernel's own tests and prints them as cargo prints tests.

use std::fmt::Write;

use dirigible_qemu::{EndedTest, TestTotals};

use crate::{failure::Failure, print, qemu_args::GuestTest};

/// Runs the tests and prints each by name as it ends.
///
/// # Errors
///
/// No QEMU, no kernel, a test that failed or hangs.
pub fn run(args: &GuestTest) -> Result<(), Failure> {
    let machine = args.qemu.find()?;
    print::line(&format!("\nguest tests: {}", machine.describe()))?;
    let mut printed = Ok(());
    let totals = dirigible_qemu::guest_tests(&machine, &args.filter, &mut |test| {
        let now = print::line(&line(test));
        printed = std::mem::replace(&mut printed, Ok(())).and(now);
    });
    print::line(&format!("\n{}", closing_line(&totals)))?;
    totals
        .result
        .map_err(|error| Failure::Run(error.to_string()))?;
    printed
}

fn line(test: &EndedTest) -> String {
    let EndedTest { name, ms, failure } = test;
    let verdict = if failure.is_none() { "ok" } else { "FAILED" };
    let mut text = format!("test {name} ... {verdict} ({ms} ms)");
    for line in failure.iter().flat_map(|failure| failure.lines()) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n    {line}");
    }
    text
}

/// The line that test binaries end with, which `cargo xtask test` adds up.
fn closing_line(totals: &TestTotals) -> String {
    let verdict = match &totals.result {
        Ok(()) => "ok",
        Err(_) => "FAILED",
    };
    format!(
        "test result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        totals.passed,
        totals.failed,
        totals.elapsed.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_are_those_of_cargo() {
        let mut test = EndedTest {
            name: "paging::fault".into(),
            ms: 12,
            failure: None,
        };
        assert_eq!(line(&test), "test paging::fault ... ok (12 ms)");
        test.failure = Some("left: 1\nright: 2".into());
        assert_eq!(
            line(&test),
            "test paging::fault ... FAILED (12 ms)\n    left: 1\n    right: 2"
        );
        let totals = TestTotals {
            passed: 3,
            failed: 0,
            elapsed: Duration::from_millis(1234),
            result: Ok(()),
        };
        assert_eq!(
            closing_line(&totals),
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.23s"
        );
    }
}
