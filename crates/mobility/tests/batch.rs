//! Several blocks together: each succeeds or fails as it would alone, and what is set aside meanwhile is not missed.
#![cfg(not(shuttle))]
#![allow(missing_docs)]

mod machine;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dirigible_frames::{
    AllocRequest, Event, FrameFlags, FrameState, Order, Pfn, Watermark, Watermarks, ZoneId,
};
use dirigible_mobility::{CompactionConfig, EvacuateError, Outcome};
use machine::{Answer, CPU, Machine, blocks, machine};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

const ZONE: ZoneId = ZoneId::new(0);

/// What stands in the way of one block, at the nth of its used frames.
#[derive(Clone, Copy, Debug)]
enum Obstacle {
    Nothing,
    Pinned(usize),
    /// Handed out and on nobody's books.
    UnderWay(usize),
    /// Its owner does not give it up.
    Kept(usize),
    /// Its owner takes it off the books and then cannot move it.
    Stays(usize),
    /// The same, answered later.
    StaysLater(usize),
    /// Its owner gives it up and frees it.
    Released(usize),
}

fn obstacles() -> impl Strategy<Value = Vec<(Obstacle, usize)>> {
    let at = 0usize..60;
    let obstacle = prop_oneof![
        3 => Just(Obstacle::Nothing),
        1 => at.clone().prop_map(Obstacle::Pinned),
        1 => at.clone().prop_map(Obstacle::UnderWay),
        1 => at.clone().prop_map(Obstacle::Kept),
        1 => at.clone().prop_map(Obstacle::Stays),
        1 => at.clone().prop_map(Obstacle::StaysLater),
        1 => at.prop_map(Obstacle::Released),
    ];
    proptest::collection::vec((obstacle, 1usize..60), 1..=8)
}

/// Blocks as the plan says, and 16 more with room.
fn prepared(plan: &[(Obstacle, usize)]) -> Machine {
    let m = blocks(plan.len() as u64 + 16);
    m.fill_and_keep(|frame| {
        let block = frame.get() as usize / 512;
        frame.offset_in_block() < plan.get(block).map_or(300, |&(_, used)| used)
    });
    let mut answers = BTreeMap::new();
    for (block, &(obstacle, used)) in plan.iter().enumerate() {
        let frame = |at: usize| Pfn::new((block * 512 + at % used) as u64);
        match obstacle {
            Obstacle::Nothing => {}
            Obstacle::Pinned(at) => assert!(m.frames.set_flags(frame(at), FrameFlags::PINNED)),
            Obstacle::UnderWay(at) => {
                m.user.books.lock().unwrap().remove(&frame(at));
                m.frames
                    .transition(frame(at), FrameState::Listed, FrameState::Allocated)
                    .unwrap();
            }
            Obstacle::Kept(at) => m.user.refuse(frame(at)),
            Obstacle::Stays(at) => drop(answers.insert(frame(at), Outcome::Refused)),
            Obstacle::StaysLater(at) => drop(answers.insert(frame(at), Outcome::Pending)),
            Obstacle::Released(at) => drop(answers.insert(frame(at), Outcome::Released)),
        }
    }
    *m.user.answers.lock().unwrap() = answers;
    *m.user.answer.lock().unwrap() = Answer::Refused;
    m
}

/// Puts everything back to where `check` expects it.
fn clear(m: &Machine, plan: &[(Obstacle, usize)]) {
    for (block, &(obstacle, used)) in plan.iter().enumerate() {
        if let Obstacle::UnderWay(at) = obstacle {
            let frame = Pfn::new((block * 512 + at % used) as u64);
            m.user.list(frame);
        }
    }
    m.check_at_rest();
}

