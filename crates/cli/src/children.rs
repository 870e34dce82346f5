//! The parent's side: one process for each column, a few at a time.
//!
//! A column has a process of its own so that it finds no resident memory and no heap of an earlier one. If one fails,
//! the others are killed at once. If this process ends, for whatever reason, they end too (see [`mod@crate::column`]).

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Sender},
    thread,
};

use crate::{column::PROGRESS, failure::Failure, plan::ChildTask};

/// How far a child has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What it does.
    pub phase: String,
    /// Where its clock stands.
    pub now_ms: u64,
    /// Where its clock will end.
    pub end_ms: u64,
}

/// How far [`run_all`] has come. The number is the task's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// The task has come this far.
    Step(usize, Step),
    /// The task is done.
    Done(usize),
}

enum Message {
    Step(usize, Step),
    End(usize, Result<Vec<u8>, String>),
}

/// Runs all `tasks`, `at_once` at a time, and gives what each printed, in their order.
///
/// # Errors
///
/// The message of the first task that failed. By then no child is left running.
pub fn run_all(
    tasks: &[ChildTask],
    at_once: usize,
    mut update: impl FnMut(News),
) -> Result<Vec<Vec<u8>>, Failure> {
    let (sender, receiver) = mpsc::channel();
    let mut outputs: Vec<Option<Vec<u8>>> = vec![None; tasks.len()];
    let mut running: Vec<Running> = Vec::new();
    let mut next = 0;
    while outputs.iter().any(Option::is_none) {
        while next < tasks.len() && running.len() < at_once {
            running.push(Running::start(next, &tasks[next], sender.clone())?);
            next += 1;
        }
        // A child is running, and its reader always sends an end.
        match receiver
            .recv()
            .map_err(|error| Failure::Run(error.to_string()))?
        {
            Message::Step(index, step) => update(News::Step(index, step)),
            Message::End(index, result) => {
                let ended = running.iter().position(|child| child.index == index);
                let status = ended.and_then(|ended| running.swap_remove(ended).wait());
                let output = result.map_err(|message| {
                    let task = &tasks[index];
                    let status = status
                        .filter(|_| message.is_empty())
                        .map(|status| status.to_string());
                    let why = status.map_or(message, |status| {
                        format!("ended without a report: {status}")
                    });
                    Failure::Run(format!(
                        "{} (seed {}): {why}",
                        task.name(),
                        task.params.seed
                    ))
                })?;
                outputs[index] = Some(output);
                update(News::Done(index));
            }
        }
    }
    Ok(outputs.into_iter().flatten().collect())
}

/// A child; killed when this is dropped.
struct Running {
    index: usize,
    child: Child,
    /// Kept open: when it is closed the child exits.
    stdin: Option<ChildStdin>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn start(index: usize, task: &ChildTask, sender: Sender<Message>) -> Result<Self, Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::Run(format!("{}: cannot {what}: {error}", task.name()))
        };
        let program = std::env::current_exe().map_err(|error| failed("find itself", &error))?;
        let mut child = Command::new(program)
            .arg("run-column")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed("start a process", &error))?;
        let (mut stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        // From here on the child is killed on errors.
        let mut running = Self {
            index,
            child,
            stdin: None,
            reader: None,
        };
        let text = serde_json::to_string(task).map_err(|error| failed("write its task", &error))?;
        if let Some(stdin) = &mut stdin {
            // If the child has ended already, its reader reports it.
            let _ = writeln!(stdin, "{text}");
        }
        running.stdin = stdin;
        if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
            running.reader = Some(thread::spawn(move || {
                let result = read_output(index, stdout, stderr, &sender);
                // The receiver is gone when another task has failed already.
                let _ = sender.send(Message::End(index, result));
            }));
        }
        Ok(running)
    }

    /// Waits for a child that has closed its output.
    fn wait(mut self) -> Option<ExitStatus> {
        // It may still wait for us to close its input.
        self.stdin = None;
        self.child.wait().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when the child has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Reads a child's output to its end: gives its report, or its messages on standard error as the error.
fn read_output(
    index: usize,
    mut stdout: impl Read + Send + 'static,
    stderr: impl Read,
    sender: &Sender<Message>,
) -> Result<Vec<u8>, String> {
    let output = thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut messages: Vec<String> = Vec::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        match step_of(&line) {
            Some(step) => drop(sender.send(Message::Step(index, step))),
            // A faulty child must not fill memory.
            None if messages.len() < 100 => messages.push(line),
            None => {}
        }
    }
    let output = output.join().map_err(|_| "its reader died".to_string())?;
    let output = output.map_err(|error| format!("cannot read its report: {error}"))?;
    if serde_json::from_slice::<serde::de::IgnoredAny>(&output).is_ok() {
        return Ok(output);
    }
    let message = messages.join("\n");
    let message = message.trim().trim_start_matches("error: ");
    Err(message.into())
}

/// The step that a line of progress reports.
fn step_of(line: &str) -> Option<Step> {
    let mut words = line.strip_prefix(PROGRESS)?.split_whitespace();
    let now_ms = words.next()?.parse().ok()?;
    let end_ms = words.next()?.parse().ok()?;
    Some(Step {
        now_ms,
        end_ms,
        phase: words.collect::<Vec<_>>().join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_progress() {
        let step = step_of("@progress 1000 60000 warm-up").unwrap();
        assert_eq!(
            step,
            Step {
                phase: "warm-up".into(),
                now_ms: 1000,
                end_ms: 60000
            }
        );
        assert_eq!(step_of("@progress 1 x warm-up"), None);
        assert_eq!(step_of("error: no memory"), None);
    }

    #[test]
    fn a_child_that_prints_json_has_succeeded() {
        let (sender, receiver) = mpsc::channel();
        let stderr = "@progress 1 2 boot\n".as_bytes();
        assert_eq!(
            read_output(7, "{\"a\":1}".as_bytes(), stderr, &sender),
            Ok(b"{\"a\":1}".to_vec())
        );
        assert!(matches!(receiver.try_recv(), Ok(Message::Step(7, _))));
    }

    #[test]
    fn a_child_that_dies_is_quoted() {
        let (sender, _receiver) = mpsc::channel();
        let stderr = "@progress 1 2 boot\nerror: the device never answered\n".as_bytes();
        assert_eq!(
            read_output(0, "{\"a\"".as_bytes(), stderr, &sender),
            Err("the device never answered".to_string())
        );
        assert_eq!(
            read_output(0, "".as_bytes(), "".as_bytes(), &sender),
            Err(String::new())
        );
    }
}
