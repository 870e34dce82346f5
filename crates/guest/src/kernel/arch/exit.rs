//! Ending the virtual machine.

use dirigible_workload::protocol::{EXIT_FAILED, EXIT_WELL};
use x86_64::{
    VirtAddr,
    instructions::{hlt, interrupts, port::Port, tables::lidt},
    structures::DescriptorTablePointer,
};

/// The port of `-device isa-debug-exit,iobase=0xf4,iosize=0x04`.
const DEBUG_EXIT: u16 = 0xf4;

/// Ends the machine: the job was done.
pub fn success() -> ! {
    exit(EXIT_WELL)
}

/// Ends the machine: something went wrong, and was reported.
pub fn failed() -> ! {
    exit(EXIT_FAILED)
}

/// Resets the machine by a fault that cannot be served, as a kernel without descriptor tables does.
pub fn triple_fault() -> ! {
    let nothing = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: nothing is executed after this but an exception without a handler.
    unsafe {
        lidt(&nothing);
        core::arch::asm!("int3", options(noreturn));
    }
}

fn exit(value: u32) -> ! {
    // SAFETY: the port ends the machine, or does nothing where there is no such device.
    unsafe { Port::new(DEBUG_EXIT).write(value) };
    interrupts::disable();
    loop {
        hlt();
    }
}
