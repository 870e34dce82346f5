//! What compaction drops instead of moving it: no more than reclaim owes or targets are missing, and nothing that is
//! used.

mod machine;

use std::sync::atomic::Ordering;

use dirigible_frames::{Event, Fallback, FrameClass, Ledger, Pfn, Watermarks, ZoneId};
use dirigible_mobility::{CompactResult, CompactionConfig, ContiguousRequest, MovableOwner};
use machine::{CPU, MARKS, Machine};

const ZONE: ZoneId = ZoneId::new(0);

/// A frame costs one, a cold one nothing; the tally is the number of cold frames.
fn cost(ledger: Ledger, tally: u64, _: u32) -> u32 {
    u32::from(ledger.movable()).saturating_sub(tally as u32)
        + u32::from(ledger.balloon()).div_ceil(8)
}

fn config() -> CompactionConfig {
    CompactionConfig {
        drops_cold: true,
        ..CompactionConfig::default()
    }
}

/// A machine whose blocks have so many free frames, and in front of them so many cold ones.
fn filled(config: CompactionConfig, free: &[u64], cold: &[u64]) -> Machine {
    let range = 0..free.len() as u64 * 512;
    let m = machine::with_cost(
        Some(cost),
        Fallback::Steal,
        &[core::slice::from_ref(&range)],
        config,
    );
    let number = |frame: Pfn| (frame.get() / 512) as usize;
    m.fill_and_keep(|frame| frame.get() % 512 < 512 - free[number(frame)]);
    for frame in m.user.frames() {
        if frame.get() % 512 < cold[number(frame)] {
            m.user.cold.lock().unwrap().insert(frame);
        }
    }
    for (block, &cold) in cold.iter().enumerate() {
        m.frames.set_block_tally(m.block(block as u32), cold);
    }
    assert_eq!(m.frames.free_frames(), free.iter().sum::<u64>());
    m
}

fn dropped(m: &Machine) -> u64 {
    let dropped = m.user.dropped.load(Ordering::Relaxed) as u64;
    assert_eq!(m.event(Event::CompactDropped), dropped);
    let scanned = [Event::PgScanDirect, Event::PgScanKswapd].map(|event| m.event(event));
    let stolen = [Event::PgStealDirect, Event::PgStealKswapd].map(|event| m.event(event));
    assert_eq!(scanned, stolen);
    assert_eq!(stolen.iter().sum::<u64>(), dropped);
    dropped
}

fn is_captured(result: CompactResult) -> bool {
    matches!(result, CompactResult::Captured(_))
}

#[test]
fn a_cold_block_needs_no_target() {
    let m = filled(config(), &[30, 30, 40, 30], &[0, 0, 472, 0]);
    let result = m.direct(FrameClass::Movable);
    assert_eq!(result, CompactResult::Captured(Pfn::new(2 * 512)));
    assert_eq!((dropped(&m), m.event(Event::PgmigrateSuccess)), (472, 0));
    assert_eq!(m.event(Event::PgStealDirect), 472);
    assert_eq!(m.event(Event::CompactIsolated), 472);
    assert_eq!(m.frames.free_frames(), 130 - 40);
    m.check_at_rest();
}

#[test]
fn without_the_policy_everything_moves() {
    let plain = CompactionConfig::default();
    let m = filled(plain, &[30, 30, 40, 30], &[0, 0, 472, 0]);
    assert_eq!(m.direct(FrameClass::Movable), CompactResult::Skipped);
    let m = filled(plain, &[100, 200, 150, 140], &[0, 0, 362, 0]);
    assert!(is_captured(m.direct(FrameClass::Movable)));
    assert_eq!((dropped(&m), m.event(Event::PgmigrateSuccess)), (0, 362));
    m.check_at_rest();
}

