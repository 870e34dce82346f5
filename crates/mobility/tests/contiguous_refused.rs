//! Contiguous ranges that are not given, or not at once: what stands in the way is reported, and everything is put
//! back.

mod machine;

use std::sync::atomic::{AtomicUsize, Ordering};

use dirigible_frames::{
    AllocRequest, Event, FrameFlags, FrameState, IsolateError, Pfn, Refusal, Watermark, Watermarks,
};
use dirigible_mobility::{
    CompactionConfig, ContiguousError, ContiguousRequest, EvacuateError, Outcome,
};
use machine::ranges::{all_open, ask, ask_at, block_number, contents, filled, release};
use machine::{Answer, CPU, blocks};

#[test]
fn everything_is_put_back_when_the_last_block_refuses() {
    // In one batch: nothing moves. One after the other: what moved stays, in its new place.
    for (used, moves) in [(100, 0), (300, 600)] {
        let m = filled([used, used, used, 200, 200, 200, 200]);
        let before = (m.user.frames(), contents(&m), m.frames.free_frames());
        let stubborn = Pfn::new(2 * 512 + 50);
        m.user.refuse(stubborn);
        let refused = Err(EvacuateError::Refused(stubborn).into());
        assert_eq!(ask_at(&m, 0, 3 * 512), refused);
        assert_eq!(m.event(Event::PgmigrateSuccess), moves);
        assert_eq!(
            (contents(&m), m.frames.free_frames()),
            (before.1.clone(), before.2)
        );
        assert_eq!(m.user.frames() == before.0, moves == 0);
        all_open(&m, 0..7);
        assert_eq!(m.frames.ledger(m.block(2)).refusal(), Refusal::Lasting);
        m.check_at_rest();
        // The refusal is remembered by now: that block is tried first, and no other is touched.
        assert_eq!(ask_at(&m, 0, 3 * 512), refused);
        assert_eq!(m.event(Event::PgmigrateSuccess), moves);
        m.user.allow(stubborn);
        let range = ask_at(&m, 0, 3 * 512).unwrap();
        assert_eq!(contents(&m), before.1);
        release(&m, range);
        m.check_at_rest();
    }
}

/// Memory that was added out of order: its blocks follow the first one in the tables, as many as a range over the
/// hole has.
#[test]
fn a_range_goes_over_no_hole_between_what_was_added() {
    let m = blocks(1);
    let zone = m.frames.zones().next().unwrap();
    for block in [10u64, 2] {
        let range = Pfn::new(block * 512)..Pfn::new(block * 512 + 512);
        m.frames.add_range(zone, range).unwrap();
    }
    assert_eq!(ask_at(&m, 0, 3 * 512), Err(ContiguousError::NoMemory));
    assert_eq!(m.frames.free_blocks(), 3);
}

/// The window fails for one block; the refusals of the others stay.
#[test]
fn a_range_that_fails_forgives_nobody() {
    let m = filled([100, 100, 100, 200, 200, 200]);
    m.frames.refuse_block(m.block(1), Refusal::Lasting, None);
    let stubborn = Pfn::new(2 * 512 + 50);
    m.user.refuse(stubborn);
    m.frames
        .refuse_block(m.block(2), Refusal::Lasting, Some(stubborn));
    assert_eq!(
        ask_at(&m, 0, 3 * 512),
        Err(EvacuateError::Refused(stubborn).into())
    );
    for block in [1, 2] {
        assert_eq!(m.frames.ledger(m.block(block)).refusal(), Refusal::Lasting);
    }
    m.check_at_rest();
}

#[test]
fn an_owner_that_will_not_move_a_frame_is_found_out_and_loses_nothing() {
    let m = filled([200, 200, 200, 200, 200, 200]);
    let before = contents(&m);
    let stubborn = Pfn::new(512 + 20);
    m.user
        .answers
        .lock()
        .unwrap()
        .insert(stubborn, Outcome::Refused);
    let refused = Err(EvacuateError::Refused(stubborn).into());
    assert_eq!(ask_at(&m, 0, 2 * 512), refused);
    assert_eq!(contents(&m), before);
    all_open(&m, 0..6);
    m.check_at_rest();
    // Elsewhere there is no such frame.
    let range = ask(&m, ContiguousRequest::unmovable(2 * 512)).unwrap();
    assert!(range[0] >= Pfn::new(2 * 512));
    m.check_at_rest();
}

