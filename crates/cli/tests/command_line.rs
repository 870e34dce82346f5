//! What the command says to input that it cannot use: a clear message and the right exit status, before anything runs.

use std::{fs, path::Path};

use assert_cmd::{Command, assert::Assert};

fn stress(flags: &str) -> Assert {
    let mut command = Command::cargo_bin("dirigible").expect("the command is built");
    command
        .arg("stress-highalloc")
        .args(flags.split_whitespace())
        .assert()
}

/// Runs the command and demands a usage error that says `message`.
fn refused(flags: &str, message: &str) {
    let output = stress(flags).code(2).get_output().clone();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(message), "{flags}: {stderr}");
    assert!(!stderr.contains("panicked"), "{flags}: {stderr}");
    assert!(output.stdout.is_empty(), "{flags}");
}

#[test]
fn sizes_that_are_zero_or_not_sizes() {
    refused("--memory 0", "a guest needs memory");
    refused("--step 0", "the balloon would never move");
    refused("--memory 4Q", "'4Q' is not a size");
    refused("--memory -4G", "'-4G' is not a size");
    refused("--balloon 1.5G", "'1.5G' is not a size");
    refused("--memory 99999999999G", "larger than any memory");
}

#[test]
fn sizes_that_are_not_whole_frames() {
    refused(
        "--memory 1000000001",
        "--memory 1000000001: not a whole number of frames",
    );
    refused(
        "--balloon 4095",
        "--balloon 4095: not a whole number of frames",
    );
    refused("--step 2K", "--step 2K: not a whole number of frames");
}

#[test]
fn sizes_that_do_not_fit() {
    refused("--memory 1024T", "larger than the host's memory");
    refused("--memory 1M", "a guest needs at least");
    refused(
        "--memory 128M --balloon 128M",
        "must be smaller than the guest's memory",
    );
    refused(
        "--memory 128M --balloon 1G",
        "must be smaller than the guest's memory",
    );
    refused(
        "--memory 128M --balloon 32M --step 64M",
        "larger than the balloon",
    );
}

#[test]
fn names_that_are_unknown() {
    refused("--profile slow", "invalid value 'slow' for '--profile");
    refused("--schedule never", "invalid value 'never' for '--schedule");
    refused(
        "--columns pinned,loose",
        "invalid value 'loose' for '--columns",
    );
    refused("--columns pinned,pinned", "pinned is named twice");
    refused("--columns ,", "--columns");
    refused("--machine abacus", "invalid value 'abacus' for '--machine");
    refused(
        "--inflate nowhere",
        "invalid value 'nowhere' for '--inflate",
    );
    refused("--colour", "unexpected argument '--colour'");
}

#[test]
fn numbers_that_are_none() {
    refused("--seed seven", "a seed is a whole number");
    refused("--seed -1", "a seed is a whole number");
    refused("--seed 18446744073709551616", "a seed is a whole number");
    refused(
        "--seed 18446744073709551615 --runs 2",
        "the last seed would be above",
    );
    refused("--runs 0", "--runs");
    refused("--runs x", "--runs");
    refused("--threads 100000", "more than the host's");
    refused("--period 60", "'60' is not a duration");
    refused("--period 0s", "the balloon needs time");
    refused("--load-scale 0", "'0' is not a factor");
    refused("--watermark-scale x", "'x' is not a factor");
    refused("--jobs 0", "--jobs");
}

#[test]
fn a_path_that_cannot_be_written_is_refused_before_the_run() {
    refused(
        "--json /nowhere/at/all.json",
        "--json /nowhere/at/all.json: cannot be written",
    );
    refused("--json /", "--json /: is a directory");
}

#[test]
fn a_report_survives_a_refusal() {
    let path = std::env::temp_dir().join(format!("dirigible-keep-{}.json", std::process::id()));
    fs::write(&path, "kept").unwrap();
    refused(
        &format!("--memory 0 --json {}", path.display()),
        "a guest needs memory",
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    fs::remove_file(&path).unwrap();
}

#[test]
fn the_hidden_command_needs_a_task() {
    for input in ["", "\n", "{\"plan\":3}\n"] {
        let mut command = Command::cargo_bin("dirigible").unwrap();
        let output = command
            .arg("run-column")
            .write_stdin(input)
            .assert()
            .code(2);
        let stderr = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(stderr.contains("no task on standard input"), "{stderr}");
    }
}

#[test]
fn help_has_examples_and_hides_what_is_not_for_people() {
    let help = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("dirigible").unwrap();
        let output = command
            .args(arguments)
            .assert()
            .success()
            .get_output()
            .clone();
        String::from_utf8(output.stdout).unwrap()
    };
    let whole = help(&["--help"]);
    assert!(
        whole.contains("stress-highalloc") && !whole.contains("run-column"),
        "{whole}"
    );
    assert!(help(&["stress-highalloc", "--help"]).contains("Examples:"));
    assert!(help(&["--version"]).starts_with("dirigible "));
}

#[test]
fn no_command_is_a_usage_error() {
    Command::cargo_bin("dirigible").unwrap().assert().code(2);
    assert!(Path::new(env!("CARGO_BIN_EXE_dirigible")).exists());
}
