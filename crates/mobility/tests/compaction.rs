//! Direct and background compaction: when they begin, what they try, when they stop.

mod machine;

use std::sync::atomic::Ordering;

use dirigible_frames::{Event, FrameClass, FrameFlags, FrameState, Pfn};
use dirigible_mobility::{BackgroundResult, CompactResult, CompactionConfig, Outcome};
use machine::{CPU, HUGE, Machine, blocks, machine};

fn block_number(frame: Pfn) -> usize {
    frame.get() as usize / 512
}

fn direct(m: &Machine) -> CompactResult {
    m.direct(FrameClass::Movable)
}

/// Captures until it fails; gives the heads.
fn capture_all(m: &Machine) -> Vec<Pfn> {
    let mut heads = Vec::new();
    while let CompactResult::Captured(head) = direct(m) {
        heads.push(head);
        m.check_at_rest();
    }
    heads
}

#[test]
fn pitfall_12_a_zone_of_balloon_frames_and_holes_yields_its_huge_pages() {
    let m = blocks(16);
    m.inflate_and_keep(|frame| frame.get() % 3 != 0);
    let possible = (m.frames.free_frames() - machine::MARKS.min) / 512;
    assert_eq!(possible, 5);
    // A remembered refusal must not outlive its reason.
    let frame = m.balloon.frames()[0];
    m.frames.set_flags(frame, FrameFlags::PINNED);
    let mut heads = capture_all(&m);
    m.frames.clear_flags(frame, FrameFlags::PINNED);
    heads.extend(capture_all(&m));
    assert_eq!(heads.len() as u64, possible);
    assert_eq!(m.user.count(), 0);
    m.check_at_rest();
}

/// Emptying a whole zone isolates each frame a few times at most, however many blocks there are, and looks at few blocks
/// for each that it empties.
#[test]
fn pitfall_44_the_work_of_a_whole_zone_grows_with_its_size() {
    for count in [8, 32, 64] {
        let m = blocks(count);
        m.fill_and_keep(|frame| frame.get() % 2 == 0);
        let heads = capture_all(&m);
        assert!(
            heads.len() as u64 >= count * 3 / 8,
            "{} of {count}",
            heads.len()
        );
        let isolated = m.platform.isolated.load(Ordering::Relaxed);
        assert!(isolated <= 4 * count * 512, "{isolated} frames isolated");
        let examined = m.platform.examined.load(Ordering::Relaxed);
        assert!(examined <= 4 * count, "{examined} blocks looked at");
    }
}

#[test]
fn pitfall_48_a_captured_page_is_the_callers_and_only_the_callers() {
    let m = blocks(8);
    m.fill_and_keep(|frame| frame.get() % 4 == 0);
    let free = m.frames.free_frames();
    let heads = capture_all(&m);
    assert_eq!(heads.len(), 5);
    assert_eq!(m.frames.free_frames(), free - 5 * 512);
    let mut distinct = heads.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), heads.len());
    for &head in &heads {
        let info = m.frames.frame(head).unwrap();
        assert_eq!(
            (info.state, info.order, info.class),
            (FrameState::Allocated, HUGE, FrameClass::Movable)
        );
        m.free_huge(head);
        assert!(m.frames.free(CPU, head, HUGE).is_err(), "freed once");
    }
    assert_eq!(m.frames.free_frames(), free);
    m.check_at_rest();
}

#[test]
fn pitfall_62_the_watermark_decides_to_the_frame() {
    let m = blocks(4);
    // Free frames: 575 (64 + 512 - 1), in every block about a quarter.
    m.fill_and_keep(|frame| frame.offset_in_block() >= [144, 144, 144, 143][block_number(frame)]);
    assert_eq!(m.frames.free_frames(), 575);
    assert_eq!(direct(&m), CompactResult::Skipped);
    assert_eq!(
        (m.event(Event::CompactSkipped), m.event(Event::CompactStall)),
        (1, 0)
    );
    // What reclaim frees is counted even while a CPU cache holds it: else each would wait for the other.
    m.user.free(*m.user.frames().last().unwrap());
    let CompactResult::Captured(head) = direct(&m) else {
        panic!("64 + 512 frames are free")
    };
    assert_eq!(m.frames.free_frames(), 64);
    assert_eq!(direct(&m), CompactResult::Skipped);
    m.free_huge(head);
    m.check_at_rest();
}

#[test]
fn each_zone_has_its_own_watermark() {
    // Together 800 frames are free, in no zone 576.
    let (low, high) = (0..1024, 1024..2048);
    let m = machine::zoned(
        &[core::slice::from_ref(&low), core::slice::from_ref(&high)],
        CompactionConfig::default(),
    );
    m.fill_and_keep(|frame| frame.offset_in_block() >= 200);
    assert_eq!(direct(&m), CompactResult::Skipped);
    // And a zone that has them gives the block, whatever the other has.
    m.thin(|frame| frame.get() >= 1024 && frame.offset_in_block() < 330);
    let CompactResult::Captured(head) = direct(&m) else {
        panic!("660 frames are free in a zone")
    };
    assert!(head.get() >= 1024);
    m.check_at_rest();
}

