//! One boot without a task: how long it takes, and how large the kernel is.

use std::{fs, time::Duration};

use dirigible_workload::protocol::GuestTask;

use crate::{command_line::Shape, error::RunError, options::QemuMachine, vm::Vm};

/// Memory of this guest in bytes.
const MEMORY: u64 = 64 << 20;

/// A boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// From QEMU's start to the guest's first line.
    pub first_line: Duration,
    /// From QEMU's start to its end.
    pub end: Duration,
    /// The size of the kernel's file in bytes; 0 if it cannot be read.
    pub kernel_bytes: u64,
}

/// Boots the guest, which ends at once.
///
/// # Errors
///
/// The guest does not come up, or does not end as it should.
pub fn hello(machine: &QemuMachine) -> Result<Hello, RunError> {
    let shape = Shape {
        memory: MEMORY,
        cpus: 1,
        touched: false,
        control: false,
        disk_bytes: 0,
        base_pages: false,
    };
    let mut vm = Vm::start(machine, shape, &GuestTask::Hello, "hello")?;
    let started = vm.started();
    let result = vm.hello().and_then(|first| {
        vm.finish()?;
        Ok(Hello {
            first_line: first.saturating_duration_since(started),
            end: started.elapsed(),
            kernel_bytes: fs::metadata(&machine.guest).map_or(0, |file| file.len()),
        })
    });
    vm.conclude(result)
}