#[test]
fn the_others_of_a_block_move() {
    let m = filled(config(), &[60, 60, 40, 30], &[0, 0, 400, 0]);
    assert!(is_captured(m.direct(FrameClass::Movable)));
    assert_eq!((dropped(&m), m.event(Event::PgmigrateSuccess)), (400, 72));
    m.check_at_rest();
}

/// The huge page takes 512 frames: what is missing to the high watermark then is owed, to the frame. With that much
/// more free memory all is moved.
#[test]
fn pitfall_62_no_more_is_dropped_than_reclaim_owes() {
    for (free, expected) in [(642, 0), (641, 0), (640, 0), (639, 1), (638, 2), (600, 40)] {
        let cold = 952 - free;
        let m = filled(config(), &[150, 140, 150, free - 440], &[0, 0, 0, cold]);
        assert!(is_captured(m.direct(FrameClass::Movable)), "{free}");
        assert_eq!(dropped(&m), expected, "{free}");
        assert_eq!(m.event(Event::PgmigrateSuccess), cold - expected);
        m.check_at_rest();
    }
}

/// A block is cheap by what is dropped of it, and not by what is cold in it: with little owed the emptiest one goes.
#[test]
fn cold_frames_make_a_block_cheap_as_far_as_they_are_owed() {
    // The high watermark is 128: with 640 free frames nothing is owed.
    for (free, cold, moved, gone) in [
        ([300, 200, 100, 40], 412, 212, 0),
        ([300, 160, 100, 40], 412, 212, 0),
        ([80, 30, 100, 30], 400, 12, 400),
    ] {
        let m = filled(config(), &free, &[0, 0, cold, 0]);
        assert!(is_captured(m.direct(FrameClass::Movable)), "{free:?}");
        assert_eq!(
            (m.event(Event::PgmigrateSuccess), dropped(&m)),
            (moved, gone)
        );
        m.check_at_rest();
    }
}

/// Around the min watermark a full block is emptied if all of it can be dropped, or the rest has targets above the
/// mark. Else nothing is dropped, and requests are deferred and not tried for ever.
#[test]
fn pitfall_62_at_the_min_watermark_a_block_is_dropped_or_left() {
    for (free, cold, captured) in [
        (63, 512, false),
        (64, 512, true),
        (64, 511, false),
        (65, 511, true),
        (65, 510, false),
    ] {
        let m = filled(config(), &[free - 32, 32, 0], &[0, 0, cold]);
        let result = m.direct(FrameClass::Movable);
        assert_eq!(is_captured(result), captured, "{free} {cold}: {result:?}");
        assert_eq!(dropped(&m), if captured { cold } else { 0 });
        let moved = if captured { 512 - cold } else { 0 };
        assert_eq!(m.event(Event::PgmigrateSuccess), moved);
        m.check_at_rest();
        let begun = m.event(Event::CompactStall);
        let others = (0..20).filter(|_| is_captured(m.direct(FrameClass::Movable)));
        assert_eq!(others.count(), 0);
        assert!(m.event(Event::CompactStall) - begun <= 4, "deferred");
        assert_eq!(dropped(&m), if captured { cold } else { 0 });
        m.check_at_rest();
    }
}

/// The books say that the last block is all cold; its frames say otherwise. The best few are looked at before one is
/// emptied.
#[test]
fn a_block_whose_books_are_wrong_is_found_out() {
    for (wrong, chosen) in [(false, 3), (true, 2)] {
        let m = filled(config(), &[100, 100, 40, 30], &[0, 0, 380, 482]);
        if wrong {
            m.user
                .cold
                .lock()
                .unwrap()
                .retain(|frame| frame.get() < 3 * 512);
        }
        let result = m.direct(FrameClass::Movable);
        assert_eq!(result, CompactResult::Captured(Pfn::new(chosen * 512)));
        // 128 + 512 - 270 are owed.
        let left = if wrong { 472 - 370 } else { 482 - 370 };
        assert_eq!(m.event(Event::PgmigrateSuccess), left);
        m.check_at_rest();
    }
}

