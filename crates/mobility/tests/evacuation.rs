//! Evacuation of named blocks: all or nothing, within bounds.

mod machine;

use std::sync::atomic::Ordering;

use dirigible_frames::{
    AllocRequest, BlockState, Event, FrameClass, FrameFlags, FrameState, Migratetype, Pfn,
};
use dirigible_mobility::{CompactResult, CompactionConfig, EvacuateError, Outcome};
use machine::{Answer, CPU, Machine, blocks, machine};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

/// Four blocks: 40 movable frames in the first, 300 in the second, 400 in the others.
fn usual() -> Machine {
    let m = blocks(4);
    m.fill_and_keep(|frame| frame.offset_in_block() < [40, 300, 400, 400][block_number(frame)]);
    m
}

/// The same with balloon frames.
fn ballooned() -> Machine {
    let m = blocks(4);
    m.inflate_and_keep(|frame| frame.offset_in_block() < [40, 300, 400, 400][block_number(frame)]);
    m
}

fn block_number(frame: Pfn) -> usize {
    frame.get() as usize / 512
}

fn evacuate(m: &Machine, number: u32) -> Result<(), EvacuateError> {
    let block = m.block(number);
    let token = m.mobility.evacuate(block)?;
    assert_eq!(m.free_in(block), 512);
    m.frames.unisolate_block(token);
    Ok(())
}

#[test]
fn an_evacuated_block_is_whole_and_nothing_is_lost() {
    let m = usual();
    let used = m.user.count();
    evacuate(&m, 0).unwrap();
    assert_eq!(m.user.count(), used);
    assert_eq!(m.event(Event::PgmigrateSuccess), 40);
    assert_eq!(m.event(Event::CompactBlockEmptied), 1);
    assert_eq!(m.platform.isolated.load(Ordering::Relaxed), 40);
    m.check_at_rest();
}

#[test]
fn pitfall_49_a_refusal_puts_back_what_was_isolated_and_no_more() {
    for refuse in [0, 20, 39] {
        let m = usual();
        let before = m.user.frames();
        m.user.refuse(before[refuse]);
        let refused = Err(EvacuateError::Refused(before[refuse]));
        assert_eq!(evacuate(&m, 0), refused);
        assert_eq!(m.user.frames(), before);
        assert_eq!(m.event(Event::CompactIsolated), refuse as u64);
        assert_eq!(m.event(Event::CompactBlockAborted), 1);
        assert_eq!(
            m.event(Event::PgmigrateSuccess) + m.event(Event::PgmigrateFail),
            0
        );
        assert_eq!(m.frames.ledger(m.block(0)).state(), BlockState::Open);
        m.check_at_rest();
    }
}

#[test]
fn pitfall_66_an_abort_half_way_loses_nothing() {
    let m = usual();
    let used = m.user.count();
    m.user.say((0..40).map(|n| {
        if n == 25 {
            Outcome::Refused
        } else {
            Outcome::Moved
        }
    }));
    let frame = m.user.frames()[25];
    assert_eq!(evacuate(&m, 0), Err(EvacuateError::Refused(frame)));
    assert_eq!((m.user.count(), m.free_in(m.block(0))), (used, 511));
    m.check_at_rest();
    evacuate(&m, 0).unwrap();
    m.check_at_rest();
}

#[test]
fn a_block_given_up_keeps_the_batches_that_were_not_sent() {
    let config = CompactionConfig {
        exchange_batch: 10,
        ..CompactionConfig::default()
    };
    let m = machine(0..4 * 512, config);
    m.inflate_and_keep(|frame| frame.offset_in_block() < [40, 300, 400, 400][block_number(frame)]);
    m.balloon.say([Outcome::Refused]);
    assert!(evacuate(&m, 0).is_err());
    assert_eq!(
        *m.balloon.batches.lock().unwrap(),
        [10],
        "the other 30 stayed"
    );
    assert_eq!(m.event(Event::CompactBalloonReturned), 31);
    assert_eq!(m.event(Event::PgmigrateFail), 1);
    m.check_at_rest();
}

#[test]
fn pitfall_67_a_pinned_frame_holds_its_block() {
    let m = usual();
    let before = m.user.frames();
    m.frames.set_flags(before[7], FrameFlags::PINNED);
    assert_eq!(evacuate(&m, 0), Err(EvacuateError::Unmovable));
    assert_eq!(m.user.frames(), before);
    assert_eq!(
        m.event(Event::CompactIsolated),
        0,
        "seen before anything was isolated"
    );
    m.frames.clear_flags(before[7], FrameFlags::PINNED);
    evacuate(&m, 0).unwrap();
    m.check_at_rest();
}

#[test]
fn a_block_with_what_cannot_move_is_not_begun() {
    let m = usual();
    let unmovable = m.frames.alloc(CPU, AllocRequest::unmovable()).unwrap();
    let block = block_number(unmovable) as u32;
    assert_eq!(evacuate(&m, block), Err(EvacuateError::Unmovable));
    m.frames
        .free(CPU, unmovable, AllocRequest::unmovable().order)
        .unwrap();
    m.frames.drain_cpu_caches();
    evacuate(&m, 0).unwrap();
    let huge = m.take_huge();
    assert_eq!(
        evacuate(&m, block_number(huge) as u32),
        Err(EvacuateError::Unmovable)
    );
    assert_eq!(m.event(Event::CompactBlockAborted), 0);
    m.check();
}

