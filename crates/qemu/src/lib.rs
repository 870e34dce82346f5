//! The machine QEMU: the guest kernel in a virtual machine, its balloon driven from outside, and what the host sees of it.
//!
//! A guest gets its task on the kernel's command line and answers on its serial port, one message a line
//! ([`dirigible_workload::protocol`]). The balloon's target is set over QMP, QEMU's control socket, in real time. What the
//! balloon gives back is counted where it counts: in the memory of the QEMU process.
//!
//! [`QemuOptions::resolve`] finds QEMU and the guest kernel before anything starts; the [`QemuMachine`] that it gives runs
//! tasks: one [column](run_column) of the experiment, the balloon's [speed](balloon_speed), the guest's own
//! [tests](guest_tests()), and a boot that only says [hello](hello()).
//!
//! No QEMU is left behind: it is ended when its guard is dropped, and the kernel ends it when this process dies, however
//! that comes. On failure the serial port's output is kept, and the error says where.
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("QEMU is watched through /proc and ended by parent-death signals: this needs Linux");

mod column;
mod command_line;
mod diagnosis;
mod error;
mod find;
mod guest_tests;
mod hello;
mod host_facts;
mod limits;
mod log;
mod options;
mod private_dir;
mod proc_files;
mod process;
mod qmp;
mod residency;
mod serial;
mod speed;
mod tether;
mod vm;

pub use column::run_column;
pub use error::{Cause, RunError};
pub use find::{FindError, OLDEST_QEMU, Version};
pub use guest_tests::{EndedTest, TestTotals, guest_tests};
pub use hello::{Hello, hello};
pub use options::{Accel, MachineType, QemuMachine, QemuOptions};
pub use speed::{FreshRound, SpeedParams, SpeedReport, SpeedRound, balloon_speed};

/// CPUs of a guest when nothing else is said.
pub const DEFAULT_CPUS: u64 = 2;
/// More CPUs than this a guest cannot have.
pub const MAX_CPUS: u64 = 16;
/// The smallest guest, in bytes: below that the kernel's own part leaves too little for a load.
pub const LEAST_MEMORY: u64 = 256 << 20;
