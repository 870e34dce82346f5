//! What the command says to a QEMU, a guest or a flag that it cannot use, and that it leaves no process behind.

mod stand_in;

use std::{
    fs,
    process::{Command, Stdio},
};

use stand_in::{StandIn, is_gone, wait_until};

/// One column whose balloon has all its targets in a moment; limits are so short that the tests need not wait for them.
const COLUMN: &str = "stress-highalloc --machine qemu --memory 256M --balloon 64M --step 64M --profile quick \
                      --schedule held --time-scale 0.001 --columns steered --patience 0.02";

/// [`COLUMN`] with limits that a busy machine keeps, where no limit is to be met.
fn patient_column() -> String {
    COLUMN.replace("--patience 0.02", "--patience 1")
}

/// Not a test: what the script that stands in for QEMU calls.
#[test]
fn stand_in() {
    stand_in::stand_in();
}

#[test]
fn no_qemu() {
    for (program, text) in [
        ("/nowhere/qemu", "no QEMU: /nowhere/qemu does not exist"),
        (
            "qemu-of-nobody",
            "no QEMU: qemu-of-nobody is not on the PATH",
        ),
    ] {
        for command in [
            COLUMN,
            "guest-hello",
            "guest-test",
            "balloon-speed",
            "balloon-moves",
        ] {
            let mut run = Command::new(env!("CARGO_BIN_EXE_dirigible"));
            let words = command.split_whitespace().chain(["--qemu", program]);
            let output = run.args(words).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command}: {stderr}");
            assert!(stderr.contains(text), "{command}: {stderr}");
            assert!(
                stderr.contains("Debian package qemu-system-x86"),
                "{stderr}"
            );
        }
    }
}

#[test]
fn a_qemu_that_is_too_old_or_none() {
    let old = StandIn::of_version("", "QEMU emulator version 6.2.0 (Debian 1:6.2)");
    old.fails(COLUMN, 1, &["is QEMU 6.2.0: at least 7.0.0 is needed"]);
    let other = StandIn::of_version("", "tar (GNU tar) 1.34");
    other.fails("guest-hello", 1, &["that is not QEMU"]);
    assert_eq!(
        (old.pid(), other.pid()),
        (None, None),
        "nothing was started"
    );
}

#[test]
fn no_kernel() {
    let stand_in = StandIn::new("");
    let run = |kernel: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dirigible"));
        command.args(["guest-hello", "--guest", kernel, "--qemu"]);
        let output = command.arg(stand_in.script()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = run("/nowhere/kernel");
    assert!(
        text.contains("no guest kernel at /nowhere/kernel: build it with `cargo xtask guest`"),
        "{text}"
    );
    let text = run("/etc/passwd");
    assert!(text.contains("/etc/passwd: is no ELF file"), "{text}");
}

#[test]
fn flags_that_do_not_fit() {
    let stand_in = StandIn::new("");
    for (words, text) in [
        (
            "stress-highalloc --machine qemu --memory 64M --balloon 16M --step 4M",
            "--memory 64M: a guest in QEMU needs at least 256M",
        ),
        (
            "stress-highalloc --machine qemu --memory 1024T",
            "larger than the host's memory",
        ),
        (
            "stress-highalloc --machine qemu --threads 17",
            "at most 16 CPUs",
        ),
        (
            "stress-highalloc --memory 256M --balloon 0",
            "--qemu: only with --machine qemu",
        ),
        ("balloon-speed --memory 64M", "needs at least 256M"),
        ("balloon-speed --memory 1G --balloon 1G", "must be smaller"),
        ("balloon-speed --balloon 0", "there is nothing to measure"),
        ("balloon-speed --batch 4097", "--batch"),
        ("balloon-moves --moves 0", "--moves"),
        ("balloon-moves --step 1G", "larger than the balloon"),
        ("guest-test a b", "unexpected argument"),
        ("guest-hello --accel magic", "invalid value 'magic'"),
        ("guest-hello --patience 0", "'0' is not a factor"),
        (
            "balloon-speed --json /nowhere/at/all.json",
            "cannot be written",
        ),
    ] {
        stand_in.fails(words, 2, &[text]);
    }
    assert_eq!(stand_in.pid(), None, "nothing was started");
}

#[test]
fn a_qemu_that_does_not_start() {
    let words = [
        "QEMU ended with exit status 1",
        "cannot set up guest memory",
    ];
    StandIn::new("refuses").fails(COLUMN, 1, &words);
    StandIn::new("refuses").fails("guest-hello", 1, &words);
    StandIn::new("no-socket").fails(COLUMN, 1, &["does not answer on its control socket"]);
    StandIn::new("kvm-error").fails("guest-hello", 1, &["KVM cannot run the guest"]);
}

#[test]
fn a_guest_that_does_not_come_up() {
    let said = "steered (seed 1): the guest printed nothing within 2 s";
    StandIn::new("mute").fails(COLUMN, 1, &[said]);
    StandIn::new("not-ready").fails(COLUMN, 1, &["the guest began to boot but was not ready"]);
    StandIn::new("ends-early").fails(COLUMN, 1, &["the guest ended before it was done"]);
}

#[test]
fn a_guest_that_resets() {
    for scenario in ["reset-at-once", "reset"] {
        for command in [COLUMN, "guest-hello"] {
            StandIn::new(scenario).fails(command, 1, &["the guest reset", "a triple fault?"]);
        }
    }
    StandIn::new("reset").fails("guest-test", 1, &["the guest reset", "serial port: "]);
}

#[test]
fn a_guest_that_fails() {
    let panic = [
        "the guest panicked: no \"luck\" at here.rs:1\n  called from 0x0",
        "0x1d\n",
        "serial port: ",
    ];
    StandIn::new("panics").fails(COLUMN, 1, &panic);
    StandIn::new("panics").fails("guest-test", 1, &panic);
    StandIn::new("fails").fails(COLUMN, 1, &["the guest failed: no such device"]);
    StandIn::new("ends-badly").fails(COLUMN, 1, &["the guest failed without giving a reason"]);
    StandIn::new("killed").fails(COLUMN, 1, &["QEMU ended with signal 9"]);
    StandIn::new("damaged").fails(COLUMN, 1, &["malformed message from the guest"]);
}

#[test]
fn a_guest_that_hangs() {
    let said = "the guest hangs: no message for 2 s, the last was of phase warm-up, 0.0 s";
    StandIn::new("hangs").fails(COLUMN, 1, &[said, "serial port: "]);
    StandIn::new("hangs").fails(
        "guest-test --patience 0.02",
        1,
        &["tests hang: not done after 2.4 s, the last that ended was first"],
    );
    StandIn::new("stays").fails(COLUMN, 1, &["did not turn off within 2 s"]);
}

#[test]
fn a_control_socket_that_fails() {
    StandIn::new("socket-closes").fails(COLUMN, 1, &["QEMU has closed its control socket"]);
    StandIn::new("socket-mute").fails(
        COLUMN,
        1,
        &["does not answer on its control socket (balloon"],
    );
    StandIn::new("socket-refuses").fails(COLUMN, 1, &["refuses the command balloon: No balloon"]);
}

#[test]
fn books_that_do_not_agree() {
    let column = patient_column();
    StandIn::new("miscounts").fails(
        &column,
        1,
        &["the guest reports 16385 frames in its balloon, QEMU reports 16384"],
    );
    StandIn::new("keeps-memory").fails(&column, 1, &["QEMU's resident memory fell from"]);
    StandIn::new("other-column").fails(&column, 1, &["is of column \"other\", not of steered"]);
    let slow = column.replace("--time-scale 0.001", "--time-scale 1");
    StandIn::new("too-early").fails(&slow, 1, &["came before the balloon had all its targets"]);
    let speed = "balloon-speed --memory 256M --balloon 64M --rounds 1";
    StandIn::new("keeps-memory").fails(speed, 1, &["QEMU's resident memory fell from"]);
    StandIn::new("stale").fails(
        speed,
        1,
        &["of 16384 frames that came back 0 read as zeroes"],
    );
}

#[test]
fn a_column_that_runs() {
    let stand_in = StandIn::new("well");
    let json = std::env::temp_dir().join(format!("dirigible-qemu-{}.json", std::process::id()));
    let output = stand_in.run(&format!(
        "{} --full --json {}",
        patient_column(),
        json.display()
    ));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    for part in [
        "qemu machine, profile quick",
        "2 CPUs; QEMU 7.2.0, tcg, q35",
        "in the balloon then",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    assert_eq!(stderr, "", "no bars where there is no terminal");
    let text = fs::read_to_string(&json).unwrap();
    fs::remove_file(&json).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&report["machine"], &report["parameters"]["threads"]),
        (&"qemu".into(), &2.into())
    );
    assert_eq!(
        report["host"]["columns"][0]["residency"]["balloon_mib"],
        64.0
    );
}

