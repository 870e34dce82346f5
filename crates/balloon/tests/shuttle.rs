//! Interleavings of calls of the balloon, tried at random:
//! `RUSTFLAGS="--cfg shuttle" cargo test -p dirigible-balloon --features shuttle --test shuttle`.
#![cfg(shuttle)]

mod support;

use std::sync::Arc;

use dirigible_balloon::{BalloonConfig, Deflate, Fault, Step};
use dirigible_frames::{FrameClass, FrameState, Pfn};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Runner, thread};
use support::host::{Host, ISR_CONFIG, Manner, VERSION_1};
use support::{Guest, all_frames, memory, yield_now};

const RUNS: usize = 300;

/// Runs `test` under both schedulers. The frame numbers of a request are on the stack: shuttle's 32 KiB are too few.
fn check(test: fn()) {
    check_often(RUNS, test);
}

/// The same, for rare interleavings.
fn check_often(runs: usize, test: fn()) {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new(runs), config.clone()).run(test);
    Runner::new(PctScheduler::new(3, runs), config).run(test);
}

fn guest() -> Arc<Guest> {
    let config = BalloonConfig {
        deflate: Deflate::NewestFirst,
        ..BalloonConfig::default()
    };
    Arc::new(Guest::with(memory(&[1]), Host::new(), config))
}

fn states(guest: &Guest, state: FrameState) -> usize {
    all_frames(guest.frames)
        .into_iter()
        .filter(|&frame| guest.frames.state(frame) == state)
        .count()
}

/// Steps until the balloon rests, while others are at work.
fn rest(guest: &Guest) -> Step {
    loop {
        match guest.balloon.step(&guest.source, 2) {
            Step::Busy | Step::Waiting => yield_now(),
            step => return step,
        }
    }
}

/// Pitfalls 17 and 23: a frame that is being isolated and one that is being deflated are never the same.
#[test]
fn isolate_against_dequeue() {
    let test = || {
        let guest = guest();
        guest.to(6);
        let frames = guest.listed();
        let isolator = {
            let (guest, frames) = (guest.clone(), frames.clone());
            thread::spawn(move || {
                frames
                    .into_iter()
                    .filter(|&frame| guest.balloon.isolate(frame))
                    .collect::<Vec<_>>()
            })
        };
        guest.host.set_target(0);
        rest(&guest);
        let isolated = isolator.join().unwrap();
        rest(&guest);
        assert_eq!(states(&guest, FrameState::Isolated), isolated.len());
        assert_eq!(guest.host.size(), isolated.len() as u64);
        isolated
            .iter()
            .for_each(|&frame| guest.balloon.putback(frame));
        assert_eq!(rest(&guest), Step::Idle);
        guest.check();
        assert_eq!(guest.host.size(), 0);
    };
    check(test);
}

/// Pitfalls 15 and 41: moves and a deflation of everything, with a host that answers from a thread of its own.
#[test]
fn migrate_against_deflate() {
    let test = || {
        let guest = guest();
        guest.to(8);
        let from = guest.listed()[..4].to_vec();
        let to = guest.targets(4);
        guest.host.set_manner(Manner::OnDemand);
        let device = {
            let guest = guest.clone();
            thread::spawn(move || {
                // Until the host has nothing that the guest has not asked back.
                while guest.host.size() > 0 {
                    if guest.host.answer_one() {
                        guest.balloon.handle_interrupt();
                    } else {
                        yield_now();
                    }
                }
            })
        };
        let mover = {
            let guest = guest.clone();
            thread::spawn(move || {
                let (from, to): (Vec<_>, Vec<_>) = from
                    .into_iter()
                    .zip(to)
                    .filter(|&(from, to)| {
                        let isolated = guest.balloon.isolate(from);
                        if !isolated {
                            guest.free(&[to]);
                        }
                        isolated
                    })
                    .unzip();
                let mut pairs: Vec<_> = from
                    .iter()
                    .zip(&to)
                    .map(|(&from, &to)| MovePair::base(from, to))
                    .collect();
                guest.balloon.migrate(&mut pairs);
                for pair in &pairs {
                    match pair.outcome {
                        Outcome::Moved => guest.free(&[pair.from]),
                        Outcome::Pending => {}
                        other => panic!("{other:?}"),
                    }
                }
                pairs
                    .iter()
                    .filter(|pair| pair.outcome == Outcome::Pending)
                    .count()
            })
        };
        guest.host.set_target(0);
        while guest.host.size() > 0 {
            guest.balloon.step(&guest.source, 2);
            yield_now();
        }
        let pending = mover.join().unwrap();
        device.join().unwrap();
        rest(&guest);
        guest.check();
        assert_eq!(guest.balloon.held().total(), 0);
        // What was pending has moved; the old frames are kept until they are taken.
        assert_eq!(states(&guest, FrameState::Allocated), pending);
        assert_eq!(guest.balloon.pending_pairs(), 0);
        assert_eq!(guest.settled().len(), pending);
    };
    check(test);
}

