//! The real driver over the real queues: allocator, compaction, balloon and device together, in one thread and in many.
#![allow(missing_docs)]

mod support;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use dirigible_balloon::{
    AllocatorSource, BalloonConfig, Fault as DriverFault, Step, VirtioBalloon,
};
use dirigible_frames::{
    AllocRequest, BalloonPlacement, BlockId, Config, CpuId, Fallback, FrameAllocator, FrameClass,
    Order, OwnerClass, Pfn, Placement, Platform, Watermark, Watermarks, ZoneConfig,
};
use dirigible_hosted::{
    BalloonOptions, Fault, FaultPlan, HostBalloon, HostedHal, HostedMachine, HostedPlatform,
    InProcessTransport, Mode, Request, features,
};
use dirigible_mobility::{CompactionConfig, Mobility, MovePair, Outcome};
use support::{first_frame, machine, stamp, stamp_of, wait_until};

const BALLOON: OwnerClass = OwnerClass::new(7).unwrap();
const MIB: u64 = 64;

type Balloon<'a> = VirtioBalloon<'a, HostedHal, InProcessTransport, HostedPlatform>;

/// Everything that a running guest has but its load.
struct Guest<'a> {
    machine: &'a HostedMachine,
    frames: &'a FrameAllocator<'a>,
    mobility: &'a Mobility<'a, HostedPlatform>,
    balloon: &'a Balloon<'a>,
    source: AllocatorSource<'a, HostedPlatform>,
}

/// Builds a guest on `machine`, runs `work` in it as CPU 0, and checks all books at the end.
fn guest(machine: &HostedMachine, config: BalloonConfig, work: impl FnOnce(&Guest<'_>)) {
    let platform = machine.platform();
    let _binding = platform.bind_cpu(CpuId::new(0)).unwrap();
    let layout = machine.ram().layout();
    let zones = [ZoneConfig {
        name: "Normal",
        ranges: layout.regions(),
        watermarks: Watermarks {
            min: 64,
            low: 128,
            high: 256,
        },
        reserve_blocks: 0,
    }];
    let config_frames = Config {
        zones: &zones,
        reserved: &[layout.reserved()],
        cpus: platform.cpus(),
        placement: Placement::FullestFirst,
        fallback: Fallback::Evacuate,
    };
    let metadata = machine.ram().metadata_slice().unwrap();
    assert!(FrameAllocator::metadata_bytes(&config_frames).unwrap() <= metadata.len());
    let frames = FrameAllocator::new(&config_frames, metadata).unwrap();
    assert_eq!(frames.managed_frames(), layout.managed_frames());
    let mobility = Mobility::new(&frames, platform, CompactionConfig::default());
    let transport = machine.balloons()[0].transport().unwrap();
    let balloon = Balloon::new(transport, &frames, platform, &mobility, BALLOON, config).unwrap();
    mobility.register(BALLOON, &balloon).unwrap();
    let source = AllocatorSource {
        frames: &frames,
        platform,
        watermark: Watermark::Low,
    };
    work(&Guest {
        machine,
        frames: &frames,
        mobility: &mobility,
        balloon: &balloon,
        source,
    });
    frames.drain_cpu_caches();
    frames.verify().unwrap();
    mobility.verify().unwrap();
    assert_eq!(machine.balloons()[0].counters().errors.total(), 0);
}

impl Guest<'_> {
    fn host(&self) -> &HostBalloon {
        &self.machine.balloons()[0]
    }

    /// Lets the balloon work until it has its target or cannot go on before the device or time does.
    fn settle(&self) -> Step {
        loop {
            match self.balloon.step(&self.source, 16) {
                Step::Busy => {}
                Step::Waiting => {
                    self.machine.platform().relax();
                    self.balloon.handle_interrupt();
                }
                step => return step,
            }
        }
    }

    /// Sets a target and waits until the balloon has it.
    fn reach(&self, frames: u64) {
        self.host().set_target(frames).unwrap();
        assert_eq!(self.settle(), Step::Idle);
        assert_eq!(self.balloon.actual(), frames);
        assert_eq!(self.host().actual(), frames);
        assert_eq!(self.host().held_frames(), frames);
    }

    fn alloc(&self) -> Option<Pfn> {
        self.frames
            .alloc(self.machine.platform().cpu(), AllocRequest::movable())
            .ok()
    }

    fn free(&self, frame: Pfn) {
        self.frames
            .free(self.machine.platform().cpu(), frame, Order::BASE)
            .unwrap();
    }

    /// Every frame that can be had, then every second one of the lower `blocks` blocks' free again: holes to move to.
    fn make_holes(&self, blocks: usize) -> Vec<Pfn> {
        let mut held: Vec<Pfn> = core::iter::from_fn(|| self.alloc()).collect();
        held.sort_unstable();
        let end = Pfn::new(first_frame(self.machine)).plus(blocks as u64 * 512);
        let (low, high): (Vec<_>, Vec<_>) = held.into_iter().partition(|&frame| frame < end);
        let (kept, freed): (Vec<_>, Vec<_>) =
            low.into_iter().partition(|frame| frame.get() % 2 == 0);
        freed
            .into_iter()
            .chain(high)
            .for_each(|frame| self.free(frame));
        self.frames.drain_cpu_caches();
        kept
    }

    /// Blocks with at least `least` balloon frames.
    fn balloon_blocks(&self, least: u16) -> Vec<BlockId> {
        self.frames
            .blocks()
            .filter(|&block| self.frames.ledger(block).balloon() >= least)
            .collect()
    }
}

