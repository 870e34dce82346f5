//! The command as a user runs it: for some seconds, in a directory of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

/// A new empty directory.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn command(directory: &Path, seconds: u32) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dirigible-load"));
    command
        .args(["--memory", "64M", "--speed", "20", "--json"])
        .args(["--seconds", &seconds.to_string(), "--directory"])
        .arg(directory);
    command
}

/// Arguments of all processes that have to do with a directory.
fn processes(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let arguments = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    arguments
        .map(|arguments| String::from_utf8_lossy(&arguments).replace('\0', " "))
        .filter(|arguments| arguments.contains(directory))
        .collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn assert_nothing_is_left(directory: &Path) {
    assert_eq!(processes(directory), Vec::<String>::new());
    assert_eq!(entries(directory), Vec::<PathBuf>::new());
}

/// Waits for something, a few seconds.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        sleep(Duration::from_millis(20));
    }
}

/// The objects that a load has made so far.
fn objects(directory: &Path) -> usize {
    let trees = entries(directory)
        .into_iter()
        .flat_map(|root| entries_of(&root));
    let units = trees.flat_map(|tree| entries_of(&tree));
    let files = units.flat_map(|unit| entries_of(&unit));
    files
        .filter(|file| file.extension().is_some_and(|end| end == "o"))
        .count()
}

/// As `entries`, of a directory that may not be there, or be a file.
fn entries_of(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    })
}

#[test]
fn a_short_load_compiles_and_leaves_nothing() {
    let directory = directory("short");
    let output = command(&directory, 3).output().unwrap();
    let report = report(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}{errors}");
    assert!(errors.is_empty(), "{errors}");
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(
        (count("pages_wrong"), count("programs_failed")),
        (0, 0),
        "{report}"
    );
    for name in ["files_compiled", "programs_begun", "pages_piped"] {
        assert!(count(name) >= 4, "{report}");
    }
    for name in [
        "pages_touched",
        "pages_checked",
        "file_pages_read",
        "file_pages_written",
    ] {
        // How much it is depends on how busy the machine is.
        assert!(count(name) > 100, "{report}");
    }
    assert!((3_000..6_000).contains(&count("elapsed_ms")), "{report}");
    assert_eq!(count("memory_bytes"), 64 << 20);
    assert_nothing_is_left(&directory);
}

#[test]
fn the_summary_is_for_people_too() {
    let directory = directory("text");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dirigible-load"));
    command.args([
        "--memory",
        "64M",
        "--seconds",
        "1",
        "--speed",
        "100",
        "--directory",
    ]);
    let output = command.arg(&directory).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("load for 64 MiB, seed 1, "), "{text}");
    assert!(text.contains("0  pages with wrong contents"), "{text}");
    assert_nothing_is_left(&directory);
}

/// Begins a load and waits until it compiles.
fn begin(directory: &Path) -> Child {
    let mut command = command(directory, 600);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("no object is made", || {
        (objects(directory) > 0).then_some(())
    });
    assert!(processes(directory).len() >= 4);
    child
}

#[test]
fn a_load_whose_front_is_killed_leaves_nothing() {
    // Not INT: whoever runs the tests in the background may have it ignored, and children inherit that.
    for signal in ["KILL", "TERM"] {
        let directory = directory("killed");
        let mut child = begin(&directory);
        let pid = child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
        assert!(!child.wait().unwrap().success());
        until("something is left", || {
            let gone = processes(&directory).is_empty() && entries(&directory).is_empty();
            gone.then_some(())
        });
    }
}

#[test]
fn a_load_whose_supervisor_is_killed_leaves_nothing() {
    let directory = directory("orphaned");
    let child = begin(&directory);
    let parent = child.id().to_string();
    let supervisors = Command::new("ps")
        .args(["-o", "pid=", "--ppid", &parent])
        .output()
        .unwrap();
    let supervisors = String::from_utf8_lossy(&supervisors.stdout).into_owned();
    let sent = Command::new("kill")
        .args(["-s", "KILL", supervisors.trim()])
        .status();
    assert!(sent.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("ended by signal 9"), "{errors}");
    assert_nothing_is_left(&directory);
}

