//! The interrupt controllers: each CPU's local APIC (xAPIC, memory-mapped) and the I/O APIC.

use x86_64::instructions::{interrupts::without_interrupts, port::Port};

use super::{cpu, physical::Register};

/// Vector of the timer's tick.
pub const TIMER: u8 = 32;
/// Vector of the devices' interrupt lines.
pub const DEVICE: u8 = 33;
/// Vector of a TLB shoot-down, requested by another CPU.
pub const SHOOT_DOWN: u8 = 34;
/// Vector with which the first CPU gives out work.
pub const WAKE: u8 = 35;
/// Vector of a spurious interrupt: one that was withdrawn before it was taken.
pub const SPURIOUS: u8 = 39;

const LOCAL: u64 = 0xfee0_0000;
const IO: u64 = 0xfec0_0000;

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const LOGICAL_DESTINATION: u64 = 0xd0;
const DESTINATION_FORMAT: u64 = 0xe0;
const SPURIOUS_VECTOR: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_TARGET: u64 = 0x310;
const TIMER_VECTOR: u64 = 0x320;
const TIMER_START: u64 = 0x380;
const TIMER_NOW: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

const ENABLE: u32 = 1 << 8;
const PENDING: u32 = 1 << 12;
const PERIODIC: u32 = 1 << 17;
const ALL_BUT_SELF: u32 = 3 << 18;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
const BY_16: u32 = 3;

/// CPUs that a logical destination in the flat model can name.
const FLAT: usize = 8;

fn local(offset: u64) -> Register {
    // SAFETY: the local APIC's registers, at their architectural address. None of them accesses memory.
    unsafe { Register::new(LOCAL + offset) }
}

/// Enables the calling CPU's local APIC and gives its number.
pub fn set_up_local() -> u32 {
    let index = cpu::current_id().index();
    local(DESTINATION_FORMAT).write(u32::MAX);
    local(LOGICAL_DESTINATION).write(if index < FLAT { 1 << (24 + index) } else { 0 });
    local(TASK_PRIORITY).write(0);
    local(SPURIOUS_VECTOR).write(ENABLE | u32::from(SPURIOUS));
    local(ID).read() >> 24
}

/// Acknowledges the interrupt that is being served.
#[inline]
pub fn end_of_interrupt() {
    local(END_OF_INTERRUPT).write(0);
}

/// Sends `vector` to the CPU whose local APIC has number `target`.
pub fn send(target: u32, vector: u8) {
    command(target, u32::from(vector));
}

fn command(target: u32, command: u32) {
    // Interrupts are off, as a handler could send a command between the two writes.
    without_interrupts(|| {
        while local(COMMAND).read() & PENDING != 0 {
            core::hint::spin_loop();
        }
        local(COMMAND_TARGET).write(target << 24);
        local(COMMAND).write(command);
    });
}

/// Resets all other CPUs.
pub fn init_others() {
    command(0, ALL_BUT_SELF | INIT);
}

/// Starts all other CPUs at physical address `page` * 4096, in real mode.
pub fn start_others(page: u8) {
    command(0, ALL_BUT_SELF | STARTUP | u32::from(page));
}

/// Starts the timer at its highest value, without interrupts, for calibration.
pub fn start_counting() {
    local(TIMER_DIVIDE).write(BY_16);
    local(TIMER_VECTOR).write(1 << 16);
    local(TIMER_START).write(u32::MAX);
}

/// Timer ticks since [`start_counting`].
pub fn counted() -> u32 {
    u32::MAX - local(TIMER_NOW).read()
}

/// Lets the timer interrupt the calling CPU every `count` timer ticks.
pub fn start_timer(count: u32) {
    local(TIMER_DIVIDE).write(BY_16);
    local(TIMER_VECTOR).write(PERIODIC | u32::from(TIMER));
    local(TIMER_START).write(count.max(1));
}

/// Routes the lines of PCI devices to [`DEVICE`] on the first eight CPUs, so that each CPU that waits for a device
/// wakes.
pub fn set_up_lines() {
    // Masks the legacy interrupt controllers. If there are none, nothing happens.
    for port in [0x21, 0xa1] {
        // SAFETY: the mask registers of the two legacy interrupt controllers.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
    let last = io_read(1) >> 16 & 0xff;
    // On q35 and microvm PCI uses GSIs 16 and above, on the older machine type 10 and 11.
    for line in (0..=last).filter(|&line| line >= 16 || line == 10 || line == 11) {
        const LOGICAL: u32 = 1 << 11;
        const LEVEL: u32 = 1 << 15;
        io_write(0x11 + 2 * line, 0xff << 24);
        io_write(0x10 + 2 * line, LEVEL | LOGICAL | u32::from(DEVICE));
    }
}

fn io(offset: u64) -> Register {
    // SAFETY: the I/O APIC's two registers, at their usual address. They access no memory.
    unsafe { Register::new(IO + offset) }
}

fn io_read(register: u32) -> u32 {
    io(0).write(register);
    io(0x10).read()
}

fn io_write(register: u32, value: u32) {
    io(0).write(register);
    io(0x10).write(value);
}