fn whole_blocks() -> BalloonConfig {
    BalloonConfig {
        placement: BalloonPlacement::WholeBlocks,
        ..BalloonConfig::default()
    }
}

fn audited() -> BalloonOptions {
    BalloonOptions {
        audit: true,
        ..BalloonOptions::default()
    }
}

#[test]
fn the_balloon_grows_and_shrinks_and_the_host_sees_it() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        for placement in [BalloonPlacement::FillHoles, BalloonPlacement::WholeBlocks] {
            let machine = machine(MIB, mode, audited());
            machine.ram().touch_all();
            let all = machine.ram().resident_frames().unwrap();
            let config = BalloonConfig {
                placement,
                ..BalloonConfig::default()
            };
            guest(&machine, config, |guest| {
                let frame = guest.alloc().unwrap();
                stamp(&machine, frame.get() as u32);
                for frames in [4096, 5000, 1024, 8000, 0] {
                    let before = guest.host().counters().inflated;
                    guest.reach(frames);
                    let grown = guest.host().counters().inflated - before;
                    // What came back is resident again when it is touched, not before.
                    let resident = machine.ram().resident_frames().unwrap();
                    assert!(
                        resident <= all - frames,
                        "{resident} of {all} with {frames} given"
                    );
                    if before == 0 {
                        assert_eq!((resident, grown), (all - frames, frames));
                    }
                }
                assert!(stamp_of(&machine, frame.get() as u32).unwrap() != 0);
                guest.balloon.shutdown().unwrap();
            });
        }
    }
}

#[test]
fn an_exchange_takes_two_messages_for_a_batch() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine(MIB, mode, audited());
        guest(&machine, whole_blocks(), |guest| {
            let held = guest.make_holes(10);
            guest.reach(4 * 512);
            let blocks = guest.balloon_blocks(512);
            assert_eq!(blocks.len(), 4);
            let before = guest.host().messages();
            for &block in &blocks {
                let isolated = guest.mobility.evacuate(block).unwrap();
                let cpu = machine.platform().cpu();
                let huge = guest
                    .frames
                    .capture_block(isolated, FrameClass::Movable)
                    .unwrap();
                // The host gave these back: they can be used, and read zero until they are.
                assert_eq!(stamp_of(&machine, huge.get() as u32), Some(0));
                stamp(&machine, huge.get() as u32);
                guest.frames.free(cpu, huge, Order::HUGE).unwrap();
            }
            assert_eq!(guest.host().messages() - before, 4 * 2 * 2);
            assert_eq!(guest.host().held_frames(), 4 * 512);
            assert_eq!(guest.balloon.stats().frames_moved, 4 * 512);
            assert_eq!(guest.mobility.isolated_frames(), 0);
            held.into_iter().for_each(|frame| guest.free(frame));
            guest.reach(0);
        });
    }
}

