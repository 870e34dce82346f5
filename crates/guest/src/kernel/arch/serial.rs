//! The first serial port, polled.

use core::fmt;

use spin::Mutex;
use x86_64::instructions::port::Port;

const COM1: u16 = 0x3f8;
/// Line status: a byte was received.
const RECEIVED: u8 = 1 << 0;
/// Line status: the transmitter is empty.
const EMPTY: u8 = 1 << 5;
/// Bytes that an empty transmitter takes.
const FIFO: usize = 16;

/// The port. Interrupt handlers must not lock it.
pub static SERIAL: Mutex<Serial> = Mutex::new(Serial(()));

/// The serial port.
pub struct Serial(());

impl Serial {
    /// The port without its lock: for the report of a kernel that has failed.
    pub fn seize() -> Self {
        Self(())
    }

    /// Sets the port to 115,200 baud, 8 bits, no parity, and enables its buffers.
    pub fn set_up(&mut self) {
        for (register, value) in [
            (1, 0x00),
            (3, 0x80),
            (0, 0x01),
            (1, 0x00),
            (3, 0x03),
            (2, 0xc7),
            (4, 0x03),
        ] {
            write(register, value);
        }
    }

    fn write_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(FIFO) {
            while read(5) & EMPTY == 0 {
                core::hint::spin_loop();
            }
            for &byte in chunk {
                write(0, byte);
            }
        }
    }

    /// A byte that was received, if there is one.
    pub fn receive(&mut self) -> Option<u8> {
        (read(5) & RECEIVED != 0).then(|| read(0))
    }
}

fn write(register: u16, value: u8) {
    // SAFETY: the eight ports from COM1 on belong to the serial port, which accesses no memory.
    unsafe { Port::new(COM1 + register).write(value) }
}

fn read(register: u16) -> u8 {
    // SAFETY: as in `write`.
    unsafe { Port::new(COM1 + register).read() }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}
