//! How fast the balloon grows and shrinks, and whether the host took its memory.

use std::time::{Duration, Instant};

use dirigible_frames::FRAME_SIZE;
use dirigible_workload::protocol::{GuestTask, Message, ask};
use serde::Serialize;

use crate::{
    command_line::Shape,
    diagnosis::unexpected,
    error::{Cause, RunError},
    host_facts,
    options::QemuMachine,
    residency::{Allowed, mib},
    vm::Vm,
};

/// Time between two queries of the balloon's size. QEMU's main loop answers them and serves the balloon, too: more
/// queries would slow down the balloon.
const LOOK: Duration = Duration::from_millis(4);
const MIB: f64 = (1 << 20) as f64;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpeedParams {
    /// Memory of the guest in bytes.
    pub memory: u64,
    /// What the balloon takes, in bytes.
    pub balloon: u64,
    /// Frames in one message at most.
    pub batch: u64,
    /// How often it grows and shrinks.
    pub rounds: u64,
    /// CPUs of the guest.
    pub cpus: u64,
}

/// All that was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SpeedReport {
    /// The host's kernel, and which QEMU ran on it.
    pub host: String,
    /// CPUs that the guest's kernel has.
    pub cpus: u64,
    /// Memory of the guest in bytes.
    pub memory_bytes: u64,
    /// What the balloon takes, in bytes.
    pub balloon_bytes: u64,
    /// Frames in one message at most.
    pub batch: u64,
    /// Rounds on memory that was not touched since boot: the host has nothing to take.
    pub fresh_rounds: Vec<FreshRound>,
    /// Resident on the host before any balloon, all memory written.
    pub resident_mib: f64,
    /// Rounds on memory that is written before each of them.
    pub rounds: Vec<SpeedRound>,
}

/// Once up and down, with nothing for the host to take.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct FreshRound {
    /// From the target to the balloon's full size, in milliseconds.
    pub inflate_ms: f64,
    /// The same as a rate.
    pub inflate_mib_per_s: f64,
    /// From the target to the empty balloon, in milliseconds.
    pub deflate_ms: f64,
    /// The same as a rate.
    pub deflate_mib_per_s: f64,
}

/// Once up and down.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct SpeedRound {
    /// From the target to the balloon's full size, in milliseconds.
    pub inflate_ms: f64,
    /// The same as a rate.
    pub inflate_mib_per_s: f64,
    /// Resident on the host then.
    pub resident_full_mib: f64,
    /// From the target to the empty balloon, in milliseconds.
    pub deflate_ms: f64,
    /// The same as a rate.
    pub deflate_mib_per_s: f64,
    /// Frames that read as zeroes after that: the host had taken them.
    pub zero_frames: u64,
    /// Resident on the host when all memory is written again.
    pub resident_after_mib: f64,
}

/// Boots the guest, and has its balloon grow and shrink as fast as it can: first on memory not touched since boot, then
/// on memory that is written each time; calls `ended` for each of the latter rounds.
///
/// In these resident memory must fall by what the balloon takes, what comes back must read as zeroes, and everything
/// else as it was.
///
/// # Errors
///
/// A guest that fails, hangs or dies, or a balloon whose memory the host does not have.
pub fn balloon_speed(
    machine: &QemuMachine,
    params: &SpeedParams,
    ended: &mut dyn FnMut(&SpeedRound),
) -> Result<SpeedReport, RunError> {
    let shape = Shape {
        memory: params.memory,
        cpus: params.cpus,
        touched: false,
        control: true,
        disk_bytes: 0,
        base_pages: false,
    };
    let task = GuestTask::Balloon {
        batch: params.batch,
    };
    let mut vm = Vm::start(machine, shape, &task, "balloon")?;
    let result = measure(&mut vm, machine, params, ended);
    vm.conclude(result)
}