/// Whether each block was emptied, and the error's kind if not.
fn outcome(
    result: &Result<dirigible_frames::IsolatedBlock, EvacuateError>,
) -> Option<std::mem::Discriminant<EvacuateError>> {
    result.as_ref().err().map(std::mem::discriminant)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn a_batch_is_as_good_as_its_blocks_alone(plan in obstacles()) {
        let together = prepared(&plan);
        let all: Vec<_> = (0..plan.len() as u32).map(|n| together.block(n)).collect();
        let mut batch = Vec::new();
        let mut tokens = Vec::new();
        together.mobility.evacuate_many(&all, |_, result| {
            batch.push(outcome(&result));
            tokens.extend(result);
        });
        // Nothing was moved out of a block that was refused before anything of it moved.
        for (block, &(obstacle, used)) in plan.iter().enumerate() {
            if matches!(obstacle, Obstacle::Pinned(_) | Obstacle::UnderWay(_) | Obstacle::Kept(_)) {
                // Others may have come to it: a block with a pinned frame is filled first.
                let first = (block * 512) as u64;
                let stayed = (first..first + used as u64)
                    .all(|frame| together.frames.state(Pfn::new(frame)) != FrameState::Free);
                prop_assert!(stayed, "block {}", block);
            }
        }
        tokens.into_iter().for_each(|token| together.frames.unisolate_block(token));
        clear(&together, &plan);

        let alone = prepared(&plan);
        let mut singly = Vec::new();
        let mut tokens = Vec::new();
        for block in 0..plan.len() as u32 {
            let result = alone.mobility.evacuate(alone.block(block));
            singly.push(outcome(&result));
            tokens.extend(result);
        }
        tokens.into_iter().for_each(|token| alone.frames.unisolate_block(token));
        clear(&alone, &plan);
        prop_assert_eq!(batch, singly, "{:?}", plan);
    }
}

#[test]
fn a_block_refused_half_way_leaves_the_next_one_of_its_batch_alone() {
    let m = blocks(6);
    m.fill_and_keep(|frame| {
        let keep = [40, 60, 300, 300, 300, 300][frame.get() as usize / 512];
        frame.offset_in_block() < keep
    });
    let frame = Pfn::new(20);
    m.user.books.lock().unwrap().remove(&frame);
    m.frames
        .transition(frame, FrameState::Listed, FrameState::Allocated)
        .unwrap();
    let mut results = Vec::new();
    m.mobility
        .evacuate_many(&[m.block(0), m.block(1)], |_, result| match result {
            Ok(token) => {
                m.frames.unisolate_block(token);
                results.push(None);
            }
            Err(error) => results.push(Some(error)),
        });
    assert_eq!(results, [Some(EvacuateError::UnderWay(frame)), None]);
    assert_eq!(m.event(Event::PgmigrateSuccess), 60, "all of them in use");
    m.user.list(frame);
    m.check_at_rest();
}

/// What a request at `Min` meets while frames are being moved: the lowest count of free frames, and how many failed.
fn watched(m: &Machine) -> Arc<Mutex<(u64, usize)>> {
    let seen = Arc::new(Mutex::new((u64::MAX, 0)));
    let (frames, inside) = (m.frames, Arc::clone(&seen));
    *m.user.hook.lock().unwrap() = Some(Box::new(move || {
        let mut seen = inside.lock().unwrap();
        seen.0 = seen.0.min(frames.zone_free_frames(ZONE));
        let request = AllocRequest::movable().with_watermark(Watermark::Min);
        match frames.alloc(CPU, request) {
            Ok(frame) => frames.free(CPU, frame, Order::BASE).unwrap(),
            Err(_) => seen.1 += 1,
        }
        // Else the next request has what this one left in the CPU's cache, whatever the watermark says.
        frames.drain_cpu_caches();
    }));
    seen
}

/// 64 blocks, four of them with much room; about 3,000 frames are free in all.
fn nearly_full(marks: Watermarks) -> Machine {
    let config = CompactionConfig {
        reserve_low: 4,
        reserve_high: 8,
        ..CompactionConfig::default()
    };
    let m = machine(0..64 * 512, config);
    m.fill_and_keep(|frame| {
        frame.offset_in_block() < if frame.get() < 4 * 512 { 100 } else { 490 }
    });
    m.frames.set_watermarks(ZONE, marks);
    m
}

#[test]
fn background_compaction_leaves_the_low_watermark_to_others() {
    let marks = Watermarks {
        min: 2048,
        low: 2304,
        high: 2560,
    };
    let m = nearly_full(marks);
    assert_eq!(m.frames.zone_free_frames(ZONE), 4 * 412 + 60 * 22);
    let seen = watched(&m);
    let result = m.mobility.compact_background(CPU, 4);
    let (lowest, failed) = *seen.lock().unwrap();
    assert!(result.emptied > 0, "there is room for a block at a time");
    assert!(lowest >= marks.low, "{lowest} frames were free");
    assert_eq!(failed, 0);
    m.check_at_rest();
}

