//! The guest: a small kernel that a hypervisor boots with `-kernel`. It contains the memory manager, the balloon driver
//! and the experiment.
//!
//! `cargo xtask guest` builds it, with `--cfg guest`. Without that flag the crate is a program that only prints how to
//! build the kernel. `dirigible_workload::protocol` defines the job on the command line and the messages on the serial
//! port.
#![cfg_attr(guest, no_std)]
#![cfg_attr(guest, no_main)]
#![deny(unsafe_code)]

#[cfg(guest)]
extern crate alloc;

#[cfg(guest)]
mod kernel;

// The division of memory is arithmetic only: its unit tests run on the host.
#[cfg(all(test, not(guest)))]
#[path = "kernel/memory.rs"]
mod memory;

#[cfg(not(guest))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "This is a kernel: build it with `cargo xtask guest`, run it with `cargo xtask qemu guest-hello`."
    );
    std::process::ExitCode::FAILURE
}
