//! The guest: a small kernel that a hypervisor boots with `-kernel`, with the memory manager, its balloon and the experiment
//! in it.
//!
//! It is built with `cargo xtask guest`, which sets `--cfg guest`; built like any other crate it is a program that says so.
//! What it is told and what it answers stands in `dirigible_workload::protocol`.
#![cfg_attr(guest, no_std)]
#![cfg_attr(guest, no_main)]
#![deny(unsafe_code)]

#[cfg(guest)]
extern crate alloc;

#[cfg(guest)]
mod kernel;

// What is only arithmetic is tested on the host.
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
