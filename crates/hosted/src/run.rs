//! One column of the experiment on a hosted machine, from boot to report.

mod host;
mod port;

use std::{cell::Cell, thread, time::Instant};

use dirigible::{
    AddError, MemoryManager,
    boot::{BootError, BootPlan, Booted},
    chain::Full,
    flusher::Flusher,
    kswapd::Kswapd,
    memory_map::MapEntry,
    room::NoRoom,
    schedule::{Engine, NoStack, PROGRAM_STACK},
};
use dirigible_balloon::BalloonError;
use dirigible_disk::{DiskConfig, SetUpError, VirtioDisk};
use dirigible_files::Parts as StoreParts;
use dirigible_frames::{CpuId, Platform};
use dirigible_pagecache::{CacheConfig, CacheParts, PageCache};
use dirigible_paging::Paging;
use dirigible_reclaim::{Generations, ReclaimConfig, Reclaimer, RegisterError};
use dirigible_swap::Swap;
use dirigible_workload::{
    balloon::MeasuredWorker,
    content::ContentLog,
    control::Control,
    disk::format_and_mount,
    experiment::{BALLOON, Experiment, ExperimentParts, FILES, PAGING, SPACES},
    operations::Operations,
    oracle::Oracle,
    params::{Column, Params, ParamsError},
    processes::Processes,
    programs::LoadPlan,
    report::{ColumnRun, Observer},
    stalls::Stalls,
    system::{MoveChecks, Parts, System},
    timeline::column_mem_total_frames,
    tuning::{ColumnPolicy, rested_watermarks},
};
use thiserror::Error;

use crate::{
    AnswerTime, BalloonOptions, BindError, DiskCounters, DiskFaultPlan, DiskOptions, HostDisk,
    HostedHal, HostedMachine, HostedPlatform, InProcessTransport, MachineBuilder, MachineClock,
    MachineError, Mode, features,
};
use host::{SinceStart, measured};
use port::{BalloonPort, Driver};

/// Threads of a threaded machine besides those of the load: director, balloon's worker, its interrupts, kcompactd.
const SERVICE_CPUS: u16 = 4;

