//! The real driver over the real queues: what it does with devices that answer, answer late, wrongly, or never.
#![allow(missing_docs)]

mod support;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use dirigible_balloon::{BalloonConfig, Fault as DriverFault, Step};
use dirigible_frames::{BalloonPlacement, FrameClass, Order, Platform};
use dirigible_hosted::{BalloonOptions, Fault, FaultPlan, Mode, Request, features};
use dirigible_mobility::MovePair;
use support::{
    guest::{MIB, audited, guest, pending_timeout, whole_blocks},
    machine, stamp, stamp_of, wait_until,
};

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
            guest.mobility.migrate_frames(&mut pairs);
            while guest.mobility.isolated_frames() > 0 {
                machine.platform().relax();
                guest.balloon.handle_interrupt();
                guest.mobility.drain_settled();
            }
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
            let beyond = pending_timeout(mode) * 3 / 2;
            // Beyond it: the attempt fails, the answers come later.
            guest
                .host()
                .set_fault(Some(FaultPlan::always(Fault::Delay(beyond))));
            assert!(guest.mobility.evacuate(blocks[1]).is_err());
            let start = Instant::now();
            while guest.mobility.isolated_frames() > 0 {
                assert!(
                    start.elapsed() < Duration::from_secs(30),
                    "pairs that never settle"
                );
                machine.platform().relax();
                guest.balloon.handle_interrupt();
                guest.mobility.drain_settled();
                guest.mobility.drain_settled();
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
                machine.platform().relax();
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
