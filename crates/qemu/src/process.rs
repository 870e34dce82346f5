//! A child process that always ends.

use std::{
    io::{self, BufRead, BufReader},
    marker::PhantomData,
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::tether;

/// Lines of standard error that are kept, so that a faulty program cannot fill memory.
const KEPT_LINES: usize = 100;
/// Time between two checks whether it has ended.
const LOOK: Duration = Duration::from_millis(5);
/// How long to wait for the rest of standard error after the process has ended.
const STDERR_LIMIT: Duration = Duration::from_millis(500);

/// A child process, killed when this is dropped, and by the kernel when this process dies.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    status: Option<ExitStatus>,
    stderr: Arc<Mutex<Vec<String>>>,
    reader: Option<thread::JoinHandle<()>>,
    /// The kernel watches the *thread* that started the child, so the guard stays with that thread: not `Send`.
    _thread: PhantomData<*const ()>,
}

impl Process {
    /// Starts `command`, its standard output and error piped.
    pub(crate) fn start(command: &mut Command) -> io::Result<(Self, ChildStdout)> {
        tether::tie(command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        let mut process = Self {
            child,
            status: None,
            stderr: Arc::default(),
            reader: None,
            _thread: PhantomData,
        };
        let lost = || io::Error::other("its output cannot be read");
        let stdout = process.child.stdout.take().ok_or_else(lost)?;
        let stderr = process.child.stderr.take().ok_or_else(lost)?;
        let kept = Arc::clone(&process.stderr);
        process.reader = Some(thread::spawn(move || collect(stderr, &kept)));
        Ok((process, stdout))
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, once, if that was piped.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits for its end, at most this long.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(LOOK);
        }
    }

    /// Ends it.
    pub(crate) fn kill(&mut self) {
        if self.ended().is_none() {
            // Fails only when it has just ended.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Whether a line of its standard error begins with `start`.
    pub(crate) fn stderr_has(&self, start: &str) -> bool {
        let lines = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().any(|line| line.starts_with(start))
    }

    /// What it has printed on standard error.
    pub(crate) fn stderr_text(&self) -> String {
        // Its last lines may still be in the pipe. Another process may hold the pipe open, hence the limit.
        let until = Instant::now() + STDERR_LIMIT;
        while self.status.is_some()
            && self
                .reader
                .as_ref()
                .is_some_and(|reader| !reader.is_finished())
            && Instant::now() < until
        {
            thread::sleep(LOOK);
        }
        let lines = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        lines.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collect(stderr: ChildStderr, kept: &Mutex<Vec<String>>) {
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let mut lines = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < KEPT_LINES {
            lines.push(String::from_utf8_lossy(&line).trim_end().to_string());
        }
    }
}

/// How a process ended, for people.
pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(9)) => "signal 9: killed, perhaps for lack of memory".into(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    fn lives(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let (process, _stdout) = Process::start(&mut shell("exec sleep 60")).unwrap();
        let pid = process.id();
        assert!(lives(pid));
        drop(process);
        assert!(!lives(pid));
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let pid = thread::spawn(|| {
            let (process, _stdout) = Process::start(&mut shell("exec sleep 60")).unwrap();
            let pid = process.id();
            // As if the thread were killed: no guard runs.
            std::mem::forget(process);
            pid
        });
        let pid = pid.join().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        // Nobody waits for it, so a zombie is left until this process ends.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while lives(pid) && !state().contains(") Z ") {
            assert!(Instant::now() < until, "{}", state());
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn complaints_and_status() {
        let (mut process, _stdout) =
            Process::start(&mut shell("echo first >&2; echo second >&2; exit 7")).unwrap();
        let status = process.wait(Duration::from_secs(10)).unwrap();
        assert_eq!(ending(status), "exit status 7");
        assert_eq!(process.stderr_text(), "first\nsecond");
        assert!(process.wait(Duration::ZERO).is_some());
    }
}
