//! The messages between the command and a guest kernel in a virtual machine.
//!
//! The command gives the guest one [`GuestTask`], as JSON on the kernel's command line. The guest answers on its serial
//! port, one [`Message`] a line: a `@` and the message as JSON (after whatever firmware has left on the line). Other
//! lines are for people (a panic's registers, a word of the firmware) and only logged. While a task asks for it, the
//! command sends single bytes ([`ask`]) the other way.
//!
//! The balloon's targets do not come this way: the command sets them at the hypervisor, the guest reads them from its
//! device.

use alloc::{boxed::Box, string::String, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    params::{Column, Params},
    report::{AttemptHost, ColumnReport},
};

/// Memory that the virtual machine has beside that of the experiment, in bytes: for the kernel's image, its heap and
/// the books of the load. On the hosted machine they lie outside the guest's memory, too.
pub const APPARATUS: u64 = 64 << 20;

/// What the guest writes to the debug-exit port when its task is done and all was well …
pub const EXIT_WELL: u32 = 0x10;
/// … and when it was not. QEMU's exit status is twice the value, plus one.
pub const EXIT_FAILED: u32 = 0x11;

/// The exit status of QEMU for what the guest wrote.
pub const fn exit_status(value: u32) -> i32 {
    (value << 1 | 1) as i32
}

/// The balloon that the command asks of a guest as soon as it is up for its own tests, in frames: 64 MiB.
pub const TESTS_BALLOON: u64 = (64 << 20) / dirigible_frames::FRAME_SIZE as u64;

/// What a guest is to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum GuestTask {
    /// Sends hello and ends.
    Hello,
    /// One column of the experiment. The command drives the balloon by the [`Timeline`](crate::timeline::Timeline) of
    /// these parameters, from [`Message::Start`] on.
    Column {
        /// The policy.
        column: Column,
        /// The run; `threads` is the number of CPUs that carry load, all of the guest's.
        params: Params,
        /// When the balloon is full for the first time, each of its frames is moved this many times, under load.
        moves: u64,
    },
    /// The guest's own tests: those whose names contain the text.
    Tests {
        /// A part of the names of those to run; empty for all.
        only: String,
    },
    /// Follows the balloon's target as fast as it can, and answers the bytes of [`ask`], until that is [`ask::END`].
    Balloon {
        /// Frames in one message to the host at most.
        batch: u64,
    },
}

/// What the command sends to a guest whose task is [`GuestTask::Balloon`].
pub mod ask {
    /// Write a pattern to all free memory; answered by [`Message::Touched`](super::Message::Touched).
    pub const WRITE: u8 = b'w';
    /// Read all free memory; answered by [`Message::Touched`](super::Message::Touched).
    pub const READ: u8 = b'r';
    /// End: check the books, report the result, and turn the machine off.
    pub const END: u8 = b'e';
}

/// What a guest sends.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The first line, before anything else is done.
    Hello {
        /// RAM that the firmware's map names, in bytes.
        memory: u64,
    },
    /// The machine is up: this many CPUs, this clock.
    Ready {
        /// CPUs that answered.
        cpus: u64,
        /// The time stamp counter's pace.
        tsc_mhz: u64,
        /// Frames that the allocator manages.
        managed: u64,
    },
    /// The run begins: the guest's clock stands at 0.
    Start,
    /// How far it has come.
    Progress {
        /// The phase.
        phase: String,
        /// The guest's clock.
        now_ms: u64,
        /// Where it will stand at the end.
        end_ms: u64,
    },
    /// The balloon has come to its fullest; sent each time.
    BalloonFull {
        /// What it holds.
        frames: u64,
    },
    /// A column is done.
    Column {
        /// The report, without the hash of the balloon's targets: the command set them.
        report: Box<ColumnReport>,
        /// Time of the attempts by the time stamp counter.
        attempts: Vec<AttemptHost>,
    },
    /// One of the guest's tests has ended.
    Test {
        /// Its name.
        name: String,
        /// How long it ran.
        ms: u64,
        /// What went wrong, if anything.
        failure: Option<String>,
    },
    /// All free memory was written or read.
    Touched {
        /// Frames written or read.
        frames: u64,
        /// Frames that read as zeroes: the host had taken them.
        zero: u64,
        /// Frames that held neither zeroes nor what was written.
        wrong: u64,
    },
    /// The task cannot be done, or its result cannot be trusted.
    Failed {
        /// Why.
        why: String,
    },
    /// The kernel itself failed. What it knows follows in lines for people.
    Panic {
        /// Where and why.
        why: String,
    },
}

/// What a line of protocol begins with.
const MARK: char = '@';

impl Message {
    /// The message that a line of the serial port holds; `None` for a line for people, an error for a damaged message.
    ///
    /// # Errors
    ///
    /// The line begins like a message and is none: what is wrong with it.
    pub fn of_line(line: &str) -> Option<Result<Self, serde_json::Error>> {
        // Firmware may have left something on the line before the guest's first message.
        let start = line.find("@{").or_else(|| line.find("@\""))?;
        Some(serde_json::from_str(&line[start + MARK.len_utf8()..]))
    }
}

impl fmt::Display for Message {
    /// The line, without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        write!(f, "{MARK}{json}")
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::params::Profile;

    #[test]
    fn messages_survive_the_line() {
        let messages = [
            Message::Start,
            Message::Hello { memory: 1 << 32 },
            Message::Column {
                report: Box::default(),
                attempts: Vec::new(),
            },
            Message::Test {
                name: "a".into(),
                ms: 5,
                failure: Some("x \"y\"\n@{z".into()),
            },
        ];
        for message in messages {
            let line = message.to_string();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Message::of_line(&line).unwrap().unwrap(), message);
        }
    }

    #[test]
    fn other_lines_are_for_people() {
        assert!(Message::of_line("SeaBIOS (version 1.16)").is_none());
        assert!(Message::of_line("mail@example.org").is_none());
        assert!(Message::of_line("@{\"no-such\":1}").unwrap().is_err());
        assert!(Message::of_line("@{\"col").unwrap().is_err());
        let after_firmware = "\u{1b}[2J@{\"hello\":{\"memory\":7}}";
        let hello = Message::of_line(after_firmware).unwrap().unwrap();
        assert_eq!(hello, Message::Hello { memory: 7 });
    }

    #[test]
    fn tasks_survive_the_command_line() {
        let task = GuestTask::Column {
            column: Column::Steered,
            params: Params::new(Profile::Quick),
            moves: 3,
        };
        let text = serde_json::to_string(&task).unwrap();
        assert!(!text.contains(char::is_whitespace), "{text}");
        assert_eq!(serde_json::from_str::<GuestTask>(&text).unwrap(), task);
        for unknown in [
            text.replace("\"moves\"", "\"no_such\":1,\"moves\""),
            text.replace("\"seed\"", "\"no_such\":1,\"seed\""),
            r#"{"tests":{"only":"","no_such":1}}"#.into(),
            r#"{"balloon":{"batch":1,"no_such":1}}"#.into(),
        ] {
            let refused = serde_json::from_str::<GuestTask>(&unknown).unwrap_err();
            assert!(refused.to_string().contains("no_such"), "{refused}");
        }
    }
}
