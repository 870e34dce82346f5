//! Everything at once, in real time: load, compaction, balloon, device.
#![allow(missing_docs)]

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use dirigible_balloon::{AllocatorSource, BalloonConfig, Step};
use dirigible_frames::{AllocRequest, CpuId, Order, Platform, Watermark};
use dirigible_hosted::Mode;
use dirigible_mobility::{MovePair, Outcome};
use support::{
    guest::{Guest, MIB, audited, guest},
    machine, stamp, stamp_of, wait_until,
};

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
            mobility.drain_settled();
            mobility.isolated_frames() == 0
        });
        balloon.verify().unwrap();
        guest.reach(0);
        assert_eq!(frames.class_frames().balloon, 0);
    });
}
