//! The machine QEMU: the guest kernel in a virtual machine. The command sets its balloon's target and measures on the
//! host.
//!
//! A guest gets its task on the kernel's command line and sends messages on its serial port, one a line
//! ([`dirigible_workload::protocol`]). The balloon's target is set over QMP, QEMU's control socket, in real time. What
//! the balloon gives back to the host is measured as resident memory of the QEMU process.
//!
//! [`QemuOptions::resolve`] finds QEMU and the guest kernel before anything starts; the [`QemuMachine`] that it gives
//! runs tasks: one [column](run_column) of the experiment, the balloon's [speed](balloon_speed), the guest's own
//! [tests](guest_tests()), and a single [boot](hello()).
//!
//! No QEMU outlives the run: it is killed when its guard is dropped, and by the kernel when this process dies.
//! On failure the output of the serial port is kept, and the error names the file.
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("this crate needs Linux: it reads /proc and uses parent-death signals");

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

/// CPUs of a guest by default.
pub const DEFAULT_CPUS: u64 = 2;
/// The most CPUs that a guest can have.
pub const MAX_CPUS: u64 = 16;
/// The smallest guest, in bytes: with less, the kernel's own part leaves too little for a load.
pub const LEAST_MEMORY: u64 = 256 << 20;
