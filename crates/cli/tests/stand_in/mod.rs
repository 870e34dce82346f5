//! A stand-in for QEMU with a guest: what the command starts in its place, and how tests start the command with it.
//!
//! The stand-in is this test's own program: a script hands QEMU's arguments on to the test called `stand_in`, in the
//! same process. What it does is named by the environment.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio, exit},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dirigible_workload::{
    protocol::{EXIT_FAILED, EXIT_WELL, GuestTask, Message, exit_status},
    report::{ColumnReport, PassReport},
};

const SCENARIO: &str = "DIRIGIBLE_STAND_IN";
const PID_FILE: &str = "DIRIGIBLE_STAND_IN_PID";
const ARGUMENTS: &str = "DIRIGIBLE_STAND_IN_ARGUMENTS";
/// The balloon of the runs, and what the stand-in holds for it.
pub const BALLOON: u64 = 64 << 20;

/// A place with a script that stands in for QEMU.
pub struct StandIn {
    folder: PathBuf,
    scenario: &'static str,
}

impl StandIn {
    /// A stand-in that does what `scenario` says and calls itself version 7.2.0.
    pub fn new(scenario: &'static str) -> Self {
        Self::of_version(scenario, "QEMU emulator version 7.2.0 (stand-in)")
    }

    /// One that says this of its version.
    pub fn of_version(scenario: &'static str, version: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("stand-in-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let stand_in = Self { folder, scenario };
        let me = env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n\
             if [ \"$1\" = --version ]; then echo '{version}'; exit 0; fi\n\
             export {ARGUMENTS}=\"$*\"\n\
             exec '{}' --exact stand_in --nocapture --test-threads 1\n",
            me.display()
        );
        let path = stand_in.script();
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        // A child of another test may hold it open for writing until it executes something: until then it is busy.
        while Command::new(&path).arg("--version").output().is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        stand_in
    }

    pub fn script(&self) -> PathBuf {
        self.folder.join("qemu")
    }

    /// The command with these words, the stand-in as its QEMU and a file that looks like a kernel.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dirigible"));
        command
            .args(words.split_whitespace())
            .arg("--qemu")
            .arg(self.script())
            .arg("--guest")
            .arg(env::current_exe().unwrap())
            .env(SCENARIO, self.scenario)
            .env(PID_FILE, self.folder.join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the command to its end, and demands that no stand-in is left.
    pub fn run(&self, words: &str) -> Output {
        let output = self.command(words).output().unwrap();
        if let Some(pid) = self.pid() {
            assert!(is_gone(pid), "the stand-in {pid} is left by {words}");
        }
        output
    }

    /// Runs the command and demands that it fails with this status and these words. The log that it names must be
    /// there; it is removed. Gives what was printed.
    pub fn fails(&self, words: &str, status: i32, parts: &[&str]) -> String {
        let output = self.run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part}: {words}: {stderr}");
        }
        assert!(!stderr.contains("panicked at"), "{words}: {stderr}");
        let log = stderr
            .lines()
            .find_map(|line| line.strip_prefix("the guest's serial port: "));
        if let Some(log) = log {
            assert!(!fs::read(log).unwrap().is_empty(), "{log}");
            fs::remove_file(log).unwrap();
        }
        String::from_utf8(output.stdout).unwrap()
    }

    /// The number of the stand-in's process, once it runs.
    pub fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.folder.join("pid")).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether a process has ended, be it that nobody has waited for it.
pub fn is_gone(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    }
}

/// Waits until `what` holds, ten seconds at most.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Does what the environment says, if it says anything, and ends the process.
pub fn stand_in() {
    let Ok(scenario) = env::var(SCENARIO) else {
        return;
    };
    fs::write(env::var(PID_FILE).unwrap(), std::process::id().to_string()).unwrap();
    let arguments = env::var(ARGUMENTS).unwrap();
    let guest = Guest::new(&arguments);
    guest.play(&scenario);
    exit(exit_status(EXIT_WELL));
}

/// The other end of the serial port and of the control socket.
struct Guest {
    task: GuestTask,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    ram: u64,
    /// Targets set so far.
    targets: AtomicU64,
    /// What QEMU says that the balloon holds, in bytes.
    balloon: AtomicU64,
    /// How often the command has asked for that.
    looks: AtomicU64,
}

