//! Blocks that cannot be emptied, for a moment or for good, do not keep compaction from those that can.
#![cfg(not(shuttle))]
#![allow(missing_docs)]
// Zones are lists of ranges, also where there is one.
#![allow(clippy::single_range_in_vec_init)]

mod machine;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use dirigible_frames::{BlockId, Event, FrameClass, FrameFlags, FrameState, Pfn, ZoneId};
use dirigible_mobility::{CompactResult, CompactionConfig};
use machine::{CPU, Machine, blocks, machine, zoned};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

fn block_of(frame: Pfn) -> usize {
    frame.get() as usize / 512
}

/// Huge pages that so many requests capture, with time between them.
fn captured(m: &Machine, requests: usize) -> usize {
    (0..requests)
        .filter(|_| {
            m.platform.clock.fetch_add(1_000_000, Ordering::Relaxed);
            matches!(m.direct(FrameClass::Movable), CompactResult::Captured(_))
        })
        .count()
}

/// `stuck` blocks are the cheapest of 60; behind them are one that costs more and others that cost much.
fn with_cheap_blocks_in_front(stuck: usize) -> Machine {
    let m = blocks(60);
    m.fill_and_keep(|frame| {
        let keep = match block_of(frame) {
            block if block < stuck => 10,
            45 => 60,
            _ => 300,
        };
        frame.offset_in_block() < keep
    });
    m
}

#[test]
fn compaction_goes_past_any_number_of_blocks_with_a_pinned_frame() {
    for stuck in [15, 16, 32, 40] {
        let m = with_cheap_blocks_in_front(stuck);
        for block in 0..stuck as u64 {
            m.frames
                .set_flags(Pfn::new(block * 512 + 5), FrameFlags::PINNED);
        }
        // Each captured block leaves room for less; without pins 60 - stuck blocks give at least so many.
        let most = captured(&m, 200);
        assert!(most >= (60 - stuck) / 4, "{stuck} stuck: {most} captured");
        assert_eq!(
            m.event(Event::CompactBlockAborted),
            0,
            "{stuck}: the ledger knows of pins, nothing is tried in vain"
        );
        m.check_at_rest();
    }
}

#[test]
fn compaction_goes_past_any_number_of_blocks_that_their_owner_keeps() {
    let free = captured(&with_cheap_blocks_in_front(0), 200);
    assert!(free > 20);
    for stuck in [15, 16, 32, 40] {
        let m = with_cheap_blocks_in_front(stuck);
        for block in 0..stuck as u64 {
            m.user.refuse(Pfn::new(block * 512 + 5));
        }
        let most = captured(&m, 200);
        assert!(most >= (60 - stuck) / 4, "{stuck} stuck: {most} captured");
        // Tried once in a second, and time here is a fifth of one.
        assert!(m.event(Event::CompactRefusedOwner) <= stuck as u64);
        m.check_at_rest();
    }
}

#[test]
fn a_pin_that_ends_makes_its_block_a_candidate_at_once() {
    let m = blocks(6);
    m.fill_and_keep(|frame| frame.offset_in_block() < if block_of(frame) == 0 { 40 } else { 420 });
    let pinned = Pfn::new(7);
    m.frames.set_flags(pinned, FrameFlags::PINNED);
    let mut found = [BlockId::new(0); 8];
    let count = m.frames.cheapest_blocks(None, &mut found);
    assert!(!found[..count].contains(&m.block(0)));
    m.frames.clear_flags(pinned, FrameFlags::PINNED);
    let count = m.frames.cheapest_blocks(None, &mut found);
    assert_eq!(found[..count].first(), Some(&m.block(0)));
    m.check_at_rest();
}

#[test]
fn a_frame_that_is_under_way_for_a_moment_costs_a_moment() {
    let m = blocks(6);
    m.fill_and_keep(|frame| frame.offset_in_block() < if block_of(frame) == 0 { 40 } else { 420 });
    for block in 1..6u64 {
        m.frames
            .set_flags(Pfn::new(block * 512 + 7), FrameFlags::PINNED);
    }
    // A fault that has its frame and has not listed it yet.
    let frame = Pfn::new(10);
    m.user.books.lock().unwrap().remove(&frame);
    m.frames
        .transition(frame, FrameState::Listed, FrameState::Allocated)
        .unwrap();
    assert_eq!(m.direct(FrameClass::Movable), CompactResult::Failed);
    assert_eq!(m.event(Event::CompactRefusedUnderWay), 1);
    m.user.list(frame);
    let begun = m.platform.clock.load(Ordering::Relaxed);
    while !matches!(m.direct(FrameClass::Movable), CompactResult::Captured(_)) {
        m.platform.clock.fetch_add(100_000, Ordering::Relaxed);
        let waited = m.platform.clock.load(Ordering::Relaxed) - begun;
        assert!(waited < 5_000_000, "still refused after {waited} ns");
    }
    m.check_at_rest();
}

