//! Background compaction in steps: it never waits, what it leaves open keeps nobody from anything, and nothing is lost.
#![cfg(not(shuttle))]
#![allow(missing_docs)]

mod machine;

use std::sync::atomic::Ordering;

use dirigible_frames::{Event, FrameClass, Order, Pfn};
use dirigible_mobility::{
    BackgroundResult, BackgroundStep, CompactResult, CompactionConfig, ContiguousRequest,
    EvacuateError, Outcome,
};
use machine::{Answer, CPU, Machine, blocks, machine, zoned};
use proptest::prelude::*;

fn worked(emptied: usize, more: bool) -> BackgroundStep {
    BackgroundStep::Worked(BackgroundResult { emptied, more })
}

/// One step, which does not relax.
fn step(m: &Machine, most: usize) -> BackgroundStep {
    without_relax(m, || m.mobility.background_step(CPU, most))
}

fn abandon(m: &Machine) -> bool {
    without_relax(m, || m.mobility.abandon_background_step(CPU))
}

fn without_relax<R>(m: &Machine, act: impl FnOnce() -> R) -> R {
    let relaxed = || m.platform.relaxed.load(Ordering::Relaxed);
    let before = relaxed();
    let result = act();
    assert_eq!(relaxed(), before, "a step waited");
    result
}

fn pass(m: &Machine, ns: u64) {
    m.platform.clock.fetch_add(ns, Ordering::Relaxed);
}

/// Blocks with balloon frames, none wholly free; the host does not answer.
fn ballooned() -> Machine {
    let m = blocks(8);
    m.inflate_and_keep(|frame| {
        frame.offset_in_block() < [40, 60, 300, 300, 300, 300, 300, 300][frame.get() as usize / 512]
    });
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    *m.balloon.answer.lock().unwrap() = Answer::Never;
    m
}

#[test]
fn steps_do_what_one_call_does() {
    let config = CompactionConfig {
        reserve_low: 3,
        reserve_high: 5,
        ..CompactionConfig::default()
    };
    let prepared = || {
        let m = machine(0..16 * 512, config);
        m.fill_and_keep(|frame| frame.get() % 3 == 0 && frame.offset_in_block() < 200);
        m
    };
    let (one, other) = (prepared(), prepared());
    for most in [1, 2, 8, 8] {
        let result = one.mobility.compact_background(CPU, most);
        let expected = match result {
            BackgroundResult { emptied: 0, .. } => BackgroundStep::Idle,
            _ => BackgroundStep::Worked(result),
        };
        assert_eq!(step(&other, most), expected);
    }
    assert_eq!(one.frames.free_blocks(), 5);
    assert_eq!(one.user.frames(), other.user.frames());
    for event in [
        Event::CompactDaemonWake,
        Event::CompactDaemonMigrated,
        Event::CompactBlockEmptied,
        Event::CompactIsolated,
    ] {
        assert_eq!(one.event(event), other.event(event), "{event:?}");
    }
    other.check_at_rest();
}

#[test]
fn a_step_ends_while_the_host_has_frames() {
    let m = ballooned();
    for _ in 0..3 {
        assert_eq!(step(&m, 1), BackgroundStep::Pending);
        m.check();
        let until = m.balloon.polled_until.load(Ordering::Relaxed);
        assert!(until <= m.platform.clock.load(Ordering::Relaxed));
    }
    assert_eq!(m.mobility.isolated_by_class().balloon, 40);
    assert_eq!(m.settle(m.balloon, Outcome::Moved), 40);
    assert_eq!(step(&m, 1), worked(1, false));
    assert_eq!(m.frames.free_blocks(), 1);
    m.check_at_rest();
    assert_eq!(step(&m, 1), BackgroundStep::Idle);
}

#[test]
fn an_answer_that_is_there_is_taken_in_the_same_step() {
    let m = ballooned();
    *m.balloon.answer.lock().unwrap() = Answer::Moved;
    assert_eq!(step(&m, 1), worked(1, false));
    m.check_at_rest();
}

#[test]
fn a_step_that_comes_late_finds_what_was_answered() {
    let m = ballooned();
    assert_eq!(step(&m, 1), BackgroundStep::Pending);
    pass(&m, 1_000_000_000);
    *m.balloon.answer.lock().unwrap() = Answer::Moved;
    assert_eq!(step(&m, 1), worked(1, false));
    m.check_at_rest();
}

#[test]
fn the_time_ends_a_piece_and_its_pairs_settle_later() {
    for outcome in [Outcome::Moved, Outcome::Refused, Outcome::Released] {
        let m = ballooned();
        assert_eq!(step(&m, 1), BackgroundStep::Pending);
        pass(&m, 51_000_000);
        assert_eq!(step(&m, 1), worked(0, false));
        assert_eq!(m.frames.isolated_blocks(), 0);
        m.check();
        assert_eq!(m.settle(m.balloon, outcome), 40);
        m.check_at_rest();
    }
}

