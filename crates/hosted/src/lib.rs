//! The hosted machine: a guest's memory, CPUs and devices inside one process.
//!
//! Guest memory is a real mapping, the balloon device talks to its driver over real virtqueues and really gives memory
//! back to the host, so resident memory falls as the balloon grows, and a frame that is used while the host holds it
//! reads as zeroes. A machine runs in one of two [modes](Mode): *deterministic* (one thread, virtual time; the same
//! input gives the same run) or with *threads* (real time, devices on threads of their own).
//!
//! ```
//! use dirigible_frames::{FrameContents, Pfn, Platform};
//! use dirigible_hosted::{BalloonOptions, MachineBuilder};
//!
//! let machine = MachineBuilder::new(64 << 20).balloon(BalloonOptions::default()).build()?;
//! let frame = machine.ram().layout().managed()[0].start;
//! machine.platform().write_word(frame, 0, 42);
//! assert_eq!(machine.platform().read_word(frame, 0), 42);
//! assert_eq!(machine.ram().resident_frames()?, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A driver takes the device's [transport](HostBalloon::transport) and the [`HostedHal`]; the host side sets targets
//! and reads counters through [`HostBalloon`]. The allocator gets its metadata memory from [`GuestRam::table_memory`].
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("the hosted machine needs Linux: it discards and counts memory by Linux' own calls");

mod binding;
mod clock;
pub mod costs;
mod devices;
mod host_facts;
mod machine;
mod machine_clock;
mod memory;
mod platform;
pub mod run;
mod sections;

pub use binding::{BindError, CpuBinding};
pub use devices::{
    balloon_device::BalloonCounters,
    balloon_host::{HostBalloon, TargetError},
    balloon_options::{AnswerTime, BalloonOptions, BalloonOptionsError, features},
    balloon_stats::GuestStatistics,
    disk_device::DiskCounters,
    disk_faults::{DiskAccess, DiskFault, DiskFaultPlan},
    disk_host::HostDisk,
    disk_options::{DiskOptions, DiskOptionsError},
    faults::{Fault, FaultPlan, Request},
    hal::HostedHal,
    held_frames::ProtocolErrors,
    interrupt::InterruptLine,
    transport::InProcessTransport,
};
pub use host_facts::HostFacts;
pub use machine::{HostedMachine, MAX_CPUS, MachineBuilder, MachineError};
pub use machine_clock::MachineClock;
pub use memory::{
    discard::{DiscardCounts, DiscardMethod},
    guest_ram::{Backing, GuestRam, RamError},
    layout::{LayoutError, MAX_MEMORY, MIN_MEMORY, RamLayout},
};
pub use platform::{HostedPlatform, Mode};