#[test]
fn a_refusal_ends_with_the_frame_that_caused_it_and_not_with_others() {
    let m = blocks(6);
    m.fill_and_keep(|frame| frame.offset_in_block() < if block_of(frame) == 0 { 40 } else { 420 });
    let kept = Pfn::new(10);
    m.user.refuse(kept);
    let candidates = || {
        let mut found = [BlockId::new(0); 8];
        let count = m.frames.cheapest_blocks(None, &mut found);
        found[..count].to_vec()
    };
    // The cheapest is refused, the next one goes.
    assert!(matches!(
        m.direct(FrameClass::Movable),
        CompactResult::Captured(_)
    ));
    assert!(!candidates().contains(&m.block(0)));
    m.user.free(Pfn::new(11));
    m.frames.drain_cpu_caches();
    assert!(!candidates().contains(&m.block(0)));
    m.user.free(kept);
    m.frames.drain_cpu_caches();
    assert!(candidates().contains(&m.block(0)));
    m.check_at_rest();
}

#[test]
fn refused_blocks_still_serve_requests_and_come_back_in_their_turn() {
    let m = blocks(200);
    m.fill_and_keep(|frame| frame.offset_in_block() < 100);
    let kept: Vec<Pfn> = (0..150).map(|block| Pfn::new(block * 512)).collect();
    kept.iter().for_each(|&frame| m.user.refuse(frame));
    let first = captured(&m, 100);
    assert!(first >= 30, "{first} of 50");
    let refused = |m: &Machine| {
        let zone = ZoneId::new(0);
        let all =
            m.frames
                .refused_blocks(zone, dirigible_frames::Refusal::Lasting, BlockId::new(0));
        all.count()
    };
    assert!(refused(&m) >= 100);
    // What was moved out of the others went into them first.
    let used = |number: u32| m.frames.used_frames(m.block(number)).count();
    assert!((0..150).any(|number| used(number) == 512));
    m.thin(|frame| frame.offset_in_block() >= 100);
    // Their owner gives them up, which no ledger shows: all come back within a few looks after their time.
    kept.iter().for_each(|&frame| m.user.allow(frame));
    m.platform
        .clock
        .fetch_add(20_000_000_000, Ordering::Relaxed);
    let second = captured(&m, 200);
    assert!(second >= 80, "{second}");
    m.check_at_rest();
}

#[test]
fn one_zones_blocks_do_not_crowd_out_anothers() {
    let m = zoned(
        &[&[0..40 * 512], &[40 * 512..80 * 512]],
        CompactionConfig::default(),
    );
    m.fill_and_keep(|frame| frame.offset_in_block() < if block_of(frame) < 40 { 400 } else { 100 });
    let mut found = [BlockId::new(0); 16];
    let count = m.frames.emptiest_blocks(None, &mut found);
    assert_eq!(count, 16);
    assert!(found.iter().all(|block| block.index() >= 40), "{found:?}");
}

#[test]
fn background_compaction_goes_past_stuck_blocks() {
    let config = CompactionConfig {
        reserve_low: 1,
        reserve_high: 2,
        ..CompactionConfig::default()
    };
    let m = machine(0..100 * 512, config);
    m.fill_and_keep(|frame| frame.offset_in_block() < if block_of(frame) < 70 { 100 } else { 200 });
    (0..70).for_each(|block| m.user.refuse(Pfn::new(block * 512 + 99)));
    let mut emptied = 0;
    for _ in 0..40 {
        emptied += m.mobility.compact_background(CPU, 2).emptied;
        m.platform.clock.fetch_add(1_000_000, Ordering::Relaxed);
    }
    assert_eq!(emptied, 2);
    m.check_at_rest();
}

