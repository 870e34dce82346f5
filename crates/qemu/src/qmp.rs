//! QEMU's control socket: commands and their answers, one JSON object a line.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

/// The longest answer that is read.
const LONGEST_LINE: u64 = 1 << 20;
/// Time between two tries to connect.
const LOOK: Duration = Duration::from_millis(5);

/// Why a command failed.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The socket was closed.
    #[error("QEMU has closed its control socket")]
    Gone,
    /// No answer.
    #[error("QEMU does not answer on its control socket ({what}, {} s)", .limit.as_secs_f32())]
    Silent {
        /// What was asked.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// An answer that is an error.
    #[error("QEMU refuses the command {what}: {why}")]
    Refused {
        /// The command.
        what: String,
        /// QEMU's description of the error.
        why: String,
    },
    /// Not an answer.
    #[error("unexpected data on QEMU's control socket: {0}")]
    Damaged(String),
    /// The socket failed.
    #[error("QEMU's control socket: {0}")]
    Io(io::Error),
}

/// A line from QEMU: the greeting, an answer, or an event (in which none of this is set).
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    // An answer may be null, which is not the same as no answer.
    #[serde(rename = "return", default, deserialize_with = "present")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
}

fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

/// A connection to QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: BufReader<UnixStream>,
    /// Time limit for one answer.
    limit: Duration,
}

impl Qmp {
    /// Connects to the socket at `path`, as soon as QEMU has made it; gives up early if `alive` returns false. `limit`
    /// is the time limit for this and for each answer.
    pub(crate) fn connect(
        path: &Path,
        limit: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Self, QmpError> {
        let until = Instant::now() + limit;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Err(QmpError::Io(error)),
            }
            if !alive() {
                return Err(QmpError::Gone);
            }
            if Instant::now() >= until {
                let what = "connection".into();
                return Err(QmpError::Silent { what, limit });
            }
            thread::sleep(LOOK);
        };
        Ok(Self {
            socket: BufReader::new(socket),
            limit,
        })
    }

    /// Waits for QEMU's greeting, which comes when the machine is made and all memory touched.
    pub(crate) fn greet(&mut self, patience: Duration) -> Result<(), QmpError> {
        let greeting = self.line("greeting", patience)?;
        if greeting.greeting.is_none() {
            return Err(QmpError::Damaged("no greeting".into()));
        }
        self.ask("qmp_capabilities", json!({})).map(drop)
    }

    /// Sets the balloon's target: RAM that the guest shall keep, in bytes.
    pub(crate) fn balloon(&mut self, guest_bytes: u64) -> Result<(), QmpError> {
        self.ask("balloon", json!({ "value": guest_bytes }))
            .map(drop)
    }

    /// RAM that the guest has, in bytes, as its driver has last reported.
    pub(crate) fn query_balloon(&mut self) -> Result<u64, QmpError> {
        let answer = self.ask("query-balloon", json!({}))?;
        let actual = answer.get("actual").and_then(Value::as_u64);
        actual.ok_or_else(|| QmpError::Damaged(answer.to_string()))
    }

    fn ask(&mut self, what: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut text = json!({ "execute": what, "arguments": arguments }).to_string();
        text.push('\n');
        let limit = self.limit;
        let until = Instant::now() + limit;
        let socket = self.socket.get_mut();
        socket
            .set_write_timeout(Some(limit))
            .and_then(|()| socket.write_all(text.as_bytes()))
            .map_err(|error| failed(what, limit, error))?;
        loop {
            // Events do not extend the time limit.
            match self.line(what, until.saturating_duration_since(Instant::now()))? {
                Line { event: Some(_), .. } => {}
                Line {
                    error: Some(refusal),
                    ..
                } => {
                    return Err(QmpError::Refused {
                        what: what.into(),
                        why: refusal.desc,
                    });
                }
                Line {
                    answer: Some(answer),
                    ..
                } => return Ok(answer),
                _ => return Err(QmpError::Damaged("neither answer nor event".into())),
            }
        }
    }

    /// The next line, read within `limit`.
    fn line(&mut self, what: &str, limit: Duration) -> Result<Line, QmpError> {
        let until = Instant::now() + limit;
        let mut line = Vec::new();
        // The limit holds for each read. A line comes in a few pieces, and the loop ends when its time is over.
        while line.last() != Some(&b'\n') {
            let left = until.saturating_duration_since(Instant::now());
            // 0 would mean no limit.
            let left = left.max(Duration::from_millis(1));
            let read = self
                .socket
                .get_ref()
                .set_read_timeout(Some(left))
                .and_then(|()| {
                    let part = self.socket.fill_buf()?;
                    let end = part.iter().position(|&byte| byte == b'\n');
                    let length = end.map_or(part.len(), |end| end + 1);
                    line.extend_from_slice(&part[..length]);
                    Ok(length)
                });
            match read {
                Ok(0) => return Err(QmpError::Gone),
                Ok(length) => self.socket.consume(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(what, limit, error)),
            }
            if line.len() as u64 > LONGEST_LINE {
                return Err(QmpError::Damaged("a line without end".into()));
            }
            if Instant::now() >= until && line.last() != Some(&b'\n') {
                return Err(failed(what, limit, ErrorKind::TimedOut.into()));
            }
        }
        serde_json::from_slice(&line).map_err(|error| {
            let text = String::from_utf8_lossy(&line);
            let start: String = text.trim().chars().take(200).collect();
            QmpError::Damaged(format!("{start} ({error})"))
        })
    }
}

