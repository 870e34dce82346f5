//! What the kernel says on its serial port.

use alloc::string::ToString;
use core::fmt::{self, Write};

use dirigible_workload::protocol::Message;
use x86_64::instructions::interrupts as flag;

use super::arch::{
    exit,
    interrupts::{frame_pointer, trace},
    serial::{SERIAL, Serial},
};

/// Says `message`, a line of its own.
pub fn say(message: &Message) {
    // First the line, then the port: making it takes the heap's lock, and neither lock is held for the other.
    let line = message.to_string();
    let _ = writeln!(SERIAL.lock(), "{line}");
}

/// The first line, in the form of [`Message::Hello`]: there is no heap yet to make one.
pub fn hello(memory: u64) {
    let _ = writeln!(SERIAL.lock(), "@{{\"hello\":{{\"memory\":{memory}}}}}");
}

/// Says why the kernel has failed, in the form of [`Message::Panic`], without heap and whoever has the port.
pub fn last_words(why: fmt::Arguments<'_>) {
    let mut out = Escaped(Serial::seize());
    let _ = out.0.write_str("\n@{\"panic\":{\"why\":\"");
    let _ = out.write_fmt(why);
    let _ = out.0.write_str("\"}}\n");
}

/// Writes text as the inside of a JSON string.
struct Escaped(Serial);

impl Write for Escaped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '"' | '\\' => {
                    self.0.write_char('\\')?;
                    self.0.write_char(char)?;
                }
                char if char < ' ' => self.0.write_char(' ')?,
                char => self.0.write_char(char)?,
            }
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    flag::disable();
    exit::last_words_once();
    match info.location() {
        Some(at) => last_words(format_args!("{} at {at}", info.message())),
        None => last_words(format_args!("{}", info.message())),
    }
    trace(frame_pointer());
    exit::failed()
}