#[test]
fn the_next_window_is_tried_after_a_refusal() {
    let m = filled([60, 60, 100, 100, 300, 300, 300]);
    let stubborn = m.user.frames()[70];
    m.user.refuse(stubborn);
    let range = ask(&m, ContiguousRequest::unmovable(1024)).unwrap();
    assert_eq!(range[0], Pfn::new(2 * 512));
    assert_eq!(m.event(Event::CompactRefusedOwner), 1);
    release(&m, range);
    m.check_at_rest();
    // Where every window has one, it is the error, again and again.
    let m = filled([100; 7]);
    for number in [1, 3, 5] {
        let stubborn = m.user.frames().into_iter();
        let of_block = |frame: &Pfn| block_number(*frame) == number;
        stubborn.filter(of_block).for_each(|f| m.user.refuse(f));
    }
    for _ in 0..3 {
        let result = ask(&m, ContiguousRequest::unmovable(3 * 512)).map(|range| range.len());
        assert!(
            matches!(
                result,
                Err(ContiguousError::Evacuate(EvacuateError::Refused(_)))
            ),
            "{result:?}"
        );
        m.check_at_rest();
    }
}

#[test]
fn what_can_never_be_served_is_reported() {
    let (one, other) = (0..1024, [1024..1324, 1536..4 * 512]);
    let zones = [std::slice::from_ref(&one), &other];
    let m = machine::zoned(&zones, CompactionConfig::default());
    let error = |frames| ask(&m, ContiguousRequest::unmovable(frames)).unwrap_err();
    assert_eq!(error(0), ContiguousError::Empty);
    // Longer than memory, longer than a zone's stretch.
    for frames in [1025, 2048, 4096, usize::MAX] {
        assert_eq!(error(frames), ContiguousError::NoMemory);
    }
    // Across zones, into a hole, past the end, past all numbers.
    for (first, frames) in [
        (900, 200),
        (1024, 10),
        (1600, 600),
        (5000, 1),
        (100, usize::MAX),
        (u64::MAX, 2),
    ] {
        let outside = Err(ContiguousError::NoMemory);
        assert_eq!(ask_at(&m, first, frames), outside, "{first} {frames}");
    }
    assert_eq!(ask_at(&m, 0, 0), Err(ContiguousError::Empty));
    // Memory, but never movable: each block has an unmovable frame.
    let m = filled([500, 500, 500]);
    for frame in [3, 512 + 3, 1024 + 3] {
        m.frames.set_flags(Pfn::new(frame), FrameFlags::PINNED);
    }
    m.thin(|frame| frame.offset_in_block() > 10);
    assert_eq!(
        ask(&m, ContiguousRequest::unmovable(1)),
        Err(ContiguousError::NoWindow)
    );
    assert_eq!(ask_at(&m, 9, 1), Err(EvacuateError::Unmovable.into()));
    m.check_at_rest();
}

#[test]
fn room_in_blocks_of_other_types_is_no_room() {
    let m = blocks(4);
    // Much room, and all of it in a block for unmovable frames.
    let unmovable = m.frames.alloc(CPU, AllocRequest::unmovable()).unwrap();
    m.fill_and_keep(|frame| frame.offset_in_block() < [0, 500, 500, 500][block_number(frame)]);
    m.frames.set_watermarks(
        m.frames.zones().next().unwrap(),
        Watermarks {
            min: 0,
            low: 0,
            high: 0,
        },
    );
    assert_eq!(block_number(unmovable), 0);
    let before = (m.user.frames(), m.frames.free_frames());
    assert_eq!(ask_at(&m, 512, 1), Err(EvacuateError::NoTargets.into()));
    assert_eq!((m.user.frames(), m.frames.free_frames()), before);
    assert_eq!(m.event(Event::CompactIsolated), 0);
    m.check_at_rest();
}