/// Why a column has no report.
#[derive(Debug, Error)]
pub enum RunError {
    /// Parameters that no run can be made of.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The machine could not be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The allocator could not be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The memory for the manager's tables is too small.
    #[error(transparent)]
    Room(#[from] NoRoom),
    /// The balloon could not be set up.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// A part could not be registered with the manager.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The manager has no room for a part.
    #[error(transparent)]
    Full(#[from] Full),
    /// A thread got no CPU.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The disk could not be set up.
    #[error(transparent)]
    Disk(#[from] SetUpError),
    /// The page cache or a shrinker could not be registered with reclaim.
    #[error(transparent)]
    Reclaim(#[from] RegisterError),
    /// The disk could not be formatted.
    #[error("{0}")]
    Files(String),
    /// A program got no stack.
    #[error(transparent)]
    Stack(#[from] NoStack),
    /// The machine lacks a part that every machine of this kind has.
    #[error("the machine has no {0}")]
    Missing(&'static str),
    /// The host did not answer.
    #[error("the host does not report which memory is resident: {0}")]
    Residency(#[source] std::io::Error),
    /// What was checked at the end of the run does not hold: a fault of ours.
    #[error("at the end of column {column}: {what}")]
    Check {
        /// The column.
        column: &'static str,
        /// What does not hold.
        what: String,
    },
}

/// Runs `column` of the run `params` and reports.
///
/// # Errors
///
/// Bad parameters, a host that cannot give what the machine needs, or books that do not balance at the end.
pub fn run_column(
    column: Column,
    params: &Params,
    observer: &mut dyn Observer,
) -> Result<ColumnRun, RunError> {
    run_column_moving(column, params, 0, observer)
}

/// The same; when the balloon is full for the first time, each of its frames is moved `moves` times, under load.
///
/// # Errors
///
/// As [`run_column`].
pub fn run_column_moving(
    column: Column,
    params: &Params,
    moves: u64,
    observer: &mut dyn Observer,
) -> Result<ColumnRun, RunError> {
    let (run, _) = run_column_on((column, params, moves), disk_options(params), observer)?;
    Ok(run)
}

/// As [`run_column`], on a disk that misbehaves as `faults` say, and never on a larger one than `bytes`. Gives also what
/// the disk counted. For tests of what becomes of the guest then.
///
/// # Errors
///
/// As [`run_column`]; and the disk cannot be used at all.
pub fn run_column_on_bad_disk(
    column: Column,
    params: &Params,
    (bytes, faults): (u64, Vec<DiskFaultPlan>),
    observer: &mut dyn Observer,
) -> Result<(ColumnRun, DiskCounters), RunError> {
    let good = disk_options(params);
    let disk = DiskOptions {
        bytes: good.bytes.min(bytes),
        faults,
        ..good
    };
    run_column_on((column, params, 0), disk, observer)
}

fn run_column_on(
    (column, params, moves): (Column, &Params, u64),
    disk: DiskOptions,
    observer: &mut dyn Observer,
) -> Result<(ColumnRun, DiskCounters), RunError> {
    params.check()?;
    params.check_column(column)?;
    let started = Instant::now();
    let (mode, cpus) = match params.threads {
        0 => (Mode::Deterministic, 1),
        threads => (Mode::Threads, threads as u16 + SERVICE_CPUS),
    };
    let machine = MachineBuilder::new(params.column_memory(column))
        .cpus(cpus)
        .mode(mode)
        .balloon(balloon_options(params))
        .disk(disk)
        .build()?;
    let policy = ColumnPolicy::new(column, params);
    // The column `smaller` runs without what the balloon holds in the others.
    let mut left = column_mem_total_frames(column, params);
    let ranges = machine.ram().layout().managed().iter();
    let ranges = ranges.map(|range| {
        let frames = left.min(range.end.get() - range.start.get());
        left -= frames;
        range.start..range.start.plus(frames)
    });
    let map: Vec<_> = ranges
        .filter(|range| !range.is_empty())
        .map(|range| MapEntry::usable(&range))
        .collect();
    let memory = machine
        .ram()
        .table_memory()
        .ok_or(RunError::Missing("memory for tables"))?;
    let booted =
        BootPlan::new(&map, policy.boot(params, cpus))?.boot(memory, machine.platform())?;
    let run = run_on(
        (column, params, moves),
        &policy,
        &machine,
        booted,
        started,
        observer,
    )?;
    let disk = machine.disks().first().map(HostDisk::counters);
    Ok((run, disk.unwrap_or_default()))
}

/// The disk.
fn disk_options(params: &Params) -> DiskOptions {
    DiskOptions {
        bytes: params.device_bytes(),
        speed_thousandths: params.disk_speed,
        ..DiskOptions::default()
    }
}

/// The host's end of the balloon.
fn balloon_options(params: &Params) -> BalloonOptions {
    let mut options = BalloonOptions {
        answer: match params.host_answer() {
            0 => AnswerTime::OfWork,
            ns => AnswerTime::After(ns),
        },
        ..BalloonOptions::default()
    };
    if params.deflate_on_oom {
        options.features |= features::DEFLATE_ON_OOM;
    }
    options
}

fn run_on<'a>(
    (column, params, moves): (Column, &Params, u64),
    policy: &ColumnPolicy,
    machine: &'a HostedMachine,
    Booted { frames, room }: Booted<'a>,
    started: Instant,
    observer: &mut dyn Observer,
) -> Result<ColumnRun, RunError> {
    let platform = machine.platform();
    let host_balloon = machine
        .balloons()
        .first()
        .ok_or(RunError::Missing("balloon"))?;
    let director_cpu = CpuId::new(params.threads as u16);
    let binding = (params.threads > 0)
        .then(|| platform.bind_cpu(director_cpu))
        .transpose()?;
    // Ends after the balloon, which needs a CPU when it is dropped.
    let binding = Cell::new(binding);

    machine.ram().touch_all();
    let resident_empty = machine
        .ram()
        .resident_frames()
        .map_err(RunError::Residency)?;

    let contents = ContentLog::new();
    let move_checks = MoveChecks::new(platform, &contents);
    let transport = host_balloon
        .transport()
        .ok_or(RunError::Missing("balloon transport"))?;
    let balloon = Driver::new(transport, frames, platform, BALLOON, policy.balloon())?;
    let manager = MemoryManager::new_in(room, frames, platform, policy.manager())?;
    manager.register_balloon(&balloon)?;
    let transport = machine
        .disks()
        .first()
        .and_then(HostDisk::transport)
        .ok_or(RunError::Missing("disk"))?;
    let disk: Disk<'_> = VirtioDisk::new(transport, platform, DiskConfig::default())?;
    let generations = Generations::new(frames);
    let reclaimer = Reclaimer::new(&generations, platform, ReclaimConfig::default());
    let cache_parts = CacheParts {
        frames,
        platform,
        owner: FILES,
        disk: &disk,
        memory: manager.memory(),
        generations: &generations,
        swap: params.swap_blocks(),
    };
    let cache = PageCache::new(cache_parts, CacheConfig::default()).observed_by(&move_checks);
    manager.register(FILES, &cache)?;
    reclaimer.register(FILES, &cache)?;
    let swap = Swap::new(&cache);
    let paging = Paging::new(frames, platform, PAGING, SPACES)
        .observed_by(&move_checks)
        .with_swap(&generations, &swap);
    manager.register_paging(&paging)?;
    reclaimer.register(PAGING, &paging)?;
    manager.add_reclaimer(&reclaimer)?;
    let plan = LoadPlan::new(params);
    let store_parts = StoreParts {
        frames,
        platform,
        source: manager.memory(),
        pages: &cache,
    };
    let files = format_and_mount(store_parts, &plan).map_err(RunError::Files)?;
    let (inodes, names) = (files.inode_shrinker(), files.name_shrinker());
    reclaimer.add_shrinker(&names)?;
    reclaimer.add_shrinker(&inodes)?;
    let stalls = Stalls::new(manager.mobility(), policy.fallback);
    manager.add_observer(&stalls)?;
    let oracle = Oracle::new(manager.mobility());
    manager.mobility().observe(Some(&oracle));
    let full = params.column_balloon_frames(column);
    let port = BalloonPort::new(&balloon, host_balloon, machine.ram(), full);
    let parts = Parts {
        platform,
        frames,
        paging: &paging,
        memory: manager.memory(),
        cache: &cache,
        files: &files,
        swap: &swap,
        reclaim: &reclaimer,
        user: None,
        balloon: &port,
        contents: &contents,
        stalls: &stalls,
        oracle: Some(&oracle),
        host_clock: &SinceStart(started),
    };
    let system = System::new(parts, rested_watermarks(params));
    let control = Control::new();
    let engines = params.threads.max(1);
    let processes = Processes::new(&system, &control, plan, engines);
    let operations = Operations::new(&system, &processes);
    let on = ExperimentParts {
        system: &system,
        processes: &processes,
        operations: &operations,
        control: &control,
        manager: &manager,
    };
    let experiment = Experiment::new(column, params, on);
    experiment
        .begin()
        .map_err(|error| RunError::Files(error.to_string()))?;
    let worker = manager.balloon_worker(&balloon).with_line(&port);
    let worker = experiment.balloon_worker(worker);
    run_actors(
        (params, moves),
        machine,
        &experiment,
        (
            worker,
            manager.kswapd(&reclaimer),
            Flusher::new(&cache, platform.now()),
        ),
        &port,
        observer,
    )?;

    // One thread from here on; it may be any CPU.
    binding.set(None);
    let first = (params.threads > 0)
        .then(|| platform.bind_cpu(CpuId::new(0)))
        .transpose()?;
    binding.set(first);
    experiment.settle();
    let mut report = experiment.report(
        policy,
        balloon.stats(),
        port.largest(),
        device_errors(machine),
    );
    let (host, facts) = measured(
        column,
        machine,
        started,
        system.passes().1,
        port.residency(resident_empty),
    );
    let checked = experiment
        .end(&balloon, &mut report)
        .and_then(|()| check_devices(machine));
    match checked {
        Ok(()) => Ok(ColumnRun {
            report,
            host,
            facts,
        }),
        Err(what) => Err(RunError::Check {
            column: column.name(),
            what,
        }),
    }
}

/// The daemons but kcompactd.
type Daemons<'w, 'a> = (
    MeasuredWorker<'w>,
    Kswapd<'w, 'a, HostedPlatform>,
    Flusher<'w, 'a, HostedPlatform>,
);

/// The driver over this machine's transport.
type Disk<'a> = VirtioDisk<'a, HostedHal, InProcessTransport, HostedPlatform>;

/// Runs all actors to the end: here, or with threads on some of their own. Those that may wait in the middle of a step,
/// for the host or for what another program holds, are programs: the load's, the director and the mover.
fn run_actors(
    (params, moves): (&Params, u64),
    machine: &HostedMachine,
    experiment: &Experiment<'_, '_, '_, HostedPlatform>,
    (worker, kswapd, flusher): Daemons<'_, '_>,
    port: &BalloonPort<'_>,
    observer: &mut dyn Observer,
) -> Result<(), NoStack> {
    let (platform, ended) = (machine.platform(), experiment.control().ended());
    let clock = MachineClock::new(platform);
    let mover = experiment.mover(moves);
    let fill = |space, page, frame| experiment.fill_page(space, page, frame);
    let khugepaged = experiment.khugepaged(&fill);
    let mut here = Engine::new();
    here.add(0, experiment.targets());
    here.add_program(0, Box::new(experiment.director()))?;
    let kcompactd = experiment.kcompactd();
    if params.threads == 0 {
        here.add(0, worker);
        here.add(0, kcompactd);
        here.add(0, kswapd);
        here.add(0, flusher);
        here.add_program(0, Box::new(khugepaged))?;
        experiment.accept_programs(&mut here, 0);
        if let Some(mover) = mover {
            here.add_program(0, Box::new(mover))?;
        }
        experiment.lead(&mut here, &clock, observer);
        check_stacks(&here);
        return Ok(());
    }
    let threads = params.threads;
    let mut engines: Vec<Engine<'_>> = (0..threads).map(|_| Engine::new()).collect();
    for (cpu, engine) in engines.iter_mut().enumerate() {
        experiment.accept_programs(engine, cpu);
    }
    // The director has the CPU after the load's.
    let mut service = (threads as u16 + 1..).map(CpuId::new);
    let (mut inflating, mut compacting) = (Engine::new(), Engine::new());
    engines[0].add_program(0, Box::new(khugepaged))?;
    inflating.add(0, worker);
    compacting.add(0, kcompactd);
    compacting.add(0, kswapd);
    compacting.add(0, flusher);
    if let Some(mover) = mover {
        compacting.add_program(0, Box::new(mover))?;
    }
    let services =
        [inflating, compacting].map(|engine| (service.next().unwrap_or_default(), engine));
    let interrupts = service.next().unwrap_or_default();
    let load = engines
        .into_iter()
        .enumerate()
        .map(|(cpu, engine)| (CpuId::new(cpu as u16), engine));
    thread::scope(|scope| {
        for (cpu, mut engine) in load.chain(services) {
            scope.spawn(move || {
                let _guard = EndOnPanic(experiment.control());
                // Each CPU is given out once, so the binding cannot fail; without it the first access would panic.
                let _binding = platform.bind_cpu(cpu);
                engine.run(&MachineClock::new(platform), ended, |_, _| {});
                check_stacks(&engine);
            });
        }
        scope.spawn(move || {
            let _guard = EndOnPanic(experiment.control());
            let _binding = platform.bind_cpu(interrupts);
            port.serve_interrupts(ended);
        });
        let _guard = EndOnPanic(experiment.control());
        experiment.lead(&mut here, &clock, observer);
    });
    Ok(())
}

/// Ends the run when its thread panics: the others would wait for it for ever, and the panic would not come out.
struct EndOnPanic<'a>(&'a Control);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end();
        }
    }
}

/// Sees in builds with checks that programs stay far from the ends of their stacks.
fn check_stacks(engine: &Engine<'_>) {
    debug_assert!(
        engine.deepest_stack() <= PROGRAM_STACK / 4,
        "a program used {} bytes of its stack",
        engine.deepest_stack()
    );
}

/// Errors of the protocol that the devices counted.
fn device_errors(machine: &HostedMachine) -> u64 {
    let devices = machine.balloons().iter();
    devices.map(|device| device.counters().errors.total()).sum()
}

/// The devices' side of the books: all was in order, and nothing is left with them.
fn check_devices(machine: &HostedMachine) -> Result<(), String> {
    for device in machine.balloons() {
        let errors = device.counters().errors;
        if errors.total() != 0 || device.held_frames() != 0 {
            return Err(format!(
                "balloon device: holds {}, {errors:?}",
                device.held_frames()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{panic, sync::atomic::Ordering};

    #[test]
    fn a_panic_ends_the_run_and_nothing_else_does() {
        let control = Control::new();
        drop(EndOnPanic(&control));
        assert!(!control.ended().load(Ordering::Acquire));
        let panicked = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            let _guard = EndOnPanic(&control);
            panic!("on purpose");
        }));
        assert!(panicked.is_err() && control.ended().load(Ordering::Acquire));
    }
}
