//! One column of the experiment: wires the memory manager, runs the actors, sends the report.

use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    fmt::Display,
    sync::atomic::{AtomicBool, Ordering},
};

use dirigible::{
    MemoryManager,
    boot::Booted,
    flusher::Flusher,
    kswapd::Kswapd,
    schedule::{Clock, Current, Engine, PROGRAM_STACK, time},
};
use dirigible_disk::DiskConfig;
use dirigible_files::Parts as StoreParts;
use dirigible_frames::Platform;
use dirigible_pagecache::{CacheConfig, CacheParts, PageCache};
use dirigible_paging::Paging;
use dirigible_reclaim::{Generations, ReclaimConfig, Reclaimer};
use dirigible_swap::Swap;
use dirigible_workload::{
    balloon::MeasuredWorker,
    content::ContentLog,
    control::Control,
    disk::format_and_mount,
    experiment::{BALLOON, Experiment, ExperimentParts, FILES, PAGING, SPACES},
    operations::Operations,
    params::{Column, Params},
    processes::Processes,
    programs::LoadPlan,
    protocol::Message,
    report::{Observer, Progress},
    stalls::Stalls,
    system::{HostClock, MoveChecks, Parts, System},
    tuning::{ColumnPolicy, rested_watermarks},
};
use spin::Mutex;

use super::{
    arch::{clock, cpu, interrupts, smp},
    balloon::{BalloonPort, Driver, device},
    console::send,
    machine::Guest,
    platform::{self, GuestPlatform},
    programs::Programs,
};