#[test]
fn commands_that_run() {
    let output = |scenario, words| {
        let output = StandIn::new(scenario).run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(output("well", "guest-hello").contains("from start to the first line"));
    let text = output("well", "guest-test sec");
    assert!(
        text.contains("test second ... ok (7 ms)") && !text.contains("first"),
        "{text}"
    );
    assert!(
        text.contains("\ntest result: ok. 1 passed; 0 failed; 0 ignored;"),
        "{text}"
    );
    let text = output(
        "well",
        "balloon-speed --memory 256M --balloon 64M --rounds 2 --json -",
    );
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["rounds"].as_array().map(Vec::len), Some(2));

    let failing = StandIn::new("fails-a-test");
    let stdout = failing.fails("guest-test", 1, &["1 of the guest's tests failed"]);
    assert!(
        stdout.contains("test second ... FAILED (7 ms)\n    1 is not 2\n"),
        "{stdout}"
    );
    assert!(
        stdout.contains("test result: FAILED. 1 passed; 1 failed;"),
        "{stdout}"
    );
}

/// However the command ends, QEMU ends with it.
#[test]
fn nothing_is_left_behind() {
    let column = patient_column();
    for (words, signals) in [
        (column.as_str(), ["INT", "KILL"]),
        ("guest-test", ["TERM", "KILL"]),
    ] {
        for signal in signals {
            let stand_in = StandIn::new("hangs");
            let mut command = stand_in.command(words);
            let mut child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            wait_until("the stand-in runs", || stand_in.pid().is_some());
            let pid = stand_in.pid().unwrap();
            assert!(!is_gone(pid));
            // Its socket lies in a directory until the command is connected, which takes a moment.
            let parent = format!("dirigible-{}-", parent_of(pid));
            wait_until("the directory is gone", || temporary(&parent).is_empty());
            let number = child.id().to_string();
            let sent = Command::new("kill").args(["-s", signal, &number]).status();
            assert!(sent.unwrap().success());
            assert!(!child.wait().unwrap().success());
            wait_until("the stand-in is gone", || is_gone(pid));
        }
    }
}

fn parent_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Temporary files whose names begin like this.
fn temporary(start: &str) -> Vec<String> {
    let files = fs::read_dir(std::env::temp_dir()).unwrap();
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(start)).collect()
}
