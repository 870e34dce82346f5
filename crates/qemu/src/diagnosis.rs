//! Causes of failure and descriptions for error messages, from the guest's messages and QEMU's exit status.

use std::process::ExitStatus;

use dirigible_workload::protocol::{EXIT_FAILED, EXIT_WELL, Message, exit_status};

use crate::{error::Cause, process::ending, serial::Received};

/// The most lines that are quoted of a guest's output after its panic.
const PANIC_LINES: usize = 30;

/// The lines that an error quotes after a panic.
pub(crate) fn lines_of_panic<'h>(output: impl Iterator<Item = &'h Received>) -> Vec<String> {
    let line = |output: &Received| match output {
        Received::Line(line) | Received::Damaged(line, _) => Some(line.clone()),
        // A panic within the panic.
        Received::Message(message) => Some(message.to_string()),
        Received::End => None,
    };
    let lines = output.filter_map(line).filter(|line| !line.is_empty());
    lines.take(PANIC_LINES).collect()
}

/// The cause of failure if QEMU ended with `status` before there was a result.
pub(crate) fn of_status(status: ExitStatus) -> Cause {
    const WELL: i32 = exit_status(EXIT_WELL);
    const FAILED: i32 = exit_status(EXIT_FAILED);
    match status.code() {
        Some(0) => Cause::Reset,
        Some(WELL) => Cause::EndedEarly,
        Some(FAILED) => Cause::EndedBadly,
        _ => Cause::Ended {
            how: ending(status),
        },
    }
}

/// The cause of failure if `message` comes where `wanted` was expected.
pub(crate) fn unexpected(message: &Message, wanted: &'static str) -> Cause {
    Cause::Unexpected {
        message: message.to_string().chars().take(200).collect(),
        wanted,
    }
}

/// The beginning of a message, for people.
pub(crate) fn kind(message: &Message) -> String {
    match message {
        Message::Progress { phase, now_ms, .. } => {
            format!("of phase {phase}, {:.1} s", *now_ms as f64 / 1000.0)
        }
        Message::Test { name, .. } => format!("the end of test {name}"),
        other => {
            let text = other.to_string();
            let word = text.trim_start_matches(['@', '{', '"']);
            word.split('"').next().unwrap_or_default().to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_messages() {
        assert_eq!(kind(&Message::Start), "start");
        assert_eq!(kind(&Message::Hello { memory: 1 }), "hello");
        assert_eq!(kind(&Message::BalloonFull { frames: 1 }), "balloon-full");
        let progress = Message::Progress {
            phase: "pass1".into(),
            now_ms: 1500,
            end_ms: 2000,
        };
        assert_eq!(kind(&progress), "of phase pass1, 1.5 s");
    }

    #[test]
    fn exit_statuses() {
        use std::os::unix::process::ExitStatusExt;
        let of = |code: i32| of_status(ExitStatus::from_raw(code << 8)).to_string();
        assert!(of(0).contains("triple fault"));
        assert!(of(33).contains("before it was done"));
        assert!(of(35).contains("without giving a reason"));
        assert_eq!(of(1), "QEMU ended with exit status 1");
        assert!(
            of_status(ExitStatus::from_raw(9))
                .to_string()
                .contains("signal 9")
        );
    }
}