#[test]
fn a_host_that_does_not_answer_ends_the_call() {
    let m = blocks(6);
    m.inflate_and_keep(|frame| {
        frame.offset_in_block() < [60, 60, 90, 90, 400, 400][block_number(frame)]
    });
    let before = contents(&m);
    *m.balloon.answer.lock().unwrap() = Answer::Never;
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    let begun = m.platform.clock.load(Ordering::Relaxed);
    let result = ask(&m, ContiguousRequest::unmovable(600));
    assert_eq!(result, Err(EvacuateError::TimedOut.into()));
    let waited = m.platform.clock.load(Ordering::Relaxed) - begun;
    assert!((50_000_000..52_000_000).contains(&waited), "{waited} ns");
    all_open(&m, 0..6);
    m.check();
    m.settle(m.balloon, Outcome::Moved);
    assert_eq!(contents(&m), before);
    m.check_at_rest();
}

#[test]
fn a_frame_that_is_under_way_for_a_moment_does_not_end_a_long_range() {
    let m = filled([300, 300, 300, 100, 100, 100, 100]);
    let before = contents(&m);
    let frame = Pfn::new(512 + 7);
    let (frames, calls) = (m.frames, AtomicUsize::new(0));
    // While the first block moves, somebody takes a frame of the second; while the third moves, it is back.
    *m.user.hook.lock().unwrap() = Some(Box::new(move || {
        let step = |from, to| frames.transition(frame, from, to).unwrap();
        match calls.fetch_add(1, Ordering::Relaxed) {
            0 => step(FrameState::Listed, FrameState::Allocated),
            1 => step(FrameState::Allocated, FrameState::Listed),
            _ => {}
        }
    }));
    let range = ask_at(&m, 0, 3 * 512).unwrap();
    assert_eq!(contents(&m), before);
    assert_eq!(m.event(Event::CompactRefusedUnderWay), 1);
    release(&m, range);
    m.check_at_rest();
    assert_eq!(m.frames.ledger(m.block(1)).refusal(), Refusal::None);
}

#[test]
fn a_frame_that_stays_under_way_ends_the_window() {
    let m = filled([300, 300, 100, 100, 100, 100]);
    let before = contents(&m);
    let frame = Pfn::new(512 + 7);
    let (frames, calls) = (m.frames, AtomicUsize::new(0));
    *m.user.hook.lock().unwrap() = Some(Box::new(move || {
        if calls.fetch_add(1, Ordering::Relaxed) == 0 {
            frames
                .transition(frame, FrameState::Listed, FrameState::Allocated)
                .unwrap();
        }
    }));
    let under_way = Err(EvacuateError::UnderWay(frame).into());
    assert_eq!(ask_at(&m, 0, 2 * 512), under_way);
    assert_eq!(m.free_in(m.block(0)), 512, "what moved stays");
    all_open(&m, 0..6);
    m.frames
        .transition(frame, FrameState::Allocated, FrameState::Listed)
        .unwrap();
    assert_eq!(contents(&m), before);
    m.check_at_rest();
}

#[test]
fn a_block_that_is_being_emptied_is_left_alone() {
    let m = filled([100; 5]);
    let token = m.frames.isolate_block(m.block(2)).unwrap();
    let isolated = EvacuateError::Isolate(IsolateError::Isolated);
    assert_eq!(ask_at(&m, 512, 1024), Err(isolated.into()));
    assert_eq!(m.event(Event::CompactRefusedUnderWay), 0);
    let request = ContiguousRequest::unmovable(3 * 512).with_watermark(Watermark::None);
    assert_eq!(ask(&m, request), Err(ContiguousError::NoWindow));
    m.frames.unisolate_block(token);
    assert!(ask_at(&m, 512, 1024).is_ok());
    m.check_at_rest();
}

#[test]
fn a_range_inside_compaction_is_turned_away() {
    let m = filled([40, 300, 400, 400]);
    let mobility = m.mobility;
    *m.user.hook.lock().unwrap() = Some(Box::new(move || {
        let result = mobility.alloc_contiguous(CPU, ContiguousRequest::unmovable(8));
        assert_eq!(result, Err(EvacuateError::Busy.into()));
    }));
    let range = ask(&m, ContiguousRequest::unmovable(8)).unwrap();
    assert_eq!(range[0], Pfn::new(0));
    m.check_at_rest();
}