#[test]
fn a_balloon_frame_moves_a_thousand_times() {
    let machine = machine(MIB, Mode::Deterministic, audited());
    guest(&machine, BalloonConfig::default(), |guest| {
        guest.reach(1);
        let block = guest.balloon_blocks(1)[0];
        let mut frame = guest
            .frames
            .used_frames(block)
            .find(|&frame| guest.host().holds(frame))
            .expect("the balloon's frame");
        let mut places = BTreeSet::new();
        for _ in 0..1000 {
            places.insert(frame);
            let target = guest.alloc().unwrap();
            assert!(guest.mobility.isolate(frame));
            let mut pairs = [MovePair::base(frame, target)];
            assert_eq!(guest.mobility.migrate_frames(&mut pairs).moved, 1);
            assert!(guest.host().holds(target) && !guest.host().holds(frame));
            frame = target;
        }
        assert!(places.len() > 1);
        assert_eq!(guest.host().held_frames(), 1);
        assert_eq!(guest.balloon.stats().frames_moved, 1000);
        guest.reach(0);
    });
}

#[test]
fn a_device_that_never_answers_ends_in_a_clean_error() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine(MIB, mode, BalloonOptions::default());
        let config = BalloonConfig {
            request_timeout_ns: 1_000_000_000,
            shutdown_timeout_ns: 1_500_000_000,
            ..BalloonConfig::default()
        };
        guest(&machine, config, |guest| {
            guest.reach(300);
            guest
                .host()
                .set_fault(Some(FaultPlan::always(Fault::Silent)));
            guest.host().set_target(1000).unwrap();
            let start = Instant::now();
            let step = guest.settle();
            assert!(
                matches!(step, Step::Failed(DriverFault::Silent { .. })),
                "{step:?}"
            );
            // What the host was told of is still held, by both books.
            let held = guest.balloon.held();
            assert_eq!(held.total(), guest.host().held_frames());
            assert!(held.entering > 0);
            let error = guest.balloon.shutdown().unwrap_err();
            assert!(!error.to_string().is_empty());
            assert!(start.elapsed() < Duration::from_secs(30));
            let left = guest.balloon.reset();
            assert_eq!(left.total(), held.total());
        });
    }
}

#[test]
fn an_exchange_with_a_silent_device_fails_in_bounded_time_and_loses_nothing() {
    for (mode, request) in [
        (Mode::Deterministic, Request::Inflate),
        (Mode::Deterministic, Request::Deflate),
        (Mode::Threads, Request::Inflate),
        (Mode::Threads, Request::Deflate),
    ] {
        let machine = machine(MIB, mode, BalloonOptions::default());
        guest(&machine, whole_blocks(), |guest| {
            let held = guest.make_holes(8);
            guest.reach(512);
            let block = guest.balloon_blocks(512)[0];
            guest
                .host()
                .set_fault(Some(FaultPlan::always(Fault::Silent).on(request)));
            let start = Instant::now();
            assert!(guest.mobility.evacuate(block).is_err());
            assert!(start.elapsed() < Duration::from_secs(10));
            // The frames are where they were or on their way; none is lost, none is used twice.
            let books = guest.balloon.held();
            assert_eq!(
                guest.host().held_frames(),
                books.total()
                    - match request {
                        Request::Inflate => 0,
                        // The device carried the requests out; only its answers are missing.
                        Request::Deflate => books.leaving,
                    }
            );
            held.into_iter().for_each(|frame| guest.free(frame));
            guest.balloon.reset();
        });
    }
}