fn measure(
    vm: &mut Vm<'_>,
    machine: &QemuMachine,
    params: &SpeedParams,
    ended: &mut dyn FnMut(&SpeedRound),
) -> Result<SpeedReport, Cause> {
    vm.hello()?;
    let (cpus, managed) = wait_until_ready(vm)?;
    let frames = params.balloon / FRAME_SIZE as u64;
    if frames >= managed {
        let what = format!("of {frames} frames does not fit: the guest has {managed}");
        return Err(Cause::Balloon { what });
    }
    let fresh = |vm: &mut Vm<'_>| -> Result<FreshRound, Cause> {
        let inflate = reach(vm, frames, "fill its balloon")?;
        let deflate = reach(vm, 0, "empty its balloon")?;
        Ok(FreshRound {
            inflate_ms: milliseconds(inflate),
            inflate_mib_per_s: pace(frames, inflate),
            deflate_ms: milliseconds(deflate),
            deflate_mib_per_s: pace(frames, deflate),
        })
    };
    let fresh_rounds: Result<Vec<_>, _> = (0..params.rounds).map(|_| fresh(vm)).collect();
    let fresh_rounds = fresh_rounds?;
    touch(vm, ask::WRITE)?;
    let resident = vm.resident()?;
    let mut report = SpeedReport {
        host: host_facts::gather(machine).kernel,
        cpus,
        memory_bytes: params.memory,
        balloon_bytes: params.balloon,
        batch: params.batch,
        fresh_rounds,
        resident_mib: mib(resident).value(),
        rounds: Vec::new(),
    };
    for _ in 0..params.rounds {
        let round = round(vm, frames, resident)?;
        ended(&round);
        report.rounds.push(round);
    }
    vm.send(ask::END)?;
    vm.finish()?;
    Ok(report)
}

fn wait_until_ready(vm: &mut Vm<'_>) -> Result<(u64, u64), Cause> {
    let limit = vm.limits().boot;
    match vm.next(Instant::now() + limit)? {
        Some((_, Message::Ready { cpus, managed, .. })) => Ok((cpus, managed)),
        Some((_, other)) => Err(unexpected(&other, "ready")),
        None => Err(Cause::NotReady { limit }),
    }
}

fn round(vm: &mut Vm<'_>, frames: u64, resident: u64) -> Result<SpeedRound, Cause> {
    let bytes = frames * FRAME_SIZE as u64;
    let wrong = |what: String| Err(Cause::Balloon { what });
    let inflate = reach(vm, frames, "fill its balloon")?;
    let full = vm.resident()?;
    if let Err(what) = Allowed::new(bytes, 0).check(resident, full) {
        return wrong(what);
    }
    let deflate = reach(vm, 0, "empty its balloon")?;
    let (zero, damaged) = touch(vm, ask::READ)?;
    if (zero, damaged) != (frames, 0) {
        return wrong(format!(
            "of {frames} frames that came back {zero} read as zeroes, and {damaged} other frames have wrong contents"
        ));
    }
    touch(vm, ask::WRITE)?;
    let after = vm.resident()?;
    if let Err(what) = Allowed::new(bytes, 0).check(after, full) {
        return wrong(format!("when it is empty and all is written again: {what}"));
    }
    Ok(SpeedRound {
        inflate_ms: milliseconds(inflate),
        inflate_mib_per_s: pace(frames, inflate),
        resident_full_mib: mib(full).value(),
        deflate_ms: milliseconds(deflate),
        deflate_mib_per_s: pace(frames, deflate),
        zero_frames: zero,
        resident_after_mib: mib(after).value(),
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// MiB a second.
fn pace(frames: u64, time: Duration) -> f64 {
    (frames * FRAME_SIZE as u64) as f64 / MIB / time.as_secs_f64()
}

/// Sets a target, waits until the balloon has that size, and returns how long that took.
fn reach(vm: &mut Vm<'_>, target: u64, what: &'static str) -> Result<Duration, Cause> {
    let started = Instant::now();
    let limit = vm.limits().step;
    vm.set_balloon(target)?;
    loop {
        let frames = vm.balloon()?;
        let took = started.elapsed();
        if frames == target {
            return Ok(took);
        }
        if took >= limit {
            let state = format!(" (it holds {frames} frames of {target})");
            return Err(Cause::Step { what, limit, state });
        }
        if let Some((_, message)) = vm.next(Instant::now() + LOOK)? {
            return Err(unexpected(&message, "nothing"));
        }
    }
}

/// Has the guest write or read all its free memory. Returns how many frames read as zeroes and how many had wrong
/// contents.
fn touch(vm: &mut Vm<'_>, how: u8) -> Result<(u64, u64), Cause> {
    vm.send(how)?;
    let limit = vm.limits().step;
    match vm.next(Instant::now() + limit)? {
        Some((_, Message::Touched { zero, wrong, .. })) => Ok((zero, wrong)),
        Some((_, other)) => Err(unexpected(&other, "touched")),
        None => Err(Cause::Step {
            what: "touch its memory",
            limit,
            state: String::new(),
        }),
    }
}
