//! One column of the experiment on a hosted machine, from boot to report.

mod ending;
mod host;
mod port;

use std::{
    mem::ManuallyDrop,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use dirigible_balloon::{BalloonConfig, BalloonError, Deflate};
use dirigible_frames::{
    Config, ConfigError, CpuId, Event, FrameAllocator, OwnerClass, Platform, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility, RegisterError};
use dirigible_paging::{Paging, SlowPath, SlowPathConfig};
use dirigible_workload::{
    actor::{Actor, Engine, time},
    balloon::{BalloonMeans, BalloonWorker},
    content::ContentLog,
    control::Control,
    director::{Director, Targets},
    filler::{Filler, FillerLoad},
    kcompactd::Kcompactd,
    load,
    params::{Params, ParamsError},
    report::{ColumnReport, LoadReport, Observer, Progress, TenThousandths, Tenths, VmStat},
    system::{MoveChecks, Parts, System},
    timeline::{TargetsHash, Timeline, mem_total_frames},
    tuning::{ColumnPolicy, LoadTuning, rested_watermarks, watermarks},
};
use spin::Mutex;
use thiserror::Error;

use crate::{
    BalloonOptions, BindError, HostedMachine, HostedPlatform, MachineBuilder, MachineError, Mode,
};
use ending::{check_end, content_verdict};
use host::{MachineClock, SinceStart, column_host};
use port::{BalloonPort, Driver};

/// Owner classes of this machine.
const PAGING: u8 = 1;
const BALLOON: u8 = 2;
const FILLER: u8 = 3;
/// More address spaces than jobs can ever have.
const SPACES: usize = 64;
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
    /// The allocator could not be built.
    #[error(transparent)]
    Frames(#[from] ConfigError),
    /// The balloon could not be set up.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// An owner could not be registered with mobility.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A thread got no CPU.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The machine lacks a part that every machine of this kind has.
    #[error("the machine has no {0}")]
    Missing(&'static str),
    /// The host did not answer.
    #[error("the host does not say what memory is resident: {0}")]
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

/// Runs one column and reports.
///
/// # Errors
///
/// Bad parameters, a host that cannot give what the machine needs, or books that do not balance at the end.
pub fn run_column(params: &Params, observer: &mut dyn Observer) -> Result<ColumnReport, RunError> {
    params.check()?;
    let started = Instant::now();
    let (mode, cpus) = match params.threads {
        0 => (Mode::Deterministic, 1),
        threads => (Mode::Threads, threads as u16 + SERVICE_CPUS),
    };
    let machine = MachineBuilder::new(params.memory)
        .cpus(cpus)
        .mode(mode)
        .balloon(BalloonOptions::default())
        .build()?;
    let metadata = machine
        .ram()
        .metadata_slice()
        .ok_or(RunError::Missing("metadata memory"))?;
    let policy = ColumnPolicy::new(params);
    let zone = ZoneConfig {
        name: "Normal",
        ranges: machine.ram().layout().managed(),
        watermarks: watermarks(params),
        reserve_blocks: policy.reserve_low,
    };
    let config = Config {
        zones: &[zone],
        reserved: &[],
        cpus,
        placement: policy.placement,
        fallback: policy.fallback,
    };
    let frames = FrameAllocator::new(&config, metadata)?;
    run_on(params, &policy, &machine, &frames, started, observer)
}

fn run_on<'a>(
    params: &Params,
    policy: &ColumnPolicy,
    machine: &'a HostedMachine,
    frames: &'a FrameAllocator<'a>,
    started: Instant,
    observer: &mut dyn Observer,
) -> Result<ColumnReport, RunError> {
    let platform = machine.platform();
    let host_balloon = machine
        .balloons()
        .first()
        .ok_or(RunError::Missing("balloon"))?;
    let class = |number| OwnerClass::new(number).ok_or(RunError::Missing("owner class"));
    let director_cpu = CpuId::new(params.threads as u16);
    let binding = (params.threads > 0)
        .then(|| platform.bind_cpu(director_cpu))
        .transpose()?;

    machine.ram().touch_all();
    let resident_empty = machine
        .ram()
        .resident_frames()
        .map_err(RunError::Residency)?;

    let contents = ContentLog::new();
    let move_checks = MoveChecks::new(platform, &contents);
    let filler = Filler::new(frames, platform, class(FILLER)?, &contents);
    let paging = Paging::new(frames, platform, class(PAGING)?, SPACES).observed_by(&move_checks);
    let compaction = CompactionConfig {
        reserve_low: u64::from(policy.reserve_low),
        reserve_high: u64::from(policy.reserve_high),
        exchange_batch: policy.exchange_batch,
        ..CompactionConfig::default()
    };
    let mobility = Box::new(Mobility::new(frames, platform, compaction));
    let slow_path = SlowPathConfig {
        fallback: policy.fallback,
        ..SlowPathConfig::default()
    };
    let memory = SlowPath::new(&mobility, &filler, slow_path);
    let balloon_config = BalloonConfig {
        mobility: policy.balloon_movable,
        placement: policy.inflate,
        exchange_batch: policy.exchange_batch,
        deflate: if policy.heal {
            Deflate::Heal
        } else {
            Deflate::NewestFirst
        },
        ..BalloonConfig::default()
    };
    let transport = host_balloon
        .transport()
        .ok_or(RunError::Missing("balloon transport"))?;
    // Mobility and the balloon refer to each other, so neither can be dropped while the other may look at it. The balloon is
    // shut down below; the process or the machine takes the rest.
    let balloon: ManuallyDrop<Driver<'_>> = ManuallyDrop::new(Driver::new(
        transport,
        frames,
        platform,
        &*mobility,
        class(BALLOON)?,
        balloon_config,
    )?);
    mobility.register(class(PAGING)?, &paging)?;
    mobility.register(class(FILLER)?, &filler)?;
    mobility.register(class(BALLOON)?, &*balloon)?;

    let full = params.balloon_frames();
    let port = BalloonPort::new(&balloon, host_balloon, machine.ram(), full);
    let parts = Parts {
        platform,
        frames,
        paging: &paging,
        memory: &memory,
        filler: &filler,
        user: None,
        balloon: &port,
        contents: &contents,
        host_clock: &SinceStart(started),
    };
    let system = System::new(parts, rested_watermarks(params));
    let experiment = Experiment {
        params,
        machine,
        system: &system,
        filler: &filler,
        mobility: &mobility,
        port: &port,
        timeline: Timeline::new(params),
        control: Control::new(),
        hash: Mutex::new(TargetsHash::default()),
        means: BalloonMeans::default(),
    };
    experiment.run(observer)?;
    drop(binding);

    // One thread from here on; it may be any CPU.
    let binding = (params.threads > 0)
        .then(|| platform.bind_cpu(CpuId::new(0)))
        .transpose()?;
    let mut report = experiment.report(policy, &contents, &balloon);
    let (passes, attempts) = system.passes();
    report.huge_pages = passes.iter().map(|pass| pass.allocated).sum();
    report.moved_per_huge_page = Tenths::ratio(report.pages_moved, report.huge_pages);
    report.passes = passes;
    report.host = Some(column_host(
        params,
        machine,
        started,
        attempts,
        port.residency(resident_empty),
    ));

    let checked = check_end(machine, frames, &mobility, &paging, &filler, &balloon);
    report.content_errors = contents.errors();
    report.pages_checked = contents.checked_whole();
    drop(binding);
    match checked.and_then(|()| content_verdict(&contents)) {
        Ok(()) => Ok(report),
        Err(what) => Err(RunError::Check {
            column: params.column.name(),
            what,
        }),
    }
}