/// Eight blocks that are always tried again, since their time is over whenever somebody asks, leave the others their
/// turn.
#[test]
fn hopeless_blocks_do_not_starve_others_of_those_who_ask_seldom() {
    for interval in [2_000_000_000, 20_000_000_000] {
        for stuck in [8, 40] {
            let m = blocks(60);
            m.fill_and_keep(|frame| {
                frame.offset_in_block() < if block_of(frame) < stuck { 10 } else { 60 }
            });
            (0..stuck as u64).for_each(|block| m.user.refuse(Pfn::new(block * 512 + 5)));
            let mut captured = 0;
            for _ in 0..60 {
                m.platform.clock.fetch_add(interval, Ordering::Relaxed);
                captured += usize::from(matches!(
                    m.direct(FrameClass::Movable),
                    CompactResult::Captured(_)
                ));
            }
            assert!(
                captured >= (60 - stuck) * 3 / 4,
                "{captured} of {} behind {stuck}, every {interval} ns",
                60 - stuck
            );
            m.check_at_rest();
        }
    }
}

/// A zone whose blocks all refuse does not use up the effort for the others.
#[test]
fn a_hopeless_zone_leaves_the_others_their_share() {
    let m = zoned(
        &[&[0..40 * 512], &[40 * 512..80 * 512]],
        CompactionConfig::default(),
    );
    m.fill_and_keep(|frame| frame.offset_in_block() < 100);
    // The last zone is tried first.
    (40..80).for_each(|block| m.user.refuse(Pfn::new(block * 512 + 99)));
    assert!(matches!(
        m.direct(FrameClass::Movable),
        CompactResult::Captured(_)
    ));
    m.check_at_rest();
}

/// Pins of other frames come and go in a block that its owner keeps: it is no more worth a try than before.
#[test]
fn other_frames_pins_do_not_end_a_refusal() {
    let m = blocks(6);
    m.fill_and_keep(|frame| frame.offset_in_block() < if block_of(frame) == 0 { 40 } else { 420 });
    m.user.refuse(Pfn::new(10));
    let _ = m.direct(FrameClass::Movable);
    assert_eq!(m.event(Event::CompactRefusedOwner), 1);
    for _ in 0..3 {
        assert!(m.frames.set_flags(Pfn::new(20), FrameFlags::PINNED));
        m.frames.clear_flags(Pfn::new(20), FrameFlags::PINNED);
    }
    let mut found = [BlockId::new(0); 8];
    let count = m.frames.cheapest_blocks(None, &mut found);
    assert!(!found[..count].contains(&m.block(0)));
    m.check_at_rest();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    /// Whatever blocks are stuck, however many and for whatever reason: every block that can be emptied is emptied.
    #[test]
    fn every_block_that_can_be_emptied_is_emptied(
        count in 8u64..120,
        seed in any::<u64>(),
        share in 0u64..=100,
        interval in prop_oneof![Just(10_000u64), Just(3_000_000), Just(1_500_000_000), Just(30_000_000_000)],
    ) {
        let m = blocks(count + 8);
        // The last eight are room for what moves: too full to be cheap, pinned so as to be no candidates.
        m.fill_and_keep(|frame| {
            let block = frame.get() / 512;
            let keep = if block < count { 1 + (seed ^ (block * 37)) % 20 } else { 1 };
            (frame.offset_in_block() as u64) < keep
        });
        for block in count..count + 8 {
            m.frames.set_flags(Pfn::new(block * 512), FrameFlags::PINNED);
        }
        let mut stuck = BTreeSet::new();
        let mut under_way = Vec::new();
        for block in 0..count {
            let dice = (seed.rotate_left(block as u32 % 61) ^ block.wrapping_mul(0x9e37_79b9)) % 100;
            if dice >= share {
                continue;
            }
            let used: Vec<Pfn> = m.frames.used_frames(m.block(block as u32)).collect();
            let frame = used[dice as usize % used.len()];
            match dice % 3 {
                0 => prop_assert!(m.frames.set_flags(frame, FrameFlags::PINNED)),
                1 => m.user.refuse(frame),
                // Handed out, and never listed.
                _ => {
                    m.user.books.lock().unwrap().remove(&frame);
                    m.frames.transition(frame, FrameState::Listed, FrameState::Allocated).unwrap();
                    under_way.push(frame);
                }
            }
            stuck.insert(block);
        }
        let can = count as usize - stuck.len();
        let mut emptied = 0;
        // A request that finds what it wants takes one block; the others get past some stuck ones each, or are
        // deferred.
        for _ in 0..can + 2 * count as usize + 200 {
            if let CompactResult::Captured(_) = m.direct(FrameClass::Movable) {
                emptied += 1;
            }
            m.platform.clock.fetch_add(interval, Ordering::Relaxed);
        }
        prop_assert_eq!(emptied, can);
        under_way.into_iter().for_each(|frame| m.user.list(frame));
        m.check_at_rest();
    }
}