#[test]
fn too_few_targets_are_given_back() {
    let m = blocks(3);
    // 300 free frames in the first block, 100 in each other: 212 used and 200 targets.
    m.fill_and_keep(|frame| frame.offset_in_block() >= [300, 100, 100][block_number(frame)]);
    let free = m.frames.free_frames();
    assert_eq!(evacuate(&m, 0), Err(EvacuateError::NoTargets));
    assert_eq!(
        (m.frames.free_frames(), m.event(Event::CompactIsolated)),
        (free, 0)
    );
    m.check_at_rest();
}

#[test]
fn targets_are_not_taken_from_wholly_free_blocks() {
    let m = blocks(3);
    m.fill_and_keep(|frame| block_number(frame) == 0 && frame.offset_in_block() < 100);
    assert_eq!(evacuate(&m, 0), Err(EvacuateError::NoTargets));
    assert_eq!(m.frames.free_blocks(), 2);
    m.check_at_rest();
}

#[test]
fn pitfall_57_frames_in_cpu_caches_do_not_hold_a_block() {
    let m = usual();
    let freed: Vec<_> = m.user.frames()[..10].to_vec();
    freed.iter().for_each(|&frame| m.user.free(frame));
    assert!(
        freed
            .iter()
            .any(|&frame| m.frames.state(frame) == FrameState::Cached)
    );
    let token = m.mobility.evacuate(m.block(0)).unwrap();
    assert!(
        freed
            .iter()
            .all(|&frame| m.frames.state(frame) == FrameState::Free)
    );
    let head = m.frames.capture_block(token, FrameClass::Movable).unwrap();
    m.frames.free(CPU, head, machine::HUGE).unwrap();
    m.check_at_rest();
}

#[test]
fn pending_pairs_are_waited_for() {
    let m = ballooned();
    m.balloon.say(vec![Outcome::Pending; 40]);
    evacuate(&m, 0).unwrap();
    assert_eq!(m.event(Event::CompactBalloonMigrated), 40);
    m.check_at_rest();
}

/// The caller gets the processor back long after the deadline; the host has answered in time.
#[test]
fn answers_that_were_there_in_time_count_when_the_caller_comes_late() {
    let m = ballooned();
    *m.balloon.answer.lock().unwrap() = Answer::Never;
    m.balloon.say(vec![Outcome::Pending; 40]);
    let balloon = m.balloon;
    let clock = &m.platform.clock;
    let polls = std::sync::atomic::AtomicU64::new(0);
    *balloon.poll_hook.lock().unwrap() = Some(Box::new(move || {
        if polls.fetch_add(1, Ordering::Relaxed) == 0 {
            clock.fetch_add(1 << 40, Ordering::Relaxed);
        } else {
            assert!(balloon.polled_until.load(Ordering::Relaxed) <= clock.load(Ordering::Relaxed));
            *balloon.answer.lock().unwrap() = Answer::Moved;
        }
    }));
    evacuate(&m, 0).unwrap();
    assert_eq!(m.event(Event::CompactBalloonMigrated), 40);
    m.check_at_rest();
}

#[test]
fn a_deadline_ends_the_attempt_and_the_pairs_settle_later() {
    for outcome in [Outcome::Moved, Outcome::Refused, Outcome::Released] {
        let m = ballooned();
        *m.balloon.answer.lock().unwrap() = Answer::Never;
        m.balloon.say(vec![Outcome::Pending; 15]);
        let begun = m.platform.clock.load(Ordering::Relaxed);
        assert_eq!(evacuate(&m, 0), Err(EvacuateError::TimedOut));
        let waited = m.platform.clock.load(Ordering::Relaxed) - begun;
        assert!(
            (50_000_000..51_000_000).contains(&waited),
            "waited {waited} ns"
        );
        assert_eq!(m.frames.ledger(m.block(0)).state(), BlockState::Open);
        assert_eq!(m.mobility.isolated_by_class().balloon, 15);
        m.check();
        // The block is open and lives on; the isolated frames hold it until the answer comes.
        assert!(matches!(evacuate(&m, 0), Err(EvacuateError::UnderWay(_))));
        assert_eq!(m.settle(m.balloon, outcome), 15);
        m.check_at_rest();
        *m.balloon.answer.lock().unwrap() = Answer::Moved;
        let _ = evacuate(&m, 0);
        assert_eq!(m.free_in(m.block(0)), 512);
        m.check_at_rest();
    }
}

#[test]
fn a_pending_pair_that_is_refused_fails_its_block_only() {
    let m = blocks(5);
    m.inflate_and_keep(|frame| {
        frame.offset_in_block() < [40, 30, 400, 400, 400][block_number(frame)]
    });
    *m.balloon.answer.lock().unwrap() = Answer::Refused;
    m.balloon.say([Outcome::Pending]);
    let mut results = Vec::new();
    m.mobility
        .evacuate_many(&[m.block(0), m.block(1)], |block, result| {
            results.push((block, result.is_ok()));
            if let Ok(token) = result {
                m.frames.unisolate_block(token);
            }
        });
    assert_eq!(results, [(m.block(0), false), (m.block(1), true)]);
    m.check_at_rest();
}

