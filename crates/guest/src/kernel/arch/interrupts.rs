//! Interrupts: short handlers that take no lock but the allocator's, which masks them, and exceptions that end the machine with all that is known.

use core::{
    fmt::Write,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use x86_64::instructions::interrupts as flag;

use super::{apic, cpu, exit, kernel_map, physical::Register, serial::Serial, shoot_down, tick};
use crate::kernel::talk;

/// What stands on the stack when a handler begins (interrupts.s).
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    /// What the processor says of an exception.
    pub error: u64,
    /// Where it goes on.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// A device on a PCI line: where its interrupt status is, and what was read there and not yet fetched.
pub struct Line {
    status: AtomicU64,
    bits: AtomicU32,
}

/// Devices with a line.
static LINES: [Line; 4] = [const {
    Line {
        status: AtomicU64::new(0),
        bits: AtomicU32::new(0),
    }
}; 4];

impl Line {
    /// Registers a device whose interrupt status is the byte at physical address `status`; a device that was registered before
    /// keeps its line. `None` when all places are taken.
    ///
    /// # Safety
    ///
    /// It is the ISR register of a virtio device: reading it takes the line down and does nothing else.
    pub unsafe fn register(status: u64) -> Option<&'static Self> {
        let own = |line: &&Self| line.status.load(Ordering::Relaxed) == status;
        let free = |line: &&Self| {
            // Release: pairs with the acquire in `read_status`.
            line.status
                .compare_exchange(0, status, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let line = LINES.iter().find(own).or_else(|| LINES.iter().find(free))?;
        // What a former user of the place has left there is not the device's.
        line.take();
        Some(line)
    }

    /// The device is being removed: its status is read no more.
    pub fn unregister(&self) {
        // Release: pairs with the acquire in `read_status`.
        self.status.store(0, Ordering::Release);
    }

    /// Whether something was read and not fetched.
    pub fn is_pending(&self) -> bool {
        // Acquire: pairs with the release in `read_status`.
        self.bits.load(Ordering::Acquire) != 0
    }

    /// Fetches what was read.
    pub fn take(&self) -> u32 {
        // Acquire: pairs with the release in `read_status`: the used ring was written before.
        self.bits.swap(0, Ordering::AcqRel)
    }

    fn read_status(&self) {
        // Acquire: pairs with the releases in `register` and `unregister`.
        let status = self.status.load(Ordering::Acquire);
        if status != 0 {
            // SAFETY: see `register`.
            let bits = unsafe { Register::new(status) }.read_byte();
            // Release: pairs with the acquires in `take` and `is_pending`.
            self.bits.fetch_or(u32::from(bits), Ordering::AcqRel);
        }
    }
}

/// Where interrupts and all exceptions but page faults enter (interrupts.s).
// SAFETY: nobody else in the kernel has this name.
#[unsafe(no_mangle)]
extern "C" fn interrupt_main(frame: &mut Frame) {
    let cpu = cpu::current();
    match frame.vector as u8 {
        apic::TIMER => tick::interrupted(),
        apic::DEVICE => {
            for line in &LINES {
                line.read_status();
            }
            // Relaxed: read by this CPU alone, in `idle`.
            cpu.interrupts.fetch_add(1, Ordering::Relaxed);
        }
        apic::SHOOT_DOWN => shoot_down::interrupted(),
        apic::WAKE => {
            cpu.interrupts.fetch_add(1, Ordering::Relaxed);
        }
        // It is not to be acknowledged.
        apic::SPURIOUS => return,
        _ => fatal(frame, None),
    }
    apic::end_of_interrupt();
}

/// Waits for an interrupt, unless one came since the last call that may be what the caller waits for.
pub fn idle() {
    let cpu = cpu::current();
    // A CPU that sleeps need not be interrupted for shoot-downs, unless it sleeps inside a fault.
    shoot_down::leave_program(cpu);
    flag::disable();
    let count = cpu.interrupts.load(Ordering::Relaxed);
    if count == cpu.seen.get() {
        // Nothing can come between the two instructions, so no interrupt is slept through.
        flag::enable_and_hlt();
    } else {
        cpu.seen.set(count);
        flag::enable();
    }
}

const NAMES: [&str; 22] = [
    "divide error",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection",
    "page fault",
    "reserved",
    "floating point",
    "alignment check",
    "machine check",
    "SIMD floating point",
    "virtualization",
    "control protection",
];

/// An exception that nobody serves: says all that is known and ends the machine.
pub fn fatal(frame: &Frame, address: Option<u64>) -> ! {
    flag::disable();
    exit::last_words_once();
    let name = NAMES
        .get(frame.vector as usize)
        .unwrap_or(&"unexpected vector");
    let cpu = cpu::current_id().index();
    let at = address.unwrap_or_default();
    talk::last_words(format_args!(
        "{name} (vector {}, error {:#x}, address {at:#x}) on CPU {cpu} at {:#x}",
        frame.vector, frame.error, frame.rip
    ));
    let mut out = Serial::seize();
    let _ = writeln!(
        out,
        "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\nrsi {:016x} rdi {:016x} rbp {:016x} rsp {:016x}\n\
         r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}\nr12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}\n\
         rip {:016x} flags {:x} cs {:x} ss {:x}",
        frame.rax,
        frame.rbx,
        frame.rcx,
        frame.rdx,
        frame.rsi,
        frame.rdi,
        frame.rbp,
        frame.rsp,
        frame.r8,
        frame.r9,
        frame.r10,
        frame.r11,
        frame.r12,
        frame.r13,
        frame.r14,
        frame.r15,
        frame.rip,
        frame.rflags,
        frame.cs,
        frame.ss
    );
    trace(frame.rbp);
    exit::failed()
}

/// Prints the chain of callers from frame pointer `rbp` on.
pub fn trace(mut rbp: u64) {
    let mut out = Serial::seize();
    for _ in 0..32 {
        // Frames lie on kernel stacks: in the image, or in the heap's part of the window.
        if rbp < super::physical::WINDOW || !rbp.is_multiple_of(8) {
            break;
        }
        let frame = rbp as usize as *const u64;
        // SAFETY: all code is built with frame pointers, the chain ends in 0, and if it is damaged all the same the worst is
        // one more exception, which `last_words_once` makes the last.
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
pub fn frame_pointer() -> u64 {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags))
    };
    rbp
}