fn failed(what: &str, limit: Duration, error: io::Error) -> QmpError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => QmpError::Silent {
            what: what.into(),
            limit,
        },
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => QmpError::Gone,
        _ => QmpError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::private_dir::PrivateDir;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\n";

    /// A client of a server that says these texts, one after the greeting's turn and each command.
    fn client(texts: Vec<&'static str>, limit: Duration) -> Result<Qmp, QmpError> {
        let folder = PrivateDir::new().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut commands = BufReader::new(socket.try_clone().unwrap());
            let mut command = String::new();
            for (number, text) in texts.into_iter().enumerate() {
                if number > 0 && commands.read_line(&mut command).unwrap_or(0) == 0 {
                    return;
                }
                socket.write_all(text.as_bytes()).unwrap();
            }
            // Closes when the client does, or at the text that says so.
            if !command.contains("hang up") {
                let _ = commands.read_line(&mut command);
            }
        });
        let mut qmp = Qmp::connect(&path, LONG, || true)?;
        qmp.greet(LONG)?;
        qmp.limit = limit;
        Ok(qmp)
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn events_are_skipped_and_answers_read() {
        let event = "{\"timestamp\": {}, \"event\": \"BALLOON_CHANGE\", \"data\": {\"actual\": 1}}\n{\"return\": {\"actual\": 42}}\n";
        let mut qmp = client(
            vec![
                GREETING,
                "{\"return\": {}}\n",
                event,
                "{\"return\": null}\n",
            ],
            LONG,
        )
        .unwrap();
        assert_eq!(qmp.query_balloon().unwrap(), 42);
        qmp.balloon(1).unwrap();
    }

    #[test]
    fn refusals_and_malformed_answers_are_errors() {
        let refusal =
            "{\"error\": {\"class\": \"DeviceNotActive\", \"desc\": \"No balloon device\"}}\n";
        let texts = vec![GREETING, "{\"return\": {}}\n", refusal, "hello\n", "{}\n"];
        let mut qmp = client(texts, LONG).unwrap();
        let error = qmp.query_balloon().unwrap_err().to_string();
        assert_eq!(
            error,
            "QEMU refuses the command query-balloon: No balloon device"
        );
        let error = qmp.query_balloon().unwrap_err().to_string();
        assert!(error.contains("hello"), "{error}");
        let error = qmp.query_balloon().unwrap_err().to_string();
        assert!(error.contains("neither answer nor event"), "{error}");
    }

    #[test]
    fn a_socket_that_does_not_greet() {
        let refusal = "{\"error\": {\"desc\": \"busy\"}}\n";
        let error = client(vec![refusal], LONG).unwrap_err().to_string();
        assert!(error.contains("no greeting"), "{error}");
        let error = client(vec![GREETING, refusal], LONG)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "QEMU refuses the command qmp_capabilities: busy");
    }

    #[test]
    fn a_socket_that_is_silent_or_closed() {
        let silence = vec![GREETING, "{\"return\": {}}\n", "{\"ret", "urn\": {}}"];
        let mut qmp = client(silence, Duration::from_millis(100)).unwrap();
        let error = qmp.query_balloon().unwrap_err();
        assert!(matches!(error, QmpError::Silent { .. }), "{error}");
        let mut qmp = client(vec![GREETING, "{\"return\": {}}\n", ""], LONG).unwrap();
        // The server waits for one more command, then hangs up.
        qmp.limit = Duration::from_millis(50);
        assert!(matches!(qmp.balloon(1), Err(QmpError::Silent { .. })));
        qmp.limit = LONG;
        assert!(matches!(qmp.balloon(1), Err(QmpError::Gone)));
    }

    #[test]
    fn nobody_there() {
        let folder = PrivateDir::new().unwrap();
        let path = folder.path().join("s");
        let connect = |limit, alive| Qmp::connect(&path, limit, || alive).unwrap_err();
        assert!(matches!(connect(LONG, false), QmpError::Gone));
        let error = connect(Duration::from_millis(20), true);
        assert!(matches!(error, QmpError::Silent { .. }), "{error}");
    }
}
