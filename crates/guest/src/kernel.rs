//! The kernel: from the first line of Rust to the end of its task.

mod arch;
mod balloon;
mod console;
mod experiment;
mod follow;
mod hal;
mod machine;
mod memory;
mod platform;
mod programs;
mod suite;
mod transport;

use alloc::string::{String, ToString};

use arch::{cpu, exit, failure, serial::SERIAL, start_info::StartInfo};
use console::send;
use dirigible_workload::protocol::{GuestTask, Message};
use machine::Machine;

/// Memory that the kernel keeps for itself where the task does not say how much is managed.
const KEEP: u64 = 48 << 20;

/// Called by boot.s on the first CPU, with the physical address of the start info.
// SAFETY: no other symbol of the kernel has this name.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info: u64) -> ! {
    cpu::become_cpu(0);
    SERIAL.lock().set_up();
    let Some(info) = StartInfo::read(start_info) else {
        failure::report(format_args!(
            "no PVH start info: the kernel is to be booted with -kernel"
        ));
        exit::failed();
    };
    console::send_hello(info.memory());
    match run(&info) {
        Ok(()) => exit::success(),
        Err(why) => {
            send(&Message::Failed { why });
            exit::failed()
        }
    }
}

/// Runs the job on the command line.
fn run(info: &StartInfo) -> Result<(), String> {
    let machine = Machine::begin(info).map_err(|error| error.to_string())?;
    if info.command_line.is_empty() {
        return Err("the command line is empty, or longer than 4,095 bytes".into());
    }
    let task: GuestTask = serde_json::from_slice(&info.command_line)
        .map_err(|error| alloc::format!("the command line is no task: {error}"))?;
    let bring_up = |wanted| {
        machine
            .bring_up(info, wanted, KEEP)
            .map_err(|error| error.to_string())
    };
    match task {
        GuestTask::Hello => Ok(()),
        GuestTask::Column {
            column,
            params,
            moves,
        } => {
            params
                .check()
                .and_then(|()| params.check_column(column))
                .map_err(|error| error.to_string())?;
            let wanted = dirigible_workload::timeline::column_mem_total_frames(column, &params);
            experiment::run(&bring_up(Some(wanted))?, column, &params, moves)
        }
        GuestTask::Tests { only } => suite::run(&bring_up(None)?, &only),
        GuestTask::Balloon { batch } => follow::run(&bring_up(None)?, batch),
    }
}
