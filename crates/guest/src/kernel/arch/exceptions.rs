//! Exceptions that nobody serves: they are reported with all registers, and end the machine.

use core::fmt::Write;

use super::{cpu, exit, failure, serial::Serial};

/// The stack when a handler begins (interrupts.s).
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
    pub(super) vector: u64,
    /// The processor's error code; 0 for interrupts and for exceptions without one.
    pub error: u64,
    /// The instruction pointer: where the interrupted code continues.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Names of the exceptions, by vector.
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

/// Reports an exception that nobody serves, with all registers and the callers, and ends the machine. `address` is the
/// address of a page fault.
pub fn fatal(frame: &Frame, address: Option<u64>) -> ! {
    failure::begin();
    let name = NAMES
        .get(frame.vector as usize)
        .unwrap_or(&"unexpected vector");
    let cpu = cpu::current_id().index();
    let at = address.unwrap_or_default();
    failure::report(format_args!(
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
    failure::trace(frame.rbp);
    exit::failed()
}