#[test]
fn delayed_answers_settle_what_was_pending() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine(MIB, mode, audited());
        guest(&machine, whole_blocks(), |guest| {
            let held = guest.make_holes(8);
            guest.reach(1024);
            guest
                .host()
                .set_fault(Some(FaultPlan::always(Fault::Delay(2_000_000))));
            // Well within what an evacuation waits for.
            let blocks = guest.balloon_blocks(512);
            let isolated = guest.mobility.evacuate(blocks[0]).unwrap();
            guest.frames.unisolate_block(isolated);
            // Beyond it: the attempt fails, the answers come later.
            guest
                .host()
                .set_fault(Some(FaultPlan::always(Fault::Delay(80_000_000))));
            assert!(guest.mobility.evacuate(blocks[1]).is_err());
            let start = Instant::now();
            while guest.mobility.isolated_frames() > 0 {
                assert!(
                    start.elapsed() < Duration::from_secs(30),
                    "pairs that never settle"
                );
                machine.platform().relax();
                guest.balloon.handle_interrupt();
            }
            guest.host().set_fault(None);
            assert_eq!(guest.host().held_frames(), 1024);
            assert_eq!(guest.balloon.held().listed, 1024);
            held.into_iter().for_each(|frame| guest.free(frame));
            guest.reach(0);
        });
    }
}

#[test]
fn a_device_that_answers_twice_or_wrongly_is_found_out() {
    for fault in [Fault::Twice, Fault::WrongId(3), Fault::WrongId(u32::MAX)] {
        for mode in [Mode::Deterministic, Mode::Threads] {
            let machine = machine(MIB, mode, BalloonOptions::default());
            let config = BalloonConfig {
                // Long enough for an honest device on a busy host.
                request_timeout_ns: 1_000_000_000,
                ..BalloonConfig::default()
            };
            guest(&machine, config, |guest| {
                guest.reach(512);
                guest.host().set_fault(Some(FaultPlan::always(fault)));
                let mut worst = Step::Idle;
                for target in [2048, 0, 3000] {
                    guest.host().set_target(target).unwrap();
                    if let step @ Step::Failed(_) = guest.settle() {
                        worst = step;
                    }
                }
                assert!(matches!(worst, Step::Failed(_)), "{fault:?} went unnoticed");
                assert!(guest.balloon.stats().protocol_errors > 0 || worst != Step::Idle);
                guest.balloon.reset();
            });
        }
    }
}

#[test]
fn a_target_above_memory_takes_what_there_is_and_no_more() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let machine = machine(MIB, mode, audited());
        guest(&machine, BalloonConfig::default(), |guest| {
            let frame = guest.alloc().unwrap();
            stamp(&machine, frame.get() as u32);
            guest.host().set_target_unchecked(u32::MAX);
            let step = guest.settle();
            assert!(matches!(step, Step::RetryAt(_)), "{step:?}");
            assert!(guest.balloon.stats().targets_clamped > 0);
            let free = guest.frames.free_frames() + guest.frames.cached_frames();
            assert!(free >= 64, "below the watermark: {free}");
            // The last requests may still be on their way.
            wait_until("the last answers", || {
                guest.balloon.handle_interrupt();
                guest.balloon.held().entering == 0
            });
            assert_eq!(guest.balloon.actual(), guest.host().held_frames());
            assert!(stamp_of(&machine, frame.get() as u32).unwrap() != 0);
            guest.reach(0);
        });
    }
}

#[test]
fn statistics_are_reported_on_request() {
    for mode in [Mode::Deterministic, Mode::Threads] {
        let options = BalloonOptions {
            features: features::STATS_VQ,
            ..BalloonOptions::default()
        };
        let machine = machine(MIB, mode, options);
        guest(&machine, BalloonConfig::default(), |guest| {
            let host = guest.host();
            wait_until("the first report", || host.statistics().reports == 1);
            guest.reach(1000);
            host.request_statistics();
            wait_until("the second report", || {
                guest.balloon.handle_interrupt();
                host.statistics().reports == 2
            });
            // MemFree.
            let free = host.statistics().values[&4];
            assert!(free <= (machine.ram().layout().managed_frames() - 1000) * 4096);
        });
    }
}

