//! Interrupts: where they enter, and waiting for one. Handlers are short, and take no lock but the allocator's, which
//! masks interrupts.

use core::sync::atomic::Ordering;

use x86_64::instructions::interrupts as flag;

use super::{
    apic, cpu,
    exceptions::{self, Frame},
    line, shoot_down, tick,
};

/// Called by interrupts.s for interrupts, and for all exceptions but page faults.
// SAFETY: no other symbol of the kernel has this name.
#[unsafe(no_mangle)]
extern "C" fn interrupt_main(frame: &mut Frame) {
    let cpu = cpu::current();
    match frame.vector as u8 {
        apic::TIMER => tick::interrupted(),
        apic::DEVICE => {
            line::read_all();
            // Relaxed: only this CPU reads it, in `idle`.
            cpu.interrupts.fetch_add(1, Ordering::Relaxed);
        }
        apic::SHOOT_DOWN => shoot_down::interrupted(),
        apic::WAKE => {
            cpu.interrupts.fetch_add(1, Ordering::Relaxed);
        }
        // A spurious interrupt must not be acknowledged.
        apic::SPURIOUS => return,
        _ => exceptions::fatal(frame, None),
    }
    apic::end_of_interrupt();
}

/// Waits for an interrupt. Returns at once if a device or another CPU has interrupted this CPU since the last call: its
/// caller may be waiting for that.
pub fn idle() {
    let cpu = cpu::current();
    // So that a halted CPU is not interrupted for shoot-downs, unless it waits inside a fault.
    shoot_down::leave_program(cpu);
    flag::disable();
    let count = cpu.interrupts.load(Ordering::Relaxed);
    if count == cpu.seen.get() {
        // No interrupt is taken between the two instructions, so none is missed.
        flag::enable_and_hlt();
    } else {
        cpu.seen.set(count);
        flag::enable();
    }
}