/// Runs `column` of the run `params` and sends the report; when the balloon is full for the first time each of its
/// frames is moved `moves` times.
///
/// # Errors
///
/// Parameters that no run can be made of, a machine without its parts, or books that do not balance at the end.
pub fn run(guest: &Guest, column: Column, params: &Params, moves: u64) -> Result<(), String> {
    let policy = ColumnPolicy::new(column, params);
    let platform = &GuestPlatform;
    let Booted { frames, room } = guest.boot(policy.boot(params, guest.cpus))?;

    let contents = ContentLog::new();
    let move_checks = MoveChecks::new(platform, &contents);
    let transport = device()?;
    let line = transport.line();
    let balloon: Driver<'_> =
        Driver::new(transport, frames, platform, BALLOON, policy.balloon()).map_err(text)?;
    let manager = MemoryManager::new_in(room, frames, platform, policy.manager()).map_err(text)?;
    manager.register_balloon(&balloon).map_err(text)?;
    let disk = guest.disk(DiskConfig::default())?;
    let disk = disk.ok_or("the machine has no disk: start it with -device virtio-blk-pci")?;
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
    manager.register(FILES, &cache).map_err(text)?;
    reclaimer.register(FILES, &cache).map_err(text)?;
    let swap = Swap::new(&cache);
    let paging = Paging::new(frames, platform, PAGING, SPACES)
        .observed_by(&move_checks)
        .with_swap(&generations, &swap)
        .with_kernel_half(guest.kernel_root);
    let programs = Programs::new(&paging);
    manager.register_paging(&paging).map_err(text)?;
    reclaimer.register(PAGING, &paging).map_err(text)?;
    manager.add_reclaimer(&reclaimer).map_err(text)?;
    let plan = LoadPlan::new(params);
    let store_parts = StoreParts {
        frames,
        platform,
        source: manager.memory(),
        pages: &cache,
    };
    let files = format_and_mount(store_parts, &plan)?;
    let (inodes, names) = (files.inode_shrinker(), files.name_shrinker());
    reclaimer.add_shrinker(&names).map_err(text)?;
    reclaimer.add_shrinker(&inodes).map_err(text)?;
    let stalls = Stalls::new(manager.mobility(), policy.fallback);
    manager.add_observer(&stalls).map_err(text)?;
    let port = BalloonPort::new(&balloon, line, params.column_balloon_frames(column));
    let parts = Parts {
        platform,
        frames,
        paging: &paging,
        memory: manager.memory(),
        cache: &cache,
        files: &files,
        swap: &swap,
        reclaim: &reclaimer,
        user: Some(&programs),
        balloon: &port,
        contents: &contents,
        stalls: &stalls,
        // A look at all blocks takes too long where time is real.
        oracle: None,
        host_clock: &MachineClock,
    };
    let system = System::new(parts, rested_watermarks(params));
    let control = Control::new();
    let processes = Processes::new(&system, &control, plan, usize::from(guest.cpus));
    let operations = Operations::new(&system, &processes);
    let on = ExperimentParts {
        system: &system,
        processes: &processes,
        operations: &operations,
        control: &control,
        manager: &manager,
    };
    let experiment = Experiment::new(column, params, on);
    experiment.begin().map_err(text)?;
    let worker = manager.balloon_worker(&balloon).with_line(&port);
    let worker = experiment.balloon_worker(worker);
    let flusher = Flusher::new(&cache, platform.now());
    let daemons = (worker, manager.kswapd(&reclaimer), flusher);
    run_actors(guest, &experiment, daemons, moves)?;

    experiment.settle();
    let mut report = experiment.report(&policy, balloon.stats(), port.largest(), 0);
    experiment.end(&balloon, &mut report)?;
    send(&Message::Column {
        report: Box::new(report),
        attempts: system.passes().1,
    });
    Ok(())
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The daemons but kcompactd.
type Daemons<'w, 'a> = (
    MeasuredWorker<'w>,
    Kswapd<'w, 'a, GuestPlatform>,
    Flusher<'w, 'a, GuestPlatform>,
);

/// Runs all actors to the end: the director and what serves it on the first CPU, the load's programs spread over all.
fn run_actors(
    guest: &Guest,
    experiment: &Experiment<'_, '_, '_, GuestPlatform>,
    (worker, kswapd, flusher): Daemons<'_, '_>,
    moves: u64,
) -> Result<(), String> {
    let cpus = usize::from(guest.cpus);
    let fill = |space, page, frame| experiment.fill_page(space, page, frame);
    let mut engines: Vec<Engine<'_>> = (0..cpus).map(|_| Engine::new()).collect();
    engines[0]
        .add_program(0, Box::new(experiment.director()))
        .map_err(text)?;
    engines[0].add(0, worker);
    engines[0].add(0, experiment.kcompactd());
    engines[0].add(0, kswapd);
    engines[0].add(0, flusher);
    let khugepaged = experiment.khugepaged(&fill);
    engines[0]
        .add_program(0, Box::new(khugepaged))
        .map_err(text)?;
    if let Some(mover) = experiment.mover(moves) {
        engines[0].add_program(0, Box::new(mover)).map_err(text)?;
    }
    for (cpu, engine) in engines.iter_mut().enumerate() {
        experiment.accept_programs(engine, cpu);
    }
    let engines: Vec<Mutex<Engine<'_>>> = engines.into_iter().map(Mutex::new).collect();
    let ended = experiment.control().ended();
    clock::restart();
    send(&Message::Start);
    smp::on_all(&|cpu| {
        let mut engine = engines[cpu.index()].lock();
        match cpu.index() {
            0 => experiment.lead(&mut engine, &MachineClock, &mut SerialProgress),
            _ => engine.run(&MachineClock, ended, |_, _| {}),
        }
        debug_assert!(
            engine.deepest_stack() <= PROGRAM_STACK / 4,
            "a program used {} bytes of its stack",
            engine.deepest_stack()
        );
    });
    Ok(())
}

/// Sends the experiment's progress on the serial port.
struct SerialProgress;

impl Observer for SerialProgress {
    fn progress(&mut self, progress: Progress) {
        let Progress {
            phase,
            now_ms,
            end_ms,
        } = progress;
        send(&Message::Progress {
            phase: phase.into(),
            now_ms,
            end_ms,
        });
    }
}

/// The machine's clock: real time.
pub struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> u64 {
        clock::now()
    }

    fn wait_until(&self, until: u64, ended: &AtomicBool) {
        // Acquire: pairs with the release that ends the run.
        while clock::now() < until && !ended.load(Ordering::Acquire) {
            interrupts::idle();
        }
    }

    fn pass(&self, _next: Option<u64>) {
        platform::let_time_pass();
    }

    fn longest_wait(&self) -> Option<u64> {
        Some(time::MILLISECOND)
    }

    fn with_current(&self, run: &mut dyn FnMut(&Current)) {
        run(&cpu::current().program);
    }
}

impl HostClock for MachineClock {
    fn nanoseconds(&self) -> u64 {
        clock::now()
    }
}