/// Load, compaction and balloon on a CPU each: no content is lost, no book is wrong.
#[test]
fn load_compaction_and_balloon_run_side_by_side() {
    let machine = machine(MIB, Mode::Threads, audited());
    let run_for = Duration::from_secs(4);
    guest(&machine, BalloonConfig::default(), |guest| {
        let over = AtomicBool::new(false);
        let platform = machine.platform();
        let Guest {
            frames,
            mobility,
            balloon,
            ..
        } = *guest;
        std::thread::scope(|scope| {
            // Two CPUs of load: single frames, taken, stamped, checked, given back.
            for cpu in 1..3 {
                let (over, machine) = (&over, &machine);
                scope.spawn(move || {
                    let _binding = platform.bind_cpu(CpuId::new(cpu)).unwrap();
                    let cpu = platform.cpu();
                    let mut held = Vec::new();
                    let mut round = 0u64;
                    while !over.load(Ordering::Relaxed) {
                        round += 1;
                        match frames.alloc(cpu, AllocRequest::movable()) {
                            Ok(frame) if held.len() < 3000 => {
                                stamp(machine, frame.get() as u32);
                                held.push(frame);
                            }
                            other => {
                                if let Ok(frame) = other {
                                    frames.free(cpu, frame, Order::BASE).unwrap();
                                }
                                for _ in 0..held.len().min(500) {
                                    let at =
                                        (round as usize).wrapping_mul(2_654_435_761) % held.len();
                                    round += 1;
                                    let frame = held.swap_remove(at);
                                    let number = frame.get() as u32;
                                    let expected = u64::from(number) << 32 | 1;
                                    assert_eq!(stamp_of(machine, number), Some(expected));
                                    frames.free(cpu, frame, Order::BASE).unwrap();
                                }
                                platform.relax();
                            }
                        }
                    }
                    for frame in held {
                        let number = frame.get() as u32;
                        assert_eq!(stamp_of(machine, number), Some(u64::from(number) << 32 | 1));
                        frames.free(cpu, frame, Order::BASE).unwrap();
                    }
                });
            }
            // Compaction: single balloon frames to anywhere, and whole blocks.
            let over_there = &over;
            scope.spawn(move || {
                let _binding = platform.bind_cpu(CpuId::new(3)).unwrap();
                let cpu = platform.cpu();
                while !over_there.load(Ordering::Relaxed) {
                    for block in frames.blocks() {
                        if frames.ledger(block).balloon() == 0 {
                            continue;
                        }
                        if let Ok(isolated) = mobility.evacuate(block) {
                            frames.unisolate_block(isolated);
                        }
                        let found = frames
                            .used_frames(block)
                            .find(|&frame| mobility.isolate(frame));
                        let Some(frame) = found else { continue };
                        match frames.alloc(cpu, AllocRequest::movable()) {
                            Ok(target) => {
                                let mut pairs = [MovePair::base(frame, target)];
                                mobility.migrate_frames(&mut pairs);
                                assert_ne!(pairs[0].outcome, Outcome::Todo);
                            }
                            Err(_) => mobility.putback_movable_frames(&[frame]),
                        }
                    }
                    platform.relax();
                }
            });
            // The balloon, up and down.
            let source = AllocatorSource {
                frames,
                platform,
                watermark: Watermark::Low,
            };
            let start = Instant::now();
            let mut target = 0;
            while start.elapsed() < run_for {
                target = (target + 1777) % 6000;
                guest.host().set_target(target).unwrap();
                let phase = Instant::now();
                while phase.elapsed() < Duration::from_millis(40) {
                    match balloon.step(&source, 4) {
                        Step::Failed(fault) => panic!("{fault}"),
                        Step::Busy => {}
                        _ => {
                            platform.relax();
                            balloon.handle_interrupt();
                        }
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        let moved = balloon.stats().frames_moved;
        assert!(moved > 0, "nothing was ever moved");
        wait_until("pending pairs", || {
            balloon.handle_interrupt();
            mobility.isolated_frames() == 0
        });
        balloon.verify().unwrap();
        guest.reach(0);
        assert_eq!(frames.class_frames().balloon, 0);
    });
}