#[test]
fn a_clock_that_stands_still_ends_a_piece_too() {
    let m = machine(
        0..8 * 512,
        CompactionConfig {
            idle_polls: 10,
            ..CompactionConfig::default()
        },
    );
    m.inflate_and_keep(|frame| frame.offset_in_block() < 100);
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    *m.balloon.answer.lock().unwrap() = Answer::Never;
    let steps = (0..20).take_while(|_| step(&m, 1) == BackgroundStep::Pending);
    assert_eq!(steps.count(), 10);
    m.check();
}

#[test]
fn an_open_piece_keeps_nobody_from_compaction() {
    let m = blocks(12);
    while m.inflate(512) == 512 {}
    m.thin(|frame| frame.get() >= 512 || frame.get() >= 40);
    while m.map().is_some() {}
    m.user.frames().iter().for_each(|&frame| {
        let keep = if frame.get() < 512 { 0 } else { 200 };
        if frame.offset_in_block() >= keep {
            m.user.free(frame);
        }
    });
    m.frames.drain_cpu_caches();
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    *m.balloon.answer.lock().unwrap() = Answer::Never;
    assert_eq!(step(&m, 1), BackgroundStep::Pending);
    assert_eq!(m.mobility.isolated_by_class().balloon, 40);
    for _ in 0..2 {
        assert!(matches!(
            m.direct(FrameClass::Movable),
            CompactResult::Captured(_)
        ));
        m.check();
    }
    m.mobility.evacuate_for(CPU, FrameClass::Unmovable).unwrap();
    let token = m.mobility.evacuate(m.block(5)).unwrap();
    m.frames.unisolate_block(token);
    assert_eq!(step(&m, 1), BackgroundStep::Pending);
    m.settle(m.balloon, Outcome::Moved);
    assert!(matches!(step(&m, 1), BackgroundStep::Worked(_)));
    m.check_at_rest();
}

#[test]
fn a_step_inside_of_compaction_does_nothing() {
    let m = ballooned();
    let mobility = m.mobility;
    let inside = |step, abandoned| {
        *m.balloon.hook.lock().unwrap() = Some(Box::new(move || {
            assert_eq!(mobility.background_step(CPU, 1), step);
            assert_eq!(mobility.abandon_background_step(CPU), abandoned);
        }));
    };
    // Inside of a step, and inside of another evacuation while a piece is open.
    inside(BackgroundStep::Idle, false);
    assert_eq!(step(&m, 1), BackgroundStep::Pending);
    inside(BackgroundStep::Pending, false);
    assert!(
        mobility.evacuate(m.block(1)).is_err(),
        "the host does not answer"
    );
    assert_eq!(m.balloon.batches.lock().unwrap().len(), 2);
    *m.balloon.hook.lock().unwrap() = None;
    assert!(abandon(&m));
    m.settle(m.balloon, Outcome::Moved);
    m.check_at_rest();
}

#[test]
fn what_is_open_can_be_given_up() {
    for outcome in [Outcome::Moved, Outcome::Refused, Outcome::Released] {
        let m = ballooned();
        assert!(abandon(&m), "nothing is open");
        m.balloon.room.store(15, Ordering::Relaxed);
        let listed = m.balloon.count();
        assert_eq!(step(&m, 1), BackgroundStep::Pending);
        assert_eq!(m.mobility.isolated_frames(), 40);
        m.check_open();
        assert!(abandon(&m));
        assert_eq!(
            m.balloon.count(),
            listed - 15,
            "what waited for room is back"
        );
        assert_eq!(m.frames.isolated_blocks(), 0);
        m.check();
        assert_eq!(m.settle(m.balloon, outcome), 15);
        m.check_at_rest();
        // And it can begin anew.
        pass(&m, 1_000_000_000);
        m.balloon.room.store(usize::MAX, Ordering::Relaxed);
        *m.balloon.answer.lock().unwrap() = Answer::Moved;
        let begun = (0..3).find(|_| step(&m, 1) == worked(1, false));
        assert!(begun.is_some(), "the failure defers one or two");
        m.check_at_rest();
    }
}

#[test]
fn a_piece_given_up_leaves_its_workspace() {
    let m = ballooned();
    let mut opened = 0;
    while opened < 4 {
        opened += usize::from(step(&m, 1) == BackgroundStep::Pending);
        assert!(abandon(&m));
        m.settle(m.balloon, Outcome::Refused);
        pass(&m, 10_000_000_000);
    }
    *m.balloon.answer.lock().unwrap() = Answer::Moved;
    let token = m.mobility.evacuate(m.block(0)).unwrap();
    m.frames.unisolate_block(token);
    m.check_at_rest();
}