#[test]
fn a_kernel_requests_evacuation_leaves_the_low_watermark_to_others() {
    for (min, goes) in [(2048, true), (2900, false)] {
        let marks = Watermarks {
            min,
            low: min + 256,
            high: min + 512,
        };
        let m = nearly_full(marks);
        let seen = watched(&m);
        let result = m
            .mobility
            .evacuate_for(CPU, dirigible_frames::FrameClass::Unmovable);
        assert_eq!(result.is_ok(), goes, "{result:?}");
        let (lowest, failed) = *seen.lock().unwrap();
        assert!(lowest >= marks.low, "{lowest} frames were free");
        assert_eq!(failed, 0);
        m.check_at_rest();
    }
}

#[test]
fn direct_compaction_sets_no_more_aside_than_the_huge_page_takes() {
    let marks = Watermarks {
        min: 2400,
        low: 2500,
        high: 2600,
    };
    let m = nearly_full(marks);
    let seen = watched(&m);
    let captured = m.direct(dirigible_frames::FrameClass::Movable);
    assert!(matches!(
        captured,
        dirigible_mobility::CompactResult::Captured(_)
    ));
    let (lowest, _) = *seen.lock().unwrap();
    assert_eq!(lowest, 4 * 412 + 60 * 22 - 512);
    m.check_at_rest();
}

#[test]
fn an_owner_without_room_gets_its_pairs_again_when_it_has_answered() {
    let m = blocks(8);
    m.inflate_and_keep(|frame| frame.offset_in_block() < 300);
    m.balloon.room.store(100, Ordering::Relaxed);
    // Everything is pending until the owner is polled, and more than a hundred at a time have no room.
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    let token = m.mobility.evacuate(m.block(0)).unwrap();
    m.frames.unisolate_block(token);
    assert_eq!(m.event(Event::CompactBalloonMigrated), 300);
    assert_eq!(m.event(Event::PgmigrateFail), 0);
    assert_eq!(m.event(Event::CompactBlockAborted), 0);
    m.check_at_rest();
}

#[test]
fn a_full_queue_is_not_remembered_against_a_block() {
    let m = blocks(8);
    m.inflate_and_keep(|frame| frame.offset_in_block() < 300);
    m.balloon.room.store(0, Ordering::Relaxed);
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    assert_eq!(
        m.mobility.evacuate(m.block(0)),
        Err(EvacuateError::TimedOut)
    );
    assert_eq!(m.event(Event::CompactRefusedLate), 1);
    m.balloon.room.store(1000, Ordering::Relaxed);
    m.platform.clock.fetch_add(2_000_000, Ordering::Relaxed);
    assert!(matches!(
        m.direct(dirigible_frames::FrameClass::Movable),
        dirigible_mobility::CompactResult::Captured(_)
    ));
    m.check_at_rest();
}

/// While one CPU waits for the host, another empties a block of the same zone.
#[test]
fn another_cpu_takes_the_next_block_while_one_waits_for_the_host() {
    let m = blocks(40);
    m.fill_and_keep(|frame| frame.offset_in_block() < 200);
    let user = m.user.count();
    while m.inflate(1) > 0 && m.balloon.count() < 500 {}
    assert_eq!(m.user.count(), user);
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    let polls = Arc::new(AtomicU64::new(0));
    let went = Arc::new(AtomicBool::new(false));
    let balloon_block = m.balloon.frames()[0].get() as u32 / 512;
    let (mobility, other, frames) = (m.mobility, Arc::clone(&went), m.frames);
    let count = Arc::clone(&polls);
    *m.balloon.poll_hook.lock().unwrap() = Some(Box::new(move || {
        // On another CPU: the first has the place, and no lock.
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            let elsewhere = std::thread::spawn(move || {
                let cpu = dirigible_frames::CpuId::new(1);
                let result = mobility.compact_direct(cpu, dirigible_frames::FrameClass::Movable);
                if let dirigible_mobility::CompactResult::Captured(head) = result {
                    frames.free(cpu, head, Order::HUGE).unwrap();
                    return true;
                }
                false
            });
            other.store(elsewhere.join().unwrap(), Ordering::Relaxed);
        }
    }));
    let token = m.mobility.evacuate(m.block(balloon_block)).unwrap();
    m.frames.unisolate_block(token);
    assert!(polls.load(Ordering::Relaxed) > 0);
    assert!(
        went.load(Ordering::Relaxed),
        "the other CPU got its huge page"
    );
    m.check_at_rest();
}
