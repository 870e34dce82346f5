//! The host that the virtual machine runs on.

use std::thread;

use dirigible_workload::report::HostFacts;

use crate::options::QemuMachine;

/// The host's kernel, its CPUs, and which QEMU runs on it.
pub(crate) fn gather(machine: &QemuMachine) -> HostFacts {
    let name = rustix::system::uname();
    let (system, release) = (name.sysname(), name.release());
    HostFacts {
        kernel: format!(
            "{} {}, {}",
            system.to_string_lossy(),
            release.to_string_lossy(),
            machine.describe()
        ),
        cpus: thread::available_parallelism().map_or(1, usize::from) as u64,
        // QEMU discards memory by calls of its own.
        process_madvise: false,
    }
}