#[test]
fn several_blocks_share_one_exchange() {
    let m = blocks(8);
    m.inflate_and_keep(|frame| {
        frame.offset_in_block() < [40, 60, 20, 80, 400, 400, 400, 400][block_number(frame)]
    });
    let batch: Vec<_> = (0..4).map(|number| m.block(number)).collect();
    let mut emptied = 0;
    m.mobility.evacuate_many(&batch, |_, result| {
        m.frames.unisolate_block(result.unwrap());
        emptied += 1;
    });
    assert_eq!(emptied, 4);
    assert_eq!(*m.balloon.batches.lock().unwrap(), [200]);
    m.check_at_rest();
}

#[test]
fn batches_that_do_not_fit_fail_block_by_block() {
    let m = blocks(12);
    m.fill_and_keep(|frame| frame.offset_in_block() < 150);
    let all: Vec<_> = (0..12).map(|number| m.block(number)).collect();
    let mut errors = Vec::new();
    m.mobility.evacuate_many(&all, |_, result| match result {
        Ok(token) => m.frames.unisolate_block(token),
        Err(error) => errors.push(error),
    });
    // Three times 150 fit into the workspace; blocks beyond the eighth are not looked at.
    assert_eq!(errors, vec![EvacuateError::NoRoom; 9]);
    let mut twice = Vec::new();
    m.mobility
        .evacuate_many(&[m.block(5), m.block(5)], |_, result| match result {
            Ok(token) => m.frames.unisolate_block(token),
            Err(error) => twice.push(error),
        });
    assert!(
        matches!(twice[..], [EvacuateError::Isolate(_)]),
        "{twice:?}"
    );
    m.check_at_rest();
}

#[test]
fn compaction_inside_compaction_is_turned_away() {
    let m = usual();
    let (mobility, block) = (m.mobility, m.block(1));
    *m.user.hook.lock().unwrap() = Some(Box::new(move || {
        assert_eq!(
            mobility.compact_direct(CPU, FrameClass::Movable),
            CompactResult::Skipped
        );
        assert_eq!(mobility.evacuate(block).err(), Some(EvacuateError::Busy));
        assert_eq!(
            mobility.evacuate_for(CPU, FrameClass::Unmovable),
            Err(EvacuateError::Busy)
        );
        assert_eq!(mobility.compact_background(CPU, 1).emptied, 0);
    }));
    evacuate(&m, 0).unwrap();
    assert_eq!(m.event(Event::CompactSkipped), 1);
    m.check_at_rest();
}

#[test]
fn evacuate_for_gives_a_block_to_another_type_and_leaves_no_hybrid() {
    let m = usual();
    m.mobility.evacuate_for(CPU, FrameClass::Unmovable).unwrap();
    assert_eq!(
        m.frames.ledger(m.block(0)).migratetype(),
        Migratetype::Unmovable
    );
    assert_eq!(m.event(Event::BlockEvacuated), 1);
    let frame = m.frames.alloc(CPU, AllocRequest::unmovable()).unwrap();
    assert_eq!(m.frames.block_of(frame), Some(m.block(0)));
    assert_eq!(m.frames.hybrid_blocks(), 0);
    m.check_at_rest();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    /// Zones of any shape: targets lie in managed memory outside the block, and the work is bounded.
    #[test]
    fn pitfall_42_43_any_geometry_ends_and_keeps_to_its_zone(
        start in 1u64..1500,
        lengths in proptest::collection::vec((1u64..1400, 0u64..700), 1..4),
        keep in 1u64..7,
    ) {
        let mut ranges = Vec::new();
        let mut at = start;
        for (length, gap) in lengths {
            ranges.push(at..at + length);
            at += length + gap;
        }
        let m = machine::zoned(&[&ranges], CompactionConfig::default());
        m.inflate(200);
        m.fill_and_keep(|frame| frame.get() % keep == 0);
        let mut captured = Vec::new();
        for _ in 0..16 {
            let examined = m.platform.examined.load(Ordering::Relaxed);
            if let CompactResult::Captured(head) = m.direct(FrameClass::Movable) {
                captured.push(head);
            }
            prop_assert!(m.platform.examined.load(Ordering::Relaxed) - examined <= 16 * 32);
        }
        m.check_at_rest();
        for owner in [m.user, m.balloon] {
            for &(from, to) in owner.seen.lock().unwrap().iter() {
                prop_assert!(from.block_base() != to.block_base());
                prop_assert!(ranges.iter().any(|range| range.contains(&to.get())), "{to}");
            }
        }
        for head in captured {
            // Ranges may touch, so a block may lie in two of them.
            let inside = |pfn| ranges.iter().any(|range| range.contains(&pfn));
            prop_assert!((head.get()..head.get() + 512).all(inside));
            m.free_huge(head);
        }
        m.check_at_rest();
    }
}