/// What the run itself needs.
struct Experiment<'e, 'a, 'm> {
    params: &'e Params,
    machine: &'a HostedMachine,
    system: &'e System<'a, HostedPlatform>,
    filler: &'e Filler<'a, HostedPlatform>,
    mobility: &'e Mobility<'m, HostedPlatform>,
    port: &'e BalloonPort<'a>,
    timeline: Timeline,
    control: Control,
    hash: Mutex<TargetsHash>,
    means: BalloonMeans,
}

impl Experiment<'_, '_, '_> {
    /// The load's actors, the filler's among them.
    fn load(&self) -> Vec<Box<dyn Actor + '_>> {
        let mut actors: Vec<Box<dyn Actor + '_>> = Vec::new();
        if self.params.filler {
            let tuning = LoadTuning::new(self.params).filler;
            let seed = self.params.seed;
            actors.push(Box::new(FillerLoad::new(
                self.filler,
                &self.control,
                tuning,
                seed,
            )));
        }
        actors.extend(load::actors(self.system, &self.control, self.params));
        actors
    }

    /// Runs all actors to the end: here, or with threads on some of their own.
    fn run(&self, observer: &mut dyn Observer) -> Result<(), RunError> {
        let load = self.load();
        let mut here = Engine::new();
        here.add(0, Targets::new(self.system, &self.timeline, &self.hash));
        let audience = load.len() as u64;
        here.add(
            0,
            Director::new(self.system, &self.control, &self.timeline, audience),
        );
        let worker = BalloonWorker::new(self.port, self.system, &self.control, &self.means);
        let kcompactd = Kcompactd::new(self.mobility);
        if self.params.threads == 0 {
            here.add(0, worker);
            here.add(0, kcompactd);
            for actor in load {
                here.add_boxed(0, actor);
            }
            self.lead(&mut here, observer);
            return Ok(());
        }
        let threads = self.params.threads;
        let mut engines: Vec<Engine<'_>> = (0..threads).map(|_| Engine::new()).collect();
        for (number, actor) in load.into_iter().enumerate() {
            engines[number % threads].add_boxed(0, actor);
        }
        // The director has the CPU after the load's.
        let mut service = (threads as u16 + 1..).map(CpuId::new);
        let (mut inflating, mut compacting) = (Engine::new(), Engine::new());
        inflating.add(0, worker);
        compacting.add(0, kcompactd);
        let services =
            [inflating, compacting].map(|engine| (service.next().unwrap_or_default(), engine));
        let interrupts = service.next().unwrap_or_default();
        let load = engines
            .into_iter()
            .enumerate()
            .map(|(cpu, engine)| (CpuId::new(cpu as u16), engine));
        let platform = self.machine.platform();
        thread::scope(|scope| {
            for (cpu, mut engine) in load.chain(services) {
                scope.spawn(move || {
                    // Each CPU is given out once, so the binding cannot fail; without it the first access would panic.
                    let _binding = platform.bind_cpu(cpu);
                    engine.run(&MachineClock(platform), self.control.ended(), |_, _| {});
                });
            }
            scope.spawn(move || {
                let _binding = platform.bind_cpu(interrupts);
                self.port.serve_interrupts(self.control.ended());
            });
            self.lead(&mut here, observer);
        });
        Ok(())
    }

    /// Runs the queue that the director is in, and tells how far the run has come.
    fn lead(&self, engine: &mut Engine<'_>, observer: &mut dyn Observer) {
        let mut next = 0;
        let clock = MachineClock(self.machine.platform());
        engine.run(&clock, self.control.ended(), |now, _| {
            if now >= next {
                next = now + time::SECOND;
                observer.progress(Progress {
                    phase: self.control.phase(),
                    now_ms: now / time::MILLISECOND,
                    end_ms: self.timeline.end() / time::MILLISECOND,
                });
            }
        });
    }

    /// Everything but the passes and what the host measured.
    fn report(
        &self,
        policy: &ColumnPolicy,
        contents: &ContentLog,
        driver: &Driver<'_>,
    ) -> ColumnReport {
        let platform = self.machine.platform();
        let events = self.mobility.frames().events();
        let of = |event| events.get(event);
        let stats = driver.stats();
        let (balloon_mean, target_mean) = self.means.means();
        let (messages, moved) = (of(Event::BalloonMigrateMessages), of(Event::BalloonMigrate));
        let control = &self.control;
        // The threads have ended: Relaxed.
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ColumnReport {
            name: self.params.column.name().into(),
            policy: policy.report(),
            mem_total_mib: Tenths::mib_of_frames(mem_total_frames(self.params)),
            elapsed_ms: platform.now() / time::MILLISECOND,
            vmstat: VmStat::since(&[0; Event::COUNT], &events.snapshot()),
            content_errors: contents.errors(),
            host_messages: messages,
            balloon_frames_moved: moved,
            messages_per_frame_moved: TenThousandths::ratio(messages, moved),
            host_messages_total: of(Event::BalloonMessages),
            balloon_lock_refusals: stats.refused,
            pages_moved: of(Event::PgmigrateSuccess),
            targets_hash: self.hash.lock().text(),
            balloon_mean_mib: Tenths::mib_of_frames(balloon_mean),
            balloon_target_mean_mib: Tenths::mib_of_frames(target_mean),
            balloon_max_mib: Tenths::mib_of_frames(self.port.largest()),
            device_errors: self
                .machine
                .balloons()
                .iter()
                .map(|b| b.counters().errors.total())
                .sum(),
            load: LoadReport {
                jobs_started: count(&control.jobs_started),
                jobs_finished: count(&control.jobs_finished),
                waits: count(&control.waits),
                waited_ms: count(&control.waited) / time::MILLISECOND,
                filler_taken: self.filler.taken(),
                filler_given: self.filler.given(),
            },
            ..ColumnReport::default()
        }
    }
}
