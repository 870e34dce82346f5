//! Ending the virtual machine.

use core::sync::atomic::{AtomicBool, Ordering};

use dirigible_workload::protocol::{EXIT_FAILED, EXIT_WELL};
use x86_64::{
    VirtAddr,
    instructions::{hlt, interrupts, port::Port, tables::lidt},
    structures::DescriptorTablePointer,
};

/// `-device isa-debug-exit,iobase=0xf4,iosize=0x04`.
const DEBUG_EXIT: u16 = 0xf4;

/// Set when somebody has begun to say why the kernel fails.
static FAILING: AtomicBool = AtomicBool::new(false);

/// Ends the machine at once if it is failing already: an exception while the first failure is being told, or another CPU's.
pub fn last_words_once() {
    // Relaxed: only one may go on; nothing else is published.
    if FAILING.swap(true, Ordering::Relaxed) {
        failed();
    }
}

/// All was well.
pub fn well() -> ! {
    exit(EXIT_WELL)
}

/// Something went wrong, and was said.
pub fn failed() -> ! {
    exit(EXIT_FAILED)
}

/// Resets the machine by a fault that cannot be served: what a kernel does that has lost its tables.
pub fn triple_fault() -> ! {
    let nothing = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: nothing is executed after this but the exception that has nowhere to go.
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
