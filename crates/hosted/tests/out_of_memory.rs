//! A guest whose memory ends while a balloon is held: a task goes on with what the balloon gives back.
#![allow(missing_docs)]

mod support;

use dirigible_balloon::{BalloonConfig, Step};
use dirigible_frames::{AllocRequest, Event, Platform};
use dirigible_hosted::{AnswerTime, BalloonOptions, Mode, features, run::run_column};
use dirigible_paging::{OutOfMemory, PageSource};
use dirigible_workload::{
    params::{Column, Params, Profile, Schedule},
    report::ColumnReport,
};
use support::{
    guest::{Guest, MIB, guest},
    machine, stamp, stamp_of,
};

const HELD: u64 = 3000;
/// Frames that one asking takes back.
const RELEASED: u64 = 256;

fn willing() -> BalloonConfig {
    BalloonConfig {
        deflate_on_oom: true,
        ..BalloonConfig::default()
    }
}

fn offering(features: u64, answer_ns: u64) -> BalloonOptions {
    BalloonOptions {
        features,
        answer: AnswerTime::After(answer_ns),
        ..BalloonOptions::default()
    }
}

/// Takes all memory by the way of every task until it ends, and gives how many frames were above what was free. Each of
/// them keeps its contents.
fn take_all(guest: &Guest<'_, '_>) -> u64 {
    let memory = guest.memory;
    let free = guest.frames.free_frames() - 64;
    let request = AllocRequest::movable();
    let mut taken = Vec::new();
    while let Ok(frame) = memory.alloc(request) {
        stamp(guest.machine, frame.get() as u32);
        taken.push(frame);
    }
    assert_eq!(memory.alloc(request), Err(OutOfMemory));
    for &frame in &taken {
        let number = frame.get() as u32;
        assert_eq!(stamp_of(guest.machine, number), Some(frame.get() << 32 | 1));
        assert!(!guest.host().holds(frame), "{frame} is the host's");
    }
    let more = taken.len() as u64 - free;
    taken.into_iter().for_each(|frame| guest.free(frame));
    guest.frames.drain_cpu_caches();
    more
}

#[test]
fn a_task_goes_on_with_what_the_balloon_gives_back() {
    for (mode, answer_ns) in [
        (Mode::Deterministic, 0),
        (Mode::Deterministic, 20_000_000),
        (Mode::Threads, 1_000_000),
    ] {
        let machine = machine(MIB, mode, offering(features::DEFLATE_ON_OOM, answer_ns));
        guest(&machine, willing(), |guest| {
            guest.reach(HELD);
            assert_eq!(take_all(guest), HELD);
            assert_eq!(guest.balloon.stats().oom_deflated, HELD);
            assert_eq!((guest.host().held_frames(), guest.host().actual()), (0, 0));
            // All of it is free again, and still the balloon rests.
            let Step::RetryAt(until) = guest.settle() else {
                panic!("{mode:?}: what was given up in need is taken again");
            };
            assert_eq!(guest.balloon.actual(), 0);
            // Nor do the two chase each other while the need comes and goes.
            for _ in 0..3 {
                assert_eq!(take_all(guest), 0);
                assert!(matches!(guest.settle(), Step::RetryAt(_)));
            }
            let stats = guest.balloon.stats();
            assert_eq!((stats.inflated, stats.deflated), (HELD, HELD));
            if mode == Mode::Deterministic {
                let rest = willing().oom_rest_ns;
                assert!(until > machine.platform().now() + rest / 2, "{until}");
                machine.platform().advance_to(until);
                assert_eq!(guest.settle(), Step::Idle);
                assert_eq!(guest.balloon.actual(), HELD);
            }
            guest.balloon.shutdown().unwrap();
        });
    }
}

#[test]
fn a_balloon_gives_up_no_more_than_is_needed() {
    let options = offering(features::DEFLATE_ON_OOM, 0);
    let machine = machine(MIB, Mode::Deterministic, options);
    guest(&machine, willing(), |guest| {
        guest.reach(HELD);
        let memory = guest.memory;
        let mut taken: Vec<_> = std::iter::from_fn(|| guest.alloc()).collect();
        taken.push(memory.alloc(AllocRequest::movable()).unwrap());
        assert_eq!(guest.balloon.actual(), HELD - RELEASED);
        let huge = memory.alloc(AllocRequest::huge());
        assert_eq!(huge, Err(OutOfMemory));
        assert_eq!(guest.balloon.actual(), HELD - RELEASED);
        taken.into_iter().for_each(|frame| guest.free(frame));
        guest.balloon.shutdown().unwrap();
    });
}

/// What is not wired is not negotiated: without the setting the guest does not accept, and without the offer it cannot.
#[test]
fn a_balloon_that_may_not_deflate_holds_what_was_promised() {
    for (features, config) in [
        (features::DEFLATE_ON_OOM, BalloonConfig::default()),
        (0, willing()),
    ] {
        let machine = machine(MIB, Mode::Deterministic, offering(features, 0));
        guest(&machine, config, |guest| {
            guest.reach(HELD);
            assert_eq!(take_all(guest), 0);
            assert_eq!(guest.balloon.actual(), HELD);
            assert!(guest.frames.events().get(Event::OutOfMemory) > 0);
            guest.balloon.shutdown().unwrap();
        });
    }
}

/// A guest that is too small for its load and its balloon.
fn tight(deflate_on_oom: bool) -> ColumnReport {
    let params = Params {
        memory: 128 << 20,
        balloon: 96 << 20,
        step: 32 << 20,
        time_scale: 200,
        // With swap all of it goes there.
        swap: Some(0),
        // Pages of files make room first: it takes memory that only the balloon can give.
        load_scale: 4000,
        schedule: Schedule::Held,
        deflate_on_oom,
        ..Params::new(Profile::Paper)
    };
    let run = run_column(Column::Steered, &params, &mut ());
    run.expect("books balance").report
}

#[test]
fn the_experiments_guest_asks_its_balloon_only_if_told() {
    let (without, with) = (tight(false), tight(true));
    assert_eq!(without.oom_deflated, 0);
    assert!(with.oom_deflated > 0);
    assert!(
        with.load.waits < without.load.waits,
        "{} waits, {} without",
        with.load.waits,
        without.load.waits
    );
    assert_eq!((with.content_errors, with.device_errors), (0, 0));
}
