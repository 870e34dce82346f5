//! The guest's serial port: a thread reads lines, parses messages and writes the log.

use std::{
    io::{BufRead, BufReader, Read, Take},
    path::{Path, PathBuf},
    process::ChildStdout,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Instant,
};

use dirigible_workload::protocol::Message;

use crate::log::Log;

/// The longest line. A column's report has about 100 KiB.
const LONGEST_LINE: u64 = 8 << 20;

/// Output of the guest.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message.
    Message(Message),
    /// A line for people.
    Line(String),
    /// A line that begins like a message and cannot be parsed: the line's beginning, and the error.
    Damaged(String, String),
    /// The port is closed: QEMU has ended.
    End,
}

/// The port.
#[derive(Debug)]
pub(crate) struct Serial {
    received: Receiver<(Instant, Received)>,
    log: Arc<Mutex<Log>>,
}

impl Serial {
    /// Reads QEMU's standard output, which is the port, to its end.
    pub(crate) fn listen(stdout: ChildStdout, log: Log) -> Self {
        let (sender, received) = mpsc::channel();
        let log = Arc::new(Mutex::new(log));
        let kept = Arc::clone(&log);
        thread::spawn(move || read(BufReader::new(stdout), &kept, &sender));
        Self { received, log }
    }

    /// The next output and when it came; `None` if there is none by `until`.
    pub(crate) fn next(&self, until: Instant) -> Option<(Instant, Received)> {
        let left = until.saturating_duration_since(Instant::now());
        match self.received.recv_timeout(left) {
            Ok(received) => Some(received),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some((Instant::now(), Received::End)),
        }
    }

    /// Keeps the log and returns its path.
    pub(crate) fn keep_log(&self, kernel: &Path, name: &str) -> Option<PathBuf> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.keep(kernel, name)
    }
}

fn read(mut port: impl BufRead, log: &Mutex<Log>, sender: &Sender<(Instant, Received)>) {
    loop {
        let mut line = Vec::new();
        let mut part: Take<_> = Read::by_ref(&mut port).take(LONGEST_LINE);
        match part.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let now = Instant::now();
        log.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(&line);
        // After the run there is no receiver; the pipe is still read, so that QEMU can end.
        let _ = sender.send((now, parse(&line)));
    }
    let _ = sender.send((Instant::now(), Received::End));
}

fn parse(line: &[u8]) -> Received {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    match Message::of_line(line) {
        None => Received::Line(line.into()),
        Some(Ok(message)) => Received::Message(message),
        Some(Err(error)) => Received::Damaged(line.chars().take(200).collect(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_dir::PrivateDir;

    #[test]
    fn lines_are_told_apart() {
        let folder = PrivateDir::new().unwrap();
        let log = Mutex::new(Log::new(&folder.path().join("log")).unwrap());
        let (sender, receiver) = mpsc::channel();
        let text =
            "\u{1b}[2JSeaBIOS\r\n@\"start\"\r\n@{\"hello\":{\"mem\n\n@{\"hello\":{\"memory\":7}}";
        read(text.as_bytes(), &log, &sender);
        drop(sender);
        let output: Vec<_> = receiver.into_iter().map(|(_, output)| output).collect();
        assert!(
            matches!(
                &output[..],
                [
                    Received::Line(bios),
                    Received::Message(Message::Start),
                    Received::Damaged(..),
                    Received::Line(empty),
                    Received::Message(Message::Hello { memory: 7 }),
                    Received::End,
                ] if bios.ends_with("SeaBIOS") && empty.is_empty()
            ),
            "{output:?}"
        );
    }
}