/// Pitfall 6: a putback while others hold the lock.
#[test]
fn putback_against_everybody() {
    let test = || {
        let guest = guest();
        guest.to(5);
        let frames = guest.listed();
        let movers: Vec<_> = frames
            .chunks(2)
            .map(|mine| {
                let (guest, mine) = (guest.clone(), mine.to_vec());
                thread::spawn(move || {
                    for frame in mine {
                        if guest.balloon.isolate(frame) {
                            guest.balloon.putback(frame);
                            assert_ne!(guest.frames.state(frame), FrameState::Isolated);
                        }
                    }
                })
            })
            .collect();
        guest.host.set_target(2);
        rest(&guest);
        movers.into_iter().for_each(|mover| mover.join().unwrap());
        assert_eq!(rest(&guest), Step::Idle);
        guest.check();
        assert_eq!(states(&guest, FrameState::Listed), 2);
    };
    check(test);
}

/// No answer is overlooked: after the last interrupt nothing that was answered is still under way, though nobody
/// looks at the rings again.
#[test]
fn interrupt_against_worker() {
    let test = || {
        let guest = guest();
        guest.host.set_manner(Manner::OnDemand);
        guest.host.set_target(4);
        let device = {
            let guest = guest.clone();
            thread::spawn(move || {
                while guest.host.size() < 4 {
                    if guest.host.answer_one() {
                        guest.balloon.handle_interrupt();
                    } else {
                        yield_now();
                    }
                }
            })
        };
        guest.balloon.step(&guest.source, 2);
        guest.balloon.step(&guest.source, 2);
        device.join().unwrap();
        assert_eq!(guest.balloon.held().entering, 0);
        assert_eq!(guest.balloon.actual(), 4);
        assert_eq!(guest.host.actual(), 4);
    };
    check(test);
}

/// Pitfalls 7 and 35: removal against isolation, and against a host that changes its mind.
#[test]
fn remove_against_isolate_and_config_change() {
    let test = || {
        let guest = guest();
        guest.to(4);
        let frames = guest.listed();
        let isolator = {
            let guest = guest.clone();
            thread::spawn(move || {
                let isolated: Vec<Pfn> = frames
                    .into_iter()
                    .filter(|&frame| guest.balloon.isolate(frame))
                    .collect();
                yield_now();
                isolated
                    .into_iter()
                    .for_each(|frame| guest.balloon.putback(frame));
            })
        };
        let host = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.host.set_target(9);
                guest.balloon.handle_interrupt();
                guest.balloon.step(&guest.source, 1);
            })
        };
        let end = loop {
            match guest.balloon.shutdown() {
                Err(Fault::StillHeld { .. }) => yield_now(),
                end => break end,
            }
        };
        assert_eq!(end, Ok(()));
        isolator.join().unwrap();
        host.join().unwrap();
        assert_eq!(guest.balloon.held().total(), 0);
        assert_eq!((guest.host.size(), guest.host.actual()), (0, 0));
        assert_eq!(
            guest.balloon.step(&guest.source, 1),
            Step::Failed(Fault::Removed)
        );
        guest.check();
    };
    check(test);
}

