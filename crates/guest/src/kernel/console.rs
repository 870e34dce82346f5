//! The serial console: the messages that the kernel sends to the command.

use alloc::string::ToString;
use core::fmt::Write;

use dirigible_workload::protocol::Message;

use super::arch::serial::SERIAL;

/// Sends `message` as one line.
pub fn send(message: &Message) {
    // The line is made before the port is locked: making it takes the heap's lock, and neither lock is held for the
    // other.
    let line = message.to_string();
    let _ = writeln!(SERIAL.lock(), "{line}");
}

/// Sends the first line, in the form of [`Message::Hello`]. There is no heap yet, so it is not made by `serde`.
pub fn send_hello(memory: u64) {
    let _ = writeln!(SERIAL.lock(), "@{{\"hello\":{{\"memory\":{memory}}}}}");
}