#[test]
fn a_load_whose_root_dies_says_so_and_leaves_nothing() {
    let directory = directory("rootless");
    let child = begin(&directory);
    let all = fs::read_dir("/proc").unwrap().flatten();
    let root = all.filter(|entry| {
        let arguments = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        arguments.contains(directory.to_str().unwrap())
            && arguments.contains("\"program\":\"main\"")
    });
    let pids: Vec<_> = root.map(|entry| entry.file_name()).collect();
    assert_eq!(pids.len(), 1);
    assert!(
        Command::new("kill")
            .args(["-s", "KILL"])
            .args(pids)
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("the load ended by itself"), "{errors}");
    assert!(report(&output)["files_compiled"].is_u64());
    assert_nothing_is_left(&directory);
}

#[test]
fn a_file_that_somebody_changes_is_found() {
    let directory = directory("changed");
    let child = command(&directory, 6)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("no object is made", || {
        (objects(&directory) > 0).then_some(())
    });
    let roots = entries(&directory);
    let include = roots[0].join("t0/include");
    for header in entries(&include) {
        let length = fs::metadata(&header).unwrap().len();
        fs::write(&header, vec![0; length as usize]).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(report(&output)["pages_wrong"].as_u64().unwrap() > 0);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("wrong contents: /t0/include/h"), "{errors}");
    assert_nothing_is_left(&directory);
}

#[test]
fn files_that_cannot_be_written_are_an_error_and_nothing_is_left() {
    let directory = directory("unwritable");
    let load = command(&directory, 2);
    // No file may have more than a page; whoever tries gets an error, and no signal.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"])
        .arg(load.get_program())
        .args(load.get_args());
    let output = shell.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("programs failed because files could not be read or written"),
        "{errors}"
    );
    let report = report(&output);
    assert!(report["programs_with_file_errors"].as_u64() > Some(0));
    assert_eq!(report["files_compiled"], 0);
    assert_nothing_is_left(&directory);
}

#[test]
fn what_cannot_be_done_is_said_clearly() {
    let directory = directory("refused");
    let text = directory.to_str().unwrap();
    let none = format!("{text}/none");
    let file = format!("{text}/file");
    fs::write(&file, "").unwrap();
    for (arguments, expected) in [
        (vec![], "--directory"),
        (vec!["--directory", &none], "No such file"),
        (vec!["--directory", &file], "is no directory"),
        (vec!["--directory", "/proc", "--memory", "64M"], "MiB"),
        (vec!["--directory", text, "--memory", "1M"], "too small"),
        (vec!["--directory", text, "--memory", "1.5G"], "such as 4G"),
        (
            vec!["--directory", text, "--memory", "512G"],
            "use another directory",
        ),
        (vec!["--directory", text, "--seconds", "0"], "--seconds"),
        (vec!["--directory", text, "--speed", "0"], "--speed"),
        (vec!["--task", "{}"], "no task"),
        (
            vec!["--task", "{\"program\":{\"program\":\"main\"}}"],
            "no task",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dirigible-load"));
        let output = command.args(&arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
    assert_eq!(entries(&directory), [Path::new(&file)]);
}

#[test]
fn a_report_that_cannot_be_printed_is_an_error_and_nothing_is_left() {
    for json in [true, false] {
        let directory = directory(&format!("unprinted-{json}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_dirigible-load"));
        command.args(["--memory", "64M", "--seconds", "1", "--speed", "100"]);
        if json {
            command.arg("--json");
        }
        command.arg("--directory").arg(&directory);
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = command.stdout(full).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("could not be printed"), "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        assert_nothing_is_left(&directory);
    }
}