/// However many candidates there are, the frames of no more than eight are looked at for one choice.
#[test]
fn few_candidates_are_looked_at() {
    let m = filled(config(), &[60; 24], &[100; 24]);
    m.user.cold.lock().unwrap().clear();
    let before = m.platform.scanned.load(Ordering::Relaxed);
    assert!(is_captured(m.direct(FrameClass::Movable)));
    let scanned = m.platform.scanned.load(Ordering::Relaxed) - before;
    assert!((452..=8 * 452).contains(&scanned), "{scanned}");
    m.check_at_rest();
}

#[test]
fn a_frame_that_was_used_moves_after_all() {
    let m = filled(config(), &[40, 30, 30, 30], &[0, 0, 0, 482]);
    let late: Vec<Pfn> = [0, 7, 300, 481].map(|at| Pfn::new(3 * 512 + at)).into();
    m.user.used.lock().unwrap().extend(&late);
    let contents: Vec<u64> = {
        let contents = m.user.contents.lock().unwrap();
        late.iter().map(|frame| contents[frame]).collect()
    };
    assert!(is_captured(m.direct(FrameClass::Movable)));
    assert_eq!((dropped(&m), m.event(Event::PgmigrateSuccess)), (478, 4));
    let kept = m.user.contents.lock().unwrap();
    assert!(
        contents
            .iter()
            .all(|content| kept.values().any(|kept| kept == content))
    );
    drop(kept);
    m.check_at_rest();
}

#[test]
fn without_a_target_for_it_all_is_put_back() {
    let m = filled(config(), &[32, 32, 0], &[0, 0, 512]);
    let late = Pfn::new(2 * 512 + 100);
    m.user.used.lock().unwrap().insert(late);
    assert_eq!(m.direct(FrameClass::Movable), CompactResult::Failed);
    // What was dropped before it stays so: reclaim had it coming.
    let gone = dropped(&m);
    assert!(gone < 512, "{gone}");
    assert!(m.user.books.lock().unwrap().contains(&late));
    assert_eq!(m.frames.free_frames(), 64 + gone);
    assert_eq!(m.event(Event::PgmigrateSuccess), 0);
    m.check_at_rest();
}

#[test]
fn a_frame_that_does_not_move_leaves_the_others_dropped() {
    let m = filled(config(), &[60, 60, 40, 30], &[0, 0, 400, 0]);
    m.user.say([dirigible_mobility::Outcome::Refused]);
    let budget = m.event(Event::CompactBlockAborted);
    let _ = m.direct(FrameClass::Movable);
    assert!(m.event(Event::CompactBlockAborted) > budget);
    assert!(dropped(&m) >= 400);
    m.check_at_rest();
}

#[test]
fn an_unmovable_request_drops_what_it_has_no_targets_for() {
    let m = filled(config(), &[60, 60, 30, 30], &[0, 0, 0, 482]);
    assert_eq!(m.mobility.evacuate_for(CPU, FrameClass::Unmovable), Ok(()));
    assert_eq!((dropped(&m), m.event(Event::PgmigrateSuccess)), (428, 54));
    m.check_at_rest();
}

/// A reserve is there to be taken: what is missing to the high watermark when its blocks are gone is owed, and no more,
/// in however many blocks at once.
#[test]
fn pitfall_62_the_reserve_drops_no_more_than_its_blocks_will_lack() {
    for (high, most) in [(128, 240), (400, 512), (401, 513), (900, 1012)] {
        let config = CompactionConfig {
            reserve_low: 1,
            reserve_high: 1,
            ..config()
        };
        let m = filled(config, &[100; 4], &[412; 4]);
        m.frames.set_watermarks(ZONE, Watermarks { high, ..MARKS });
        for _ in 0..4 {
            let _ = m.mobility.compact_background(CPU, 4);
            m.check_at_rest();
        }
        assert!(dropped(&m) <= most, "{high}: {} dropped", dropped(&m));
        assert_eq!(m.event(Event::PgStealDirect), 0);
        if most >= 500 {
            assert!(dropped(&m) > 0 && m.frames.free_blocks() > 0, "{high}");
        }
    }
}

