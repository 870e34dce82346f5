//! How the kernel ends when it has failed: it reports the reason and its callers on the serial port, without heap or
//! locks.

use core::{
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
};

use x86_64::instructions::interrupts as flag;

use super::{exit, kernel_map, physical::WINDOW, serial::Serial};

/// Set when a CPU has begun to report a failure.
static FAILING: AtomicBool = AtomicBool::new(false);

/// Called before a failure is reported. If one is being reported already, by this CPU or by another, the machine ends
/// at once: only the first is reported.
pub fn begin() {
    flag::disable();
    // Relaxed: only one may go on; nothing else is published.
    if FAILING.swap(true, Ordering::Relaxed) {
        exit::failed();
    }
}

/// Reports why the kernel fails, in the form of `Message::Panic`. It needs no heap, and does not wait for the port's
/// lock.
pub fn report(why: fmt::Arguments<'_>) {
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

/// Prints the chain of callers, starting with frame pointer `rbp`.
pub fn trace(mut rbp: u64) {
    let mut out = Serial::seize();
    for _ in 0..32 {
        // Frames lie on kernel stacks: in the image, or in the heap's part of the window.
        if rbp < WINDOW || !rbp.is_multiple_of(8) {
            break;
        }
        let frame = rbp as usize as *const u64;
        // SAFETY: all code is built with frame pointers, and the chain ends in 0. If it is damaged, the read may fault:
        // `begin` then ends the machine.
        let (next, caller) = unsafe { (frame.read_volatile(), frame.add(1).read_volatile()) };
        if !kernel_map::is_code(caller) {
            break;
        }
        let _ = writeln!(out, "called from {caller:#x}");
        if next <= rbp {
            break;
        }
        rbp = next;
    }
}

/// The calling function's frame pointer.
#[inline(always)]
fn frame_pointer() -> u64 {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags))
    };
    rbp
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    match info.location() {
        Some(at) => report(format_args!("{} at {at}", info.message())),
        None => report(format_args!("{}", info.message())),
    }
    trace(frame_pointer());
    exit::failed()
}