impl Guest {
    fn new(arguments: &str) -> Self {
        let (_, task) = arguments.rsplit_once("-append ").unwrap();
        let ram = arguments.split_once(" -m ").unwrap().1;
        let ram: u64 = ram.split('M').next().unwrap().parse().unwrap();
        let control = Arc::new(Control {
            ram: ram << 20,
            ..Control::default()
        });
        let socket = arguments.split_once("-qmp unix:").map(|(_, rest)| rest);
        if let Some(socket) = socket.and_then(|rest| rest.split(',').next()) {
            let (path, control) = (PathBuf::from(socket), Arc::clone(&control));
            let scenario = env::var(SCENARIO).unwrap();
            if scenario != "no-socket" {
                let listener = UnixListener::bind(Path::new(&path)).unwrap();
                thread::spawn(move || control.serve(&listener, &scenario));
            }
        }
        Self {
            task: serde_json::from_str(task).unwrap(),
            control,
        }
    }

    fn play(&self, scenario: &str) {
        match scenario {
            "refuses" => {
                eprintln!("qemu: cannot set up guest memory 'ram': Cannot allocate memory");
                exit(1);
            }
            "reset-at-once" => exit(0),
            "mute" | "no-socket" => hang(),
            "kvm-error" => {
                eprintln!("KVM internal error. Suberror: 1");
                hang();
            }
            _ => {}
        }
        line("SeaBIOS (stand-in)");
        say(&Message::Hello {
            memory: self.control.ram,
        });
        match scenario {
            "reset" => exit(0),
            "killed" => {
                let me = std::process::id().to_string();
                Command::new("kill").args(["-9", &me]).status().unwrap();
                hang();
            }
            "panics" => {
                line("\n@{\"col");
                say(&Message::Panic {
                    why: "no \"luck\" at here.rs:1".into(),
                });
                (0..100).for_each(|n| line(&format!("called from {n:#x}")));
                exit(exit_status(EXIT_FAILED));
            }
            "fails" => {
                say(&Message::Failed {
                    why: "no such device".into(),
                });
                exit(exit_status(EXIT_FAILED));
            }
            "ends-badly" => exit(exit_status(EXIT_FAILED)),
            "ends-early" => exit(exit_status(EXIT_WELL)),
            "not-ready" => hang(),
            "damaged" => {
                line("@{\"column\":{\"name\":7}}");
                hang();
            }
            _ => {}
        }
        match &self.task {
            GuestTask::Hello => {}
            GuestTask::Tests { only } => tests(scenario, only),
            GuestTask::Balloon { .. } => self.follow(scenario),
            GuestTask::Column { column, .. } => {
                say(&Message::Ready {
                    cpus: 2,
                    tsc_mhz: 1,
                    managed: 1,
                });
                say(&Message::Start);
                self.column(scenario, column.name());
            }
        }
    }

    fn column(&self, scenario: &str, name: &str) {
        let progress = |now_ms| Message::Progress {
            phase: "warm-up".into(),
            now_ms,
            end_ms: 1000,
        };
        say(&progress(1));
        let passes = [
            "pass1",
            "pass1-thp",
            "pass2",
            "pass2-thp",
            "rested",
            "rested-thp",
        ]
        .map(|name| PassReport {
            name: name.into(),
            ..PassReport::default()
        });
        let report = |name: &str| {
            let report = Box::new(ColumnReport {
                name: name.into(),
                passes: passes.to_vec(),
                ..ColumnReport::default()
            });
            Message::Column {
                report,
                attempts: Vec::new(),
            }
        };
        match scenario {
            "hangs" | "socket-closes" | "socket-mute" | "socket-refuses" => hang(),
            "late" => loop {
                say(&progress(2));
                thread::sleep(Duration::from_millis(100));
            },
            "too-early" => {
                say(&report(name));
                hang();
            }
            _ => {}
        }
        // Empty, full, empty, full: the schedule `held` with one step.
        wait_until("the targets", || {
            self.control.targets.load(Ordering::SeqCst) == 4
        });
        let held = self.control.balloon.load(Ordering::SeqCst) / 4096;
        let frames = if scenario == "miscounts" {
            held + 1
        } else {
            held
        };
        say(&Message::BalloonFull { frames });
        // Not before the command has read the books, however busy the machine is: where they do not agree it asks again
        // when it has compared them; where they do, it has the time to read the resident memory.
        let looks = match scenario {
            "miscounts" | "keeps-memory" => 2,
            _ => 1,
        };
        wait_until("a look at the books", || {
            self.control.looks.load(Ordering::SeqCst) >= looks
        });
        thread::sleep(Duration::from_secs(1));
        let other = if scenario == "other-column" {
            "other"
        } else {
            name
        };
        say(&report(other));
        if scenario == "stays" {
            hang();
        }
    }