#[test]
fn the_cheapest_block_goes_first() {
    let m = blocks(6);
    m.fill_and_keep(|frame| {
        frame.offset_in_block() < [400, 300, 20, 350, 450, 200][block_number(frame)]
    });
    assert_eq!(direct(&m), CompactResult::Captured(Pfn::new(2 * 512)));
    assert_eq!(m.event(Event::PgmigrateSuccess), 20);
    m.check_at_rest();
}

/// All blocks refuse, by one frame in each that its owner does not give up.
fn refusing() -> (Machine, Vec<Pfn>) {
    let config = CompactionConfig {
        budget_blocks: 2,
        ..CompactionConfig::default()
    };
    let m = machine(0..6 * 512, config);
    m.fill_and_keep(|frame| frame.offset_in_block() < 200);
    let kept: Vec<_> = (0..6).map(|block| Pfn::new(block * 512)).collect();
    kept.iter().for_each(|&frame| m.user.refuse(frame));
    (m, kept)
}

#[test]
fn pitfall_45_a_remembered_refusal_is_dropped_when_its_block_changes() {
    let (m, kept) = refusing();
    for _ in 0..3 {
        // What is left to be tried is no reason to defer.
        assert_eq!(direct(&m), CompactResult::Failed);
    }
    assert_eq!(
        (
            m.event(Event::CompactBlockAborted),
            m.event(Event::CompactRefusedOwner)
        ),
        (6, 6),
        "two a time, each block once"
    );
    // Now all are remembered: nothing is begun any more.
    assert_eq!(direct(&m), CompactResult::Deferred);
    assert_eq!(direct(&m), CompactResult::Failed);
    assert_eq!(m.event(Event::CompactBlockAborted), 6);
    // The frame that was kept is freed: the block changed, so it is tried again, deferred or not.
    m.user.free(kept[3]);
    m.frames.drain_cpu_caches();
    assert_eq!(direct(&m), CompactResult::Captured(kept[3]));
    m.check_at_rest();
}

#[test]
fn a_remembered_refusal_ends_with_its_time() {
    let (m, kept) = refusing();
    for _ in 0..20 {
        let _ = direct(&m);
    }
    kept.iter().for_each(|&frame| m.user.allow(frame));
    assert!(!matches!(direct(&m), CompactResult::Captured(_)));
    m.platform.clock.fetch_add(1_000_000_000, Ordering::Relaxed);
    assert!(matches!(direct(&m), CompactResult::Captured(_)));
    m.check_at_rest();
}

#[test]
fn pitfall_47_failures_defer_and_success_resets() {
    let (m, kept) = refusing();
    // While there are blocks that were not tried, nothing is deferred.
    for _ in 0..3 {
        assert_eq!(direct(&m), CompactResult::Failed);
    }
    let mut between = Vec::new();
    let mut deferred = 0;
    while between.len() < 6 {
        match direct(&m) {
            CompactResult::Deferred => deferred += 1,
            CompactResult::Failed => between.push(std::mem::take(&mut deferred)),
            other => panic!("{other:?}"),
        }
    }
    // The third left no candidate; from then on each failure doubles the wait.
    assert_eq!(between, [1, 3, 7, 15, 31, 63]);
    assert_eq!(m.event(Event::CompactDeferred), 120);
    assert_eq!(m.event(Event::CompactStall), 9);
    // Frames come free: the deferral is dropped. The refusals are not, as none of these frames stood in the way.
    m.thin(|frame| frame.offset_in_block() >= 100);
    assert_eq!(direct(&m), CompactResult::Failed);
    assert_eq!(m.event(Event::CompactRefusedOwner), 6);
    // Background compaction has a state of its own.
    assert_eq!(m.event(Event::CompactDaemonWake), 0);
    m.user.free(kept[0]);
    m.frames.drain_cpu_caches();
    let tries = (1..).find(|_| matches!(direct(&m), CompactResult::Captured(_)));
    assert!(tries.unwrap() < 20);
    m.check_at_rest();
}

#[test]
fn the_captured_block_bears_the_class_that_was_asked_for() {
    let m = blocks(6);
    m.fill_and_keep(|frame| frame.offset_in_block() < 200);
    for class in [
        FrameClass::Unmovable,
        FrameClass::Reclaimable,
        FrameClass::Movable,
    ] {
        let CompactResult::Captured(head) = m.direct(class) else {
            panic!()
        };
        assert_eq!(m.frames.frame(head).unwrap().class, class);
        let block = m.frames.block_of(head).unwrap();
        assert_eq!(m.frames.ledger(block).migratetype(), class.migratetype());
    }
    m.frames.verify().unwrap();
}

