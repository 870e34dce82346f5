//! The machine: everything that needs `unsafe`, in small modules with safe faces.
#![allow(unsafe_code)]

pub mod apic;
pub mod clock;
pub mod cpu;
pub mod descriptors;
pub mod exit;
pub mod heap;
pub mod interrupts;
pub mod kernel_map;
pub mod masking;
pub mod pci;
pub mod physical;
pub mod serial;
pub mod shoot_down;
pub mod smp;
pub mod start_info;
pub mod tick;
pub mod user;

use core::arch::global_asm;

global_asm!(include_str!("arch/boot.s"), options(att_syntax));
global_asm!(include_str!("arch/interrupts.s"), options(att_syntax));
// The bare target's prebuilt crates bring their own.
#[cfg(target_os = "linux")]
global_asm!(include_str!("arch/memory_functions.s"), options(att_syntax));

/// Stands in for unwinding, for which the hosted target's prebuilt `alloc` was built; panics abort.
#[cfg(target_os = "linux")]
mod no_unwinding {
    // SAFETY: nobody else in the kernel has these names, and nothing calls them: a panic ends the machine.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Resume() -> ! {
        super::exit::failed()
    }
}