    /// The task that measures the balloon.
    fn follow(&self, scenario: &str) {
        say(&Message::Ready {
            cpus: 2,
            tsc_mhz: 1,
            managed: 100_000,
        });
        for byte in std::io::stdin().lock().bytes().map_while(Result::ok) {
            let zero = match (byte, scenario) {
                (b'e', _) => return,
                (b'r', "stale") => 0,
                (b'r', _) => BALLOON / 4096,
                _ => 0,
            };
            say(&Message::Touched {
                frames: 100_000,
                zero,
                wrong: 0,
            });
        }
        // The command is gone, and so would a guest be.
        hang();
    }
}

fn tests(scenario: &str, only: &str) {
    for name in ["first", "second"]
        .into_iter()
        .filter(|name| name.contains(only))
    {
        let failure =
            (scenario == "fails-a-test" && name == "second").then(|| "1 is not 2".to_string());
        say(&Message::Test {
            name: name.into(),
            ms: 7,
            failure,
        });
        if scenario == "hangs" {
            hang();
        }
    }
    if scenario == "fails-a-test" && !only.contains("first") {
        say(&Message::Failed {
            why: "1 tests failed".into(),
        });
        exit(exit_status(EXIT_FAILED));
    }
}

impl Control {
    fn serve(&self, listener: &UnixListener, scenario: &str) {
        let (mut socket, _) = listener.accept().unwrap();
        let commands = BufReader::new(socket.try_clone().unwrap());
        // Memory that the balloon can give back.
        let mut memory = Some(touched());
        writeln!(
            socket,
            "{{\"QMP\": {{\"version\": {{}}, \"capabilities\": []}}}}"
        )
        .unwrap();
        for command in commands.lines().map_while(Result::ok) {
            let command: serde_json::Value = serde_json::from_str(&command).unwrap();
            let name = command["execute"].as_str().unwrap();
            let answer = match (name, scenario) {
                ("balloon", "socket-closes") => return,
                ("balloon", "socket-mute") => hang(),
                ("balloon", "socket-refuses") => {
                    "{\"error\": {\"class\": \"DeviceNotActive\", \"desc\": \"No balloon\"}}".into()
                }
                ("balloon", _) => {
                    let left = command["arguments"]["value"].as_u64().unwrap();
                    self.balloon.store(self.ram - left, Ordering::SeqCst);
                    match (left == self.ram, scenario) {
                        (true, _) => drop(memory.get_or_insert_with(touched)),
                        (false, "keeps-memory") => {}
                        (false, _) => memory = None,
                    }
                    self.targets.fetch_add(1, Ordering::SeqCst);
                    "{\"event\": \"BALLOON_CHANGE\", \"data\": {}}\n{\"return\": {}}".into()
                }
                ("query-balloon", _) => {
                    self.looks.fetch_add(1, Ordering::SeqCst);
                    let left = self.ram - self.balloon.load(Ordering::SeqCst);
                    format!("{{\"return\": {{\"actual\": {left}}}}}")
                }
                _ => "{\"return\": {}}".into(),
            };
            writeln!(socket, "{answer}").unwrap();
        }
    }
}

/// Memory as large as the balloon, resident. It is large enough for the allocator to give it back to the host at once.
fn touched() -> Vec<u8> {
    vec![1; BALLOON as usize]
}

fn hang() -> ! {
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

fn say(message: &Message) {
    line(&message.to_string());
}

fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    // A command that has gone is no matter of the guest's.
    let _ = writeln!(out, "\n{text}").and_then(|()| out.flush());
}