#[test]
fn background_keeps_the_reserve_with_hysteresis() {
    let config = CompactionConfig {
        reserve_low: 2,
        reserve_high: 4,
        ..CompactionConfig::default()
    };
    let m = machine(0..12 * 512, config);
    m.fill_and_keep(|frame| frame.offset_in_block() < 250);
    assert!(m.mobility.wants_background());
    assert_eq!(m.mobility.compact_background(CPU, 0).emptied, 0);
    let first = m.mobility.compact_background(CPU, 3);
    assert_eq!(
        first,
        BackgroundResult {
            emptied: 3,
            more: true
        }
    );
    assert!(m.mobility.wants_background(), "above low, but it has begun");
    let second = m.mobility.compact_background(CPU, 3);
    assert_eq!(
        second,
        BackgroundResult {
            emptied: 1,
            more: false
        }
    );
    assert!(!m.mobility.wants_background());
    assert_eq!(m.event(Event::CompactDaemonWake), 1);
    assert_eq!(
        m.event(Event::CompactDaemonMigrated),
        m.event(Event::PgmigrateSuccess)
    );
    // Between low and high it stays at rest.
    let huge: Vec<_> = (0..2).map(|_| m.take_huge()).collect();
    assert_eq!(m.frames.free_blocks(), 2);
    assert!(!m.mobility.wants_background());
    assert_eq!(
        m.mobility.compact_background(CPU, 9),
        BackgroundResult::default()
    );
    let third = m.take_huge();
    assert!(m.mobility.wants_background());
    for head in huge.into_iter().chain([third]) {
        m.free_huge(head);
    }
    m.check_at_rest();
}

#[test]
fn background_with_the_reserve_off_begins_when_memory_is_free_and_no_block_is() {
    let m = blocks(4);
    m.fill_and_keep(|frame| frame.offset_in_block() >= 32);
    assert_eq!(m.frames.free_frames(), 128);
    assert!(m.mobility.wants_background(), "at the high watermark");
    // Nothing can be emptied: 480 used frames in each block, 128 free in all. It begins no block, defers, and ends.
    for _ in 0..10 {
        let result = m.mobility.compact_background(CPU, 4);
        assert_eq!(result, BackgroundResult::default());
    }
    assert_eq!(m.event(Event::CompactIsolated), 0);
    assert_eq!(m.event(Event::CompactBlockAborted), 0);
    m.map().unwrap();
    m.frames.drain_cpu_caches();
    assert!(!m.mobility.wants_background(), "below it");
    // With room, one block becomes whole, and then there is one.
    m.thin(|frame| frame.offset_in_block() >= 300);
    assert!(m.mobility.wants_background());
    assert_eq!(m.mobility.compact_background(CPU, 4).emptied, 1);
    assert!(!m.mobility.wants_background());
    m.check_at_rest();
}

#[test]
fn background_moves_balloon_frames_of_several_blocks_in_one_exchange() {
    let config = CompactionConfig {
        reserve_low: 4,
        reserve_high: 4,
        ..CompactionConfig::default()
    };
    let m = machine(0..12 * 512, config);
    m.inflate_and_keep(|frame| {
        frame.offset_in_block() < if block_number(frame) < 8 { 30 } else { 300 }
    });
    assert_eq!(m.mobility.compact_background(CPU, 8).emptied, 4);
    let batches = m.balloon.batches.lock().unwrap().clone();
    assert_eq!(batches, [120]);
    m.check_at_rest();
}

#[test]
fn direct_and_background_are_counted_apart() {
    let config = CompactionConfig {
        reserve_low: 1,
        reserve_high: 1,
        ..CompactionConfig::default()
    };
    let m = machine(0..6 * 512, config);
    m.fill_and_keep(|frame| frame.offset_in_block() < 200);
    m.user.say([Outcome::Refused]);
    assert_eq!(
        m.mobility.compact_background(CPU, 1).emptied,
        1,
        "the next block does it"
    );
    assert_eq!(m.event(Event::CompactStall), 0);
    assert!(matches!(direct(&m), CompactResult::Captured(_)));
    assert_eq!(
        (m.event(Event::CompactStall), m.event(Event::CompactSuccess)),
        (1, 1)
    );
    m.check_at_rest();
}

/// Balloon frames that somebody else has isolated hold their blocks: compaction ends, leaves them alone, and goes on when
/// they are back.
#[test]
fn pitfall_80_a_zone_with_isolated_balloon_frames_is_compacted_around_them() {
    let m = blocks(8);
    m.inflate_and_keep(|frame| frame.get() % 3 != 0);
    let held: Vec<Pfn> = (0..8)
        .filter_map(|block| {
            let mut frames = m.balloon.frames().into_iter();
            frames.find(|frame| block_number(*frame) == block)
        })
        .collect();
    assert_eq!(held.len(), 8);
    held.iter()
        .for_each(|&frame| assert!(m.mobility.isolate(frame)));
    for _ in 0..10 {
        assert!(!matches!(direct(&m), CompactResult::Captured(_)));
        assert_eq!(m.mobility.compact_background(CPU, 8).emptied, 0);
    }
    assert!(
        held.iter()
            .all(|&frame| m.frames.state(frame) == FrameState::Isolated)
    );
    assert_eq!(m.mobility.isolated_frames(), 8);
    m.mobility.putback_movable_frames(&held);
    m.platform
        .clock
        .fetch_add(10_000_000_000, Ordering::Relaxed);
    assert!(!capture_all(&m).is_empty());
    m.check_at_rest();
}