/// Lets all but the first frames of block 2 be written before they are dropped.
fn unsaved(free: &[u64], others: u64) -> Machine {
    let m = filled(config(), free, &[0; 4]);
    let all = m.user.frames();
    let of_block = all.iter().filter(|frame| frame.get() / 512 == 2);
    let unsaved = of_block.filter(|frame| frame.get() % 512 >= others);
    m.user.unsaved.lock().unwrap().extend(unsaved);
    m.frames.set_block_tally(m.block(2), 512 - free[2] - others);
    m
}

#[test]
fn what_must_be_written_first_is_dropped_when_it_is_written() {
    for polls in [1, 5] {
        let m = unsaved(&[60, 60, 40, 30], 72);
        m.user.writes_last.store(polls, Ordering::Relaxed);
        let result = m.direct(FrameClass::Movable);
        assert_eq!(result, CompactResult::Captured(Pfn::new(2 * 512)));
        assert_eq!((dropped(&m), m.event(Event::PgmigrateSuccess)), (400, 72));
        assert_eq!(m.user.writes_last.load(Ordering::Relaxed), 0);
        m.check_at_rest();
    }
}

/// The request ends in time; what is written later is dropped by another.
#[test]
fn writes_that_do_not_end_leave_the_block_as_it_is() {
    let m = unsaved(&[60, 60, 40, 30], 72);
    m.user.writes_last.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(m.direct(FrameClass::Movable), CompactResult::Failed);
    assert_eq!(
        (dropped(&m), m.user.writing.lock().unwrap().len()),
        (0, 400)
    );
    assert_eq!(m.event(Event::CompactBlockAborted), 1);
    m.check_at_rest();
    m.user.writes_last.store(1, Ordering::Relaxed);
    m.user.poll(0);
    let config = CompactionConfig::default();
    m.platform
        .clock
        .fetch_add(config.refusal_memory_ns, Ordering::Relaxed);
    // The failure defers the first of them.
    assert!((0..3).any(|_| is_captured(m.direct(FrameClass::Movable))));
    assert_eq!(dropped(&m), 400);
    m.check_at_rest();
}

/// One frame is used when it is to be written: the block stays in use, and nothing else is lost.
#[test]
fn a_frame_that_is_used_is_not_written() {
    let m = unsaved(&[60, 60, 40, 30], 72);
    let used = Pfn::new(2 * 512 + 100);
    m.user.used.lock().unwrap().insert(used);
    let _ = m.direct(FrameClass::Movable);
    assert!(m.user.frames().contains(&used));
    assert!(dropped(&m) <= 399);
    m.check_at_rest();
}

#[test]
fn who_names_a_block_loses_nothing() {
    let m = filled(config(), &[300, 300, 300], &[212; 3]);
    m.frames.set_watermarks(
        ZONE,
        Watermarks {
            high: 1500,
            ..MARKS
        },
    );
    let token = m.mobility.evacuate(m.block(1)).unwrap();
    m.frames.unisolate_block(token);
    let request = ContiguousRequest::new(512, FrameClass::Unmovable);
    assert!(m.mobility.alloc_contiguous(CPU, request).is_ok());
    assert_eq!(dropped(&m), 0);
}

#[test]
fn a_balloon_is_not_asked() {
    let m = machine::machine(0..3 * 512, config());
    m.inflate_and_keep(|frame| frame.offset_in_block() >= 100);
    m.balloon.cold.lock().unwrap().extend(m.balloon.frames());
    let _ = m.direct(FrameClass::Movable);
    assert_eq!(m.balloon.dropped.load(Ordering::Relaxed), 0);
    m.check_at_rest();
}
