//! Builds the guest kernel and runs it in QEMU.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
};

use crate::{
    size,
    step::{Step, cargo, timed},
    totals::{self, Totals},
};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// How the guest kernel is compiled. The configuration also sets its target directory.
const GUEST: [&str; 6] = [
    "--package",
    "dirigible-guest",
    "--profile",
    "kernel",
    "--config",
    ".cargo/guest.toml",
];

/// The path of the kernel with all checks, for its own tests.
const CHECKED: &str = "target/guest/x86_64-unknown-linux-gnu/kernel-checked/dirigible-guest";

/// Builds the guest kernel with debug assertions and overflow checks.
fn build_checked() -> Result<(), String> {
    let words = GUEST.map(|word| {
        if word == "kernel" {
            "kernel-checked"
        } else {
            word
        }
    });
    Step::new("guest with all checks", cargo(&["build"]).args(words)).run()
}

/// Builds the guest kernel.
///
/// # Errors
///
/// The kernel does not compile.
pub fn build_guest() -> Result<(), String> {
    Step::new("guest", &mut guest_build()).run()
}

/// The command that builds the guest kernel.
pub fn guest_build() -> Command {
    let mut build = cargo(&["build"]);
    build.args(GUEST);
    build
}

/// Builds the guest kernel and runs one of the command's commands on it.
///
/// # Errors
///
/// The kernel does not compile, or the command fails.
pub fn run(words: &[&str]) -> Result<(), String> {
    build_guest()?;
    let mut command = cargo(&["run", "--release", "--quiet", "--"]);
    command.args(words).args(machine_of(words));
    Step::new("qemu", &mut command).run()
}

/// The flags that select the machine: the experiment also runs on others.
fn machine_of(words: &[&str]) -> &'static [&'static str] {
    let told = words.iter().any(|word| word.starts_with("--machine"));
    match words.first() {
        Some(&"stress-highalloc") if !told => &["--machine", "qemu"],
        _ => &[],
    }
}

/// A small run that covers all parts.
const SMALL: &str = "stress-highalloc --machine qemu --memory 512M --balloon 128M --step 32M --profile quick --columns steered \
                     --time-scale 0.1";

/// The steps of `cargo xtask test` that need QEMU. Without QEMU or the guest kernel the rest is skipped.
pub fn suite(total: &mut Totals, note: &mut dyn FnMut(Result<(), String>)) {
    note(Step::new("clippy for the guest", &mut clippy()).run());
    let ready = timed("QEMU", install)
        .and_then(|()| build_guest())
        .and_then(|()| build_checked());
    let can_run = ready.is_ok();
    note(ready);
    if !can_run {
        return;
    }
    note(timed("size", size::check));
    note(Step::new("a boot of the guest", &mut command("guest-hello")).run());
    for machine in ["q35", "microvm"] {
        note(timed(&format!("the guest's tests on {machine}"), || {
            let mut tests = command("guest-test --qemu-machine");
            totals::tests(tests.args([machine, "--guest", CHECKED]), total)
        }));
    }
    note(timed("guests that fail", guests_that_fail));
    note(Step::new("a column under QEMU", &mut command(SMALL)).run());
    note(Step::new("balloon frames that move", &mut command("balloon-moves")).run());
}

/// How the kernel fails on request, and what the command must report then.
const FAILURES: [(&str, &str); 3] = [
    ("!panic", "the guest panicked: asked to panic"),
    ("!fault", "the guest panicked: page fault"),
    ("!reset", "the guest reset"),
];

/// Checks that the command fails with the right reason if the kernel fails.
fn guests_that_fail() -> Result<(), String> {
    for (how, expected) in FAILURES {
        let output = command("guest-test")
            .arg(how)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{how}: cannot run the command: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(1) || !said.contains(expected) {
            let status = output.status;
            return Err(format!("{how}: {status}, \"{expected}\" expected: {said}"));
        }
        println!("{how}: {expected} ... as it should");
    }
    Ok(())
}

fn clippy() -> Command {
    let mut clippy = cargo(&["clippy"]);
    clippy.args(GUEST).args(["--", "-D", "warnings"]);
    clippy
}

/// The command, started as a user starts it.
fn command(words: &str) -> Command {
    let mut command = cargo(&["run", "--release", "--quiet", "--"]);
    command.args(words.split_whitespace());
    command
}

/// Installs QEMU if it is missing.
fn install() -> Result<(), String> {
    if runs(PROGRAM, "--version") {
        return Ok(());
    }
    let advice = format!("there is no {PROGRAM}: install the Debian package {PACKAGE}");
    let is_root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !is_root || !runs("apt-get", "--version") {
        return Err(advice);
    }
    let install: &[&str] = &["install", "-y", "-q", "--no-install-recommends", PACKAGE];
    for words in [&["update", "-q"], install] {
        let mut apt = Command::new("apt-get");
        apt.args(words).env("DEBIAN_FRONTEND", "noninteractive");
        Step::new("apt-get", &mut apt).run()?;
    }
    match runs(PROGRAM, "--version") {
        true => Ok(()),
        false => Err(advice),
    }
}

/// Whether a program exists and succeeds with `argument`.
fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_experiment_gets_its_machine_once() {
        assert_eq!(
            machine_of(&["stress-highalloc", "--runs", "3"]),
            ["--machine", "qemu"]
        );
        assert_eq!(machine_of(&["stress-highalloc", "--machine=qemu"]), [""; 0]);
        assert_eq!(machine_of(&["guest-test"]), [""; 0]);
        assert_eq!(machine_of(&[]), [""; 0]);
    }

    #[test]
    fn programs_that_are_there_and_not() {
        assert!(runs("true", ""));
        assert!(!runs("false", ""));
        assert!(!runs("a-program-of-nobody", ""));
    }
}