/// The line comes down although the device is reset at that moment, and no later call takes it down.
#[test]
fn interrupt_against_reset() {
    let test = || {
        let guest = guest();
        guest.to(4);
        let line = {
            let guest = guest.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    guest.host.inner().isr |= ISR_CONFIG;
                    guest.balloon.handle_interrupt();
                }
            })
        };
        let held = guest.balloon.reset();
        // The other CPU may be freeing some of them.
        let free = guest.frames.free_frames() + guest.frames.cached_frames();
        assert_eq!((held.listed, free), (4, 512));
        line.join().unwrap();
        assert!(!guest.host.line_is_up());
    };
    check(test);
}

/// Two CPUs that move at once, each with a message of its own.
#[test]
fn migrate_against_migrate() {
    let test = || {
        let guest = guest();
        guest.to(6);
        let frames = guest.listed();
        let targets = guest.targets(6);
        let movers: Vec<_> = [0, 3]
            .map(|at| {
                let guest = guest.clone();
                let mut pairs: Vec<_> = frames[at..at + 3]
                    .iter()
                    .zip(&targets[at..at + 3])
                    .map(|(&from, &to)| MovePair::base(from, to))
                    .collect();
                thread::spawn(move || {
                    assert!(pairs.iter().all(|pair| guest.balloon.isolate(pair.from)));
                    guest.balloon.migrate(&mut pairs);
                    pairs
                        .iter()
                        .filter(|pair| pair.outcome == Outcome::Pending)
                        .count()
                })
            })
            .into();
        let pending: usize = movers.into_iter().map(|mover| mover.join().unwrap()).sum();
        // The host answers at once; a pair is pending only while the other mover carries its answer.
        assert_eq!(guest.balloon.held().listed, 6, "{pending} pending");
        assert_eq!(states(&guest, FrameState::Allocated), 6);
        guest.check();
    };
    check(test);
}

/// A bell that was left to another at the transport is rung: nobody calls the balloon afterwards, and still all that
/// was sent is answered and all answers are taken.
#[test]
fn no_bell_is_lost_between_two_at_the_transport() {
    let test = || {
        let guest = guest();
        guest.to(4);
        let from = guest.listed()[0];
        let to = guest.targets(1)[0];
        guest.host.set_target(7);
        let worker = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.balloon.handle_interrupt();
                guest.balloon.step(&guest.source, 2);
            })
        };
        assert!(guest.balloon.isolate(from));
        let mut pairs = [MovePair::base(from, to)];
        guest.balloon.migrate(&mut pairs);
        worker.join().unwrap();
        assert!(guest.host.inner().waiting.is_empty());
        let held = guest.balloon.held();
        assert_eq!((held.isolated, held.entering, held.leaving), (0, 0, 0));
        assert_eq!(guest.balloon.pending_pairs(), 0);
        guest.check();
    };
    check(test);
}

/// A repair by the worker against a move: the pair ends, whatever happens, and no answer of the old device is taken for
/// one of the new.
#[test]
fn migrate_against_repair() {
    let test = || {
        let guest = guest();
        guest.to(6);
        let from = guest.listed()[..2].to_vec();
        let to = guest.targets(2);
        let mover = {
            let guest = guest.clone();
            thread::spawn(move || {
                let mut pairs: Vec<_> = from
                    .iter()
                    .zip(&to)
                    .filter(|&(&from, &to)| {
                        let isolated = guest.balloon.isolate(from);
                        if !isolated {
                            guest.free(&[to]);
                        }
                        isolated
                    })
                    .map(|(&from, &to)| MovePair::base(from, to))
                    .collect();
                guest.balloon.migrate(&mut pairs);
                for pair in &pairs {
                    match pair.outcome {
                        Outcome::Moved => guest.free(&[pair.from]),
                        Outcome::Refused | Outcome::Busy => {
                            guest.balloon.putback(pair.from);
                            guest.free(&[pair.to]);
                        }
                        Outcome::Pending => {}
                        other => panic!("{other:?}"),
                    }
                }
            })
        };
        guest.host.need_reset();
        guest.host.set_manner(Manner::AtOnce);
        guest.balloon.handle_interrupt();
        rest(&guest);
        mover.join().unwrap();
        rest(&guest);
        guest.check();
        assert_eq!(guest.balloon.pending_pairs(), 0);
        assert_eq!(guest.balloon.held().isolated, 0);
        assert_eq!(guest.balloon.fault(), None);
        assert_eq!(guest.balloon.actual(), guest.host.size());
    };
    check(test);
}

