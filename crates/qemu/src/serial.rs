//! The guest's serial port: a thread that reads lines, understands messages and keeps the log.

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

/// The longest line: a column's report has about 100 KiB.
const LONGEST_LINE: u64 = 8 << 20;

/// What comes from the guest.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message.
    Said(Message),
    /// A line for people.
    Line(String),
    /// A line that begins like a message and is none: the line's beginning, and what is wrong.
    Damaged(String, String),
    /// Nothing more will come: QEMU has ended.
    End,
}

/// The port.
#[derive(Debug)]
pub(crate) struct Serial {
    heard: Receiver<(Instant, Heard)>,
    log: Arc<Mutex<Log>>,
}

impl Serial {
    /// Reads QEMU's standard output, which is the port, to its end.
    pub(crate) fn listen(stdout: ChildStdout, log: Log) -> Self {
        let (sender, heard) = mpsc::channel();
        let log = Arc::new(Mutex::new(log));
        let kept = Arc::clone(&log);
        thread::spawn(move || read(BufReader::new(stdout), &kept, &sender));
        Self { heard, log }
    }

    /// What is heard next, and when it was; `None` when nothing is until then.
    pub(crate) fn next(&self, until: Instant) -> Option<(Instant, Heard)> {
        let left = until.saturating_duration_since(Instant::now());
        match self.heard.recv_timeout(left) {
            Ok(heard) => Some(heard),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some((Instant::now(), Heard::End)),
        }
    }

    /// Keeps the log and says where.
    pub(crate) fn keep_log(&self, kernel: &Path, name: &str) -> Option<PathBuf> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.keep(kernel, name)
    }
}

fn read(mut port: impl BufRead, log: &Mutex<Log>, sender: &Sender<(Instant, Heard)>) {
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
        // Nobody listens any more when the run is over; the pipe is still emptied, so that QEMU can end.
        let _ = sender.send((now, understand(&line)));
    }
    let _ = sender.send((Instant::now(), Heard::End));
}

fn understand(line: &[u8]) -> Heard {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    match Message::of_line(line) {
        None => Heard::Line(line.into()),
        Some(Ok(message)) => Heard::Said(message),
        Some(Err(error)) => Heard::Damaged(line.chars().take(200).collect(), error.to_string()),
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
        let heard: Vec<_> = receiver.into_iter().map(|(_, heard)| heard).collect();
        assert!(
            matches!(
                &heard[..],
                [
                    Heard::Line(bios),
                    Heard::Said(Message::Start),
                    Heard::Damaged(..),
                    Heard::Line(empty),
                    Heard::Said(Message::Hello { memory: 7 }),
                    Heard::End,
                ] if bios.ends_with("SeaBIOS") && empty.is_empty()
            ),
            "{heard:?}"
        );
    }
}
