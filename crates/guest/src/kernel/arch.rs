//! The hardware: what needs `unsafe`, in small modules with safe interfaces.
#![allow(unsafe_code)]

pub mod apic;
pub mod clock;
pub mod cpu;
pub mod descriptors;
mod exceptions;
pub mod exit;
pub mod failure;
pub mod heap;
pub mod interrupts;
pub mod kernel_map;
pub mod line;
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
// The bare target's prebuilt crates have their own.
#[cfg(target_os = "linux")]
global_asm!(include_str!("arch/memory_functions.s"), options(att_syntax));

/// Symbols of the unwinder, which the hosted target's prebuilt `alloc` refers to. The kernel aborts on panic instead.
#[cfg(target_os = "linux")]
mod no_unwinding {
    // SAFETY: no other symbols of the kernel have these names, and nothing calls them: a panic ends the machine.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Resume() -> ! {
        super::exit::failed()
    }
}