/// The worker repairs the device while somebody else ends the balloon: the end stays in force.
fn end_against_repair(end: fn(&Guest)) {
    let guest = guest();
    guest.to(3);
    guest.host.need_reset();
    guest.balloon.handle_interrupt();
    guest.host.set_manner(Manner::AtOnce);
    let worker = {
        let guest = guest.clone();
        thread::spawn(move || guest.balloon.step(&guest.source, 2))
    };
    end(&guest);
    worker.join().unwrap();
    let step = guest.balloon.step(&guest.source, 2);
    assert_eq!(step, Step::Failed(Fault::Removed));
    assert_eq!(guest.balloon.held().total(), 0);
    assert_eq!(guest.host.size(), 0);
    assert_eq!(guest.host.inner().status, 0, "it does not run");
    let free = guest.frames.free_frames() + guest.frames.cached_frames();
    assert_eq!(free, 512);
    guest.check();
}

#[test]
fn shutdown_against_repair() {
    check(|| end_against_repair(|guest| assert_eq!(guest.balloon.shutdown(), Ok(()))));
}

#[test]
fn reset_against_repair() {
    check(|| {
        end_against_repair(|guest| {
            guest.balloon.reset();
        });
    });
}

/// Frames that are reported as back are with the allocator, whoever has taken the answer.
#[test]
fn out_of_memory_against_interrupt() {
    let test = || {
        let config = BalloonConfig {
            deflate: Deflate::NewestFirst,
            deflate_on_oom: true,
            ..BalloonConfig::default()
        };
        let host = Host::offering(VERSION_1 | 1 << 2);
        let guest = Arc::new(Guest::with(memory(&[1]), host, config));
        guest.to(4);
        let free = || guest.frames.free_frames() + guest.frames.cached_frames();
        let before = free();
        let interrupt = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.balloon.handle_interrupt();
                guest.balloon.handle_interrupt();
            })
        };
        assert_eq!(guest.balloon.deflate_on_oom(3), 3);
        assert_eq!(free(), before + 3);
        interrupt.join().unwrap();
        guest.check();
    };
    check(test);
}

/// A deflation that is undone because the device has failed: its frames are back on the list, and unmovable as all of
/// them.
#[test]
fn undone_deflation_against_ledger() {
    let test = || {
        let config = BalloonConfig {
            deflate: Deflate::NewestFirst,
            restart_limit: 0,
            batch: 1,
            ..BalloonConfig::default()
        };
        let guest = Arc::new(Guest::with(memory(&[1]), Host::new(), config));
        guest.to(6);
        guest.host.set_target(1);
        let worker = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.balloon.step(&guest.source, 4);
            })
        };
        // Two CPUs: one sees the device's status, the other looks at the ledger.
        let interrupt = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.host.need_reset();
                guest.balloon.handle_interrupt();
            })
        };
        guest.balloon.handle_interrupt();
        worker.join().unwrap();
        interrupt.join().unwrap();
        guest.balloon.handle_interrupt();
        assert_eq!(guest.balloon.fault(), Some(Fault::NeedsReset));
        let class = FrameClass::Unmovable;
        assert!(
            guest
                .listed()
                .into_iter()
                .all(|at| guest.is_class(at, class))
        );
    };
    check_often(5000, test);
}