#[derive(Clone, Debug)]
enum Act {
    Step(usize),
    Abandon,
    Background(usize),
    Direct,
    EvacuateFor,
    Evacuate(u32),
    Contiguous(usize),
    Settle(u8),
    /// How the balloon answers from now on: at once, and when it is polled.
    Host(u8, u8),
    /// How many pairs can be pending.
    Room(usize),
    Time(u64),
    Map(u16),
    Inflate(u16),
    Thin(u64),
    FreeHuge,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1usize..5).prop_map(Act::Step),
        1 => Just(Act::Abandon),
        1 => (1usize..5).prop_map(Act::Background),
        3 => Just(Act::Direct),
        1 => Just(Act::EvacuateFor),
        2 => any::<u32>().prop_map(Act::Evacuate),
        1 => (1usize..1500).prop_map(Act::Contiguous),
        3 => any::<u8>().prop_map(Act::Settle),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(now, later)| Act::Host(now, later)),
        2 => prop_oneof![Just(usize::MAX), 0usize..60].prop_map(Act::Room),
        2 => (0u64..60_000_000).prop_map(Act::Time),
        1 => (1u16..600).prop_map(Act::Map),
        1 => (1u16..600).prop_map(Act::Inflate),
        2 => (2u64..6).prop_map(Act::Thin),
        2 => Just(Act::FreeHuge),
    ]
}

const SETTLED: [Outcome; 3] = [Outcome::Moved, Outcome::Refused, Outcome::Released];

fn take(m: &Machine, act: Act) {
    match act {
        Act::Step(most) => {
            if let BackgroundStep::Worked(result) = step(m, most) {
                assert!(result.emptied <= 4);
            }
        }
        Act::Abandon => assert!(abandon(m)),
        Act::Background(most) => {
            assert!(m.mobility.compact_background(CPU, most).emptied <= most);
        }
        Act::Direct => {
            let _ = m.direct(FrameClass::Movable);
        }
        Act::EvacuateFor => {
            let _ = m.mobility.evacuate_for(CPU, FrameClass::Unmovable);
        }
        Act::Evacuate(at) => {
            let blocks: Vec<_> = m.frames.blocks().collect();
            if let Ok(token) = m.mobility.evacuate(blocks[at as usize % blocks.len()]) {
                m.frames.unisolate_block(token);
            }
        }
        Act::Contiguous(frames) => {
            let request = ContiguousRequest::unmovable(frames);
            if let Ok(first) = m.mobility.alloc_contiguous(CPU, request) {
                for at in 0..frames as u64 {
                    m.frames.free(CPU, first.plus(at), Order::BASE).unwrap();
                }
            }
        }
        Act::Settle(kind) => {
            m.settle(m.balloon, SETTLED[usize::from(kind) % 3]);
        }
        Act::Host(now, later) => {
            let at_once = [Outcome::Moved, Outcome::Refused, Outcome::Pending];
            *m.balloon.always.lock().unwrap() = at_once
                .get(usize::from(now) % 6)
                .copied()
                .or(Some(Outcome::Pending));
            *m.balloon.answer.lock().unwrap() = match later % 6 {
                0 => Answer::Moved,
                1 => Answer::Refused,
                2 => Answer::Released,
                _ => Answer::Never,
            };
        }
        Act::Room(pairs) => m.balloon.room.store(pairs, Ordering::Relaxed),
        Act::Time(ns) => pass(m, ns),
        Act::Map(count) => (0..count).for_each(|_| {
            m.map();
        }),
        Act::Inflate(count) => {
            m.inflate(count.into());
        }
        Act::Thin(nth) => m.thin(|frame| frame.get() % nth == 0),
        Act::FreeHuge => {
            let head = m.held.lock().unwrap().first().copied();
            if let Some(head) = head {
                m.free_huge(head);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn steps_among_everything_else_lose_nothing(
        start in 0u64..1200,
        lengths in proptest::collection::vec((600u64..3000, 0u64..900), 1..3),
        (map, inflate, thin) in (1u16..100, 1u16..100, 2u64..5),
        reserve in 0u64..4,
        blocks_per_batch in 1usize..5,
        exchange_batch in prop_oneof![Just(1), Just(16), Just(256)],
        acts in proptest::collection::vec(act(), 1..80),
    ) {
        let config = CompactionConfig {
            reserve_low: reserve,
            reserve_high: 2 * reserve,
            blocks_per_batch,
            exchange_batch,
            budget_blocks: 2,
            idle_polls: 20,
            ..CompactionConfig::default()
        };
        let mut at = start;
        let ranges: Vec<_> = lengths
            .into_iter()
            .map(|(length, gap)| {
                let range = at..at + length;
                at += length + gap;
                range
            })
            .collect();
        let m = zoned(&[&ranges], config);
        while (0..map).filter(|_| m.map().is_some()).count() + m.inflate(inflate.into()) > 0 {}
        m.thin(|frame| frame.get() % thin != 0);
        for act in acts {
            take(&m, act);
            m.check_open();
        }
        prop_assert!(abandon(&m));
        prop_assert_eq!(m.frames.isolated_blocks(), 0);
        m.check();
        m.settle(m.balloon, Outcome::Moved);
        m.check_at_rest();
        let huge: Vec<Pfn> = m.held.lock().unwrap().iter().copied().collect();
        huge.into_iter().for_each(|head| m.free_huge(head));
        m.thin(|_| true);
        m.check_at_rest();
        prop_assert_eq!(m.frames.free_frames(), m.frames.managed_frames());
        let token = m.mobility.evacuate(m.frames.blocks().next().unwrap());
        prop_assert_ne!(token.as_ref().err(), Some(&EvacuateError::Busy), "a workspace is missing");
        if let Ok(token) = token {
            m.frames.unisolate_block(token);
        }
    }
}
