//! Contiguous ranges: what they need moves elsewhere, or everything stays as it was.

mod machine;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dirigible_frames::{
    AllocRequest, BlockState, CpuId, Event, FrameClass, FrameFlags, FrameState, IsolateError,
    Migratetype, Order, OwnerClass, Pfn, Refusal, Watermark, Watermarks,
};
use dirigible_mobility::{
    CompactionConfig, ContiguousError, ContiguousRequest, EvacuateError, MAX_RANGE_USED, Outcome,
};
use machine::{Answer, CPU, Machine, blocks, machine};
use proptest::prelude::*;

fn block_number(frame: Pfn) -> usize {
    frame.get() as usize / 512
}

/// A machine with so many movable frames in the blocks.
fn filled<const N: usize>(used: [usize; N]) -> Machine {
    let m = blocks(N as u64);
    m.fill_and_keep(|frame| frame.offset_in_block() < used[block_number(frame)]);
    m
}

/// Frames in a row as the caller gets them; the test holds them.
fn own(m: &Machine, first: Pfn, frames: usize, class: FrameClass) -> Vec<Pfn> {
    let range: Vec<_> = (0..frames as u64).map(|at| first.plus(at)).collect();
    for &frame in &range {
        let info = m.frames.frame(frame).unwrap();
        assert_eq!(
            (info.state, info.class, info.order, info.owner),
            (FrameState::Owned, class, Order::BASE, OwnerClass::default()),
            "{frame}"
        );
        for owner in [m.user, m.balloon] {
            assert!(!owner.contents.lock().unwrap().contains_key(&frame));
        }
        assert!(
            m.singles.lock().unwrap().insert(frame),
            "{frame} given twice"
        );
    }
    range
}

fn ask(m: &Machine, request: ContiguousRequest) -> Result<Vec<Pfn>, ContiguousError> {
    let first = m.mobility.alloc_contiguous(CPU, request)?;
    assert!(first.is_aligned(request.align));
    Ok(own(m, first, request.frames, request.class))
}

fn ask_at(m: &Machine, first: u64, frames: usize) -> Result<Vec<Pfn>, ContiguousError> {
    let (first, class) = (Pfn::new(first), FrameClass::Unmovable);
    m.mobility
        .alloc_at(CPU, first, frames, class, Watermark::Min)?;
    Ok(own(m, first, frames, class))
}

fn release(m: &Machine, frames: impl IntoIterator<Item = Pfn>) {
    for frame in frames {
        assert!(m.singles.lock().unwrap().remove(&frame));
        m.frames.free(CPU, frame, Order::BASE).unwrap();
    }
}

/// Everything that the owners have in their frames.
fn contents(m: &Machine) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for owner in [m.user, m.balloon] {
        let contents = owner.contents.lock().unwrap();
        let mut known = owner.books.lock().unwrap().clone();
        known.extend(owner.pending.lock().unwrap().iter().map(|pair| pair.from));
        assert!(contents.keys().eq(known.iter()), "a frame without contents");
        for &content in contents.values() {
            assert!(all.insert(content), "twice in memory");
        }
    }
    all
}

fn all_open(m: &Machine, blocks: impl Iterator<Item = u32>) {
    for number in blocks {
        let state = m.frames.ledger(m.block(number)).state();
        assert_eq!(state, BlockState::Open, "{number}");
    }
}

#[test]
fn a_range_spans_several_fragmented_blocks() {
    let m = filled([400, 400, 90, 100, 110, 120, 400, 300]);
    let before = contents(&m);
    let range = ask(&m, ContiguousRequest::unmovable(3 * 512 + 100)).unwrap();
    assert_eq!(range[0], Pfn::new(2 * 512), "the cheapest four blocks");
    assert_eq!(contents(&m), before);
    assert_eq!(m.event(Event::PgmigrateSuccess), 420);
    assert_eq!(m.event(Event::CompactBlockEmptied), 4);
    m.check_at_rest();
    // What is left over of the last block is free, for others of the same kind.
    let last = m.frames.ledger(m.block(5));
    assert_eq!((last.free(), last.unmovable()), (412, 100));
    assert_eq!(last.migratetype(), Migratetype::Unmovable);
    // In any order.
    let (even, odd): (Vec<_>, Vec<_>) = range.into_iter().partition(|frame| frame.get() % 2 == 0);
    release(&m, even.into_iter().rev());
    m.check_at_rest();
    release(&m, odd);
    m.check_at_rest();
    assert!((2..6).all(|number| m.free_in(m.block(number)) == 512));
}

#[test]
fn a_range_at_a_named_place_begins_and_ends_anywhere() {
    let m = filled([100, 300, 80, 60, 450, 400]);
    let before = contents(&m);
    let range = ask_at(&m, 2 * 512 + 500, 100).unwrap();
    assert_eq!(range.len(), 100);
    assert_eq!(contents(&m), before);
    assert_eq!(
        (m.free_in(m.block(2)), m.free_in(m.block(3))),
        (500, 512 - 88)
    );
    m.check_at_rest();
    // A second one cannot have it, and finds it as it was.
    assert_eq!(ask_at(&m, 3 * 512, 1), Err(EvacuateError::Unmovable.into()));
    release(&m, range);
    m.check_at_rest();
    // A single frame in the middle, of a block that is wholly free by now.
    let moved = m.event(Event::PgmigrateSuccess);
    let one = ask_at(&m, 2 * 512 + 77, 1).unwrap();
    assert_eq!(m.free_in(m.block(2)), 511);
    assert_eq!(m.event(Event::PgmigrateSuccess), moved);
    release(&m, one);
    m.check_at_rest();
}

#[test]
fn classes_other_than_unmovable_serve_as_well() {
    for class in [FrameClass::Movable, FrameClass::Reclaimable] {
        let m = filled([300, 40, 50, 400, 400]);
        let range = ask(&m, ContiguousRequest::new(600, class)).unwrap();
        assert_eq!(range[0], Pfn::new(512));
        let ledger = m.frames.ledger(m.block(1));
        assert_eq!(ledger.migratetype(), class.migratetype());
        m.check_at_rest();
        release(&m, range);
        m.check_at_rest();
    }
}

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
        // The refusal is known by now: that block is tried first, and no other is touched.
        assert_eq!(ask_at(&m, 0, 3 * 512), refused);
        assert_eq!(m.event(Event::PgmigrateSuccess), moves);
        m.user.allow(stubborn);
        let range = ask_at(&m, 0, 3 * 512).unwrap();
        assert_eq!(contents(&m), before.1);
        release(&m, range);
        m.check_at_rest();
    }
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
    // Where every window has one, the error says so, again and again.
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
fn the_watermark_holds_for_the_whole_range() {
    for (missing, watermark) in [
        (0, Watermark::Min),
        (1, Watermark::Min),
        (0, Watermark::Low),
        (1, Watermark::Low),
        (0, Watermark::High),
        (1, Watermark::None),
    ] {
        let m = filled([100, 100, 400, 300, 300]);
        let free = m.frames.free_frames();
        let mark = free - 1024 + missing;
        let marks = match watermark {
            Watermark::Low => Watermarks {
                min: 1,
                low: mark,
                high: mark + 900,
            },
            Watermark::High => Watermarks {
                min: 1,
                low: 2,
                high: mark,
            },
            _ => Watermarks {
                min: mark,
                low: mark + 900,
                high: mark + 900,
            },
        };
        m.frames
            .set_watermarks(m.frames.zones().next().unwrap(), marks);
        // What is free never falls below the mark while things move.
        let lowest: &'static _ = Box::leak(Box::new(Mutex::new(free)));
        let frames = m.frames;
        *m.user.hook.lock().unwrap() = Some(Box::new(move || {
            let mut lowest = lowest.lock().unwrap();
            *lowest = frames.free_frames().min(*lowest);
        }));
        let request = ContiguousRequest::unmovable(1024).with_watermark(watermark);
        let result = ask(&m, request);
        if missing == 1 && watermark != Watermark::None {
            assert_eq!(result, Err(ContiguousError::BelowWatermark));
            assert_eq!(m.event(Event::CompactIsolated), 0);
            assert_eq!(m.frames.free_frames(), free);
        } else {
            assert_eq!(result.unwrap()[0], Pfn::new(0));
            assert_eq!(*lowest.lock().unwrap(), free - 1024);
        }
        m.check_at_rest();
    }
}

#[test]
fn a_range_begins_where_it_is_aligned() {
    // The machine's memory begins at an odd block.
    let m = machine(512..9 * 512, CompactionConfig::default());
    m.fill_and_keep(|frame| {
        frame.offset_in_block() < if block_number(frame) < 3 { 10 } else { 100 }
    });
    for (order, frames) in [(0, 700), (3, 8), (9, 513), (10, 1024)] {
        let request = ContiguousRequest::unmovable(frames).aligned(Order::new(order).unwrap());
        let range = ask(&m, request).unwrap();
        assert!(range[0].is_aligned(request.align));
        release(&m, range);
        m.check_at_rest();
    }
    // With one block there is no second place.
    let m = machine(512..2 * 512, CompactionConfig::default());
    let request = ContiguousRequest::unmovable(1).aligned(Order::MAX);
    assert_eq!(ask(&m, request), Err(ContiguousError::NoMemory));
}

#[test]
fn what_cannot_be_is_said_so() {
    let zones: &[&[_]] = &[&[0..1024], &[1024..1324, 1536..4 * 512]];
    let m = machine::zoned(zones, CompactionConfig::default());
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
    // Memory, but never movable: in each block a frame for good.
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
fn a_wholly_free_stretch_is_taken_without_moving_anything() {
    let m = filled([1, 0, 1, 0, 0, 0, 200, 0]);
    // What lies in a CPU's cache does not hide it.
    let cached = m.map().unwrap();
    m.user.free(cached);
    let free = m.frames.free_frames();
    let range = ask(&m, ContiguousRequest::unmovable(1100)).unwrap();
    assert_eq!(range[0], Pfn::new(3 * 512));
    assert_eq!(m.event(Event::CompactIsolated), 0);
    assert_eq!(m.event(Event::CompactBlockEmptied), 0);
    m.check_at_rest();
    release(&m, range);
    m.frames.drain_cpu_caches();
    assert!(m.frames.free_frames() >= free);
    m.check_at_rest();
}

#[test]
fn a_whole_block_outside_is_broken_where_there_are_no_other_targets() {
    let m = filled([511, 0, 500, 500, 0, 511, 0]);
    let before = contents(&m);
    // The only whole blocks are not neighbours.
    let range = ask(&m, ContiguousRequest::unmovable(1024)).unwrap();
    assert_eq!(range[0], Pfn::new(512));
    assert_eq!(contents(&m), before);
    assert!(m.free_in(m.block(4)) < 512);
    m.check_at_rest();
    // A reserve of whole blocks is kept, and so is everything where there is no room at all.
    let free = m.frames.free_frames();
    let request = ContiguousRequest::unmovable(1024).with_watermark(Watermark::None);
    assert_eq!(ask(&m, request), Err(ContiguousError::BelowWatermark));
    assert_eq!(m.frames.free_frames(), free);
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
fn balloon_frames_of_several_blocks_share_exchanges_and_busy_owners_are_asked_again() {
    let m = blocks(8);
    m.inflate_and_keep(|frame| {
        frame.offset_in_block() < [60, 60, 60, 60, 400, 400, 400, 400][block_number(frame)]
    });
    let before = contents(&m);
    *m.balloon.always.lock().unwrap() = Some(Outcome::Pending);
    m.balloon.room.store(100, Ordering::Relaxed);
    let range = ask(&m, ContiguousRequest::unmovable(4 * 512)).unwrap();
    assert_eq!(range[0], Pfn::new(0));
    assert_eq!(m.balloon.batches.lock().unwrap()[0], 240);
    assert!(m.balloon.batches.lock().unwrap().len() > 1);
    assert_eq!(m.event(Event::CompactBalloonMigrated), 240);
    assert_eq!(contents(&m), before);
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
    m.balloon.settle(Outcome::Moved);
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
            0 => step(FrameState::Listed, FrameState::Owned),
            1 => step(FrameState::Owned, FrameState::Listed),
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
                .transition(frame, FrameState::Listed, FrameState::Owned)
                .unwrap();
        }
    }));
    let under_way = Err(EvacuateError::UnderWay(frame).into());
    assert_eq!(ask_at(&m, 0, 2 * 512), under_way);
    assert_eq!(m.free_in(m.block(0)), 512, "what moved stays");
    all_open(&m, 0..6);
    m.frames
        .transition(frame, FrameState::Owned, FrameState::Listed)
        .unwrap();
    assert_eq!(contents(&m), before);
    m.check_at_rest();
}

#[test]
fn a_block_that_somebody_empties_is_left_to_him() {
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
fn huge_pages_and_ranges_are_passed_over() {
    let m = filled([0, 0, 0, 0, 0, 50, 400, 400]);
    let huge = m.take_huge();
    assert_eq!(huge, Pfn::new(0));
    let first = ask(&m, ContiguousRequest::unmovable(513)).unwrap();
    let second = ask(&m, ContiguousRequest::new(1000, FrameClass::Movable)).unwrap();
    assert_eq!(
        (first[0], second[0]),
        (Pfn::new(512), Pfn::new(3 * 512)),
        "nothing overlaps"
    );
    assert_eq!(ask_at(&m, 0, 512), Err(EvacuateError::Unmovable.into()));
    let in_use = ask_at(&m, 3 * 512, 512);
    assert_eq!(
        in_use,
        Err(EvacuateError::UnderWay(Pfn::new(3 * 512)).into())
    );
    release(&m, first.into_iter().chain(second));
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

#[test]
fn a_range_has_a_bound_of_partly_used_blocks_and_none_of_free_ones() {
    let all = MAX_RANGE_USED + 40;
    let m = blocks(all as u64);
    let request = AllocRequest::huge().with_watermark(Watermark::None);
    let heads: Vec<_> = (0..all)
        .map(|_| m.frames.alloc(CPU, request).unwrap())
        .collect();
    // One frame in each of the first blocks; the others are free, but for the last, which has room for all.
    for &head in &heads {
        m.frames.split_huge(head);
        let number = block_number(head);
        let stays = match number {
            n if n <= MAX_RANGE_USED + 3 => 1,
            n if n == all - 2 => 1,
            _ => 0,
        };
        for at in 0..512 {
            let frame = head.plus(at);
            if at < stays {
                m.user.list(frame);
            } else {
                m.frames.free_bulk(CPU, &[frame]).unwrap();
            }
        }
    }
    m.check_at_rest();
    let before = contents(&m);
    // Any stretch as long as this has more of them.
    let long = ContiguousRequest::unmovable((all - 3) * 512);
    assert_eq!(ask(&m, long), Err(ContiguousError::NoWindow));
    let too_many = ask_at(&m, 0, (MAX_RANGE_USED + 1) * 512);
    assert_eq!(too_many, Err(EvacuateError::NoRoom.into()));
    all_open(&m, 0..all as u32);
    assert_eq!(contents(&m), before);
    // Without the first few it can be done.
    let range = ask_at(&m, 4 * 512, (all - 6) * 512).unwrap();
    assert_eq!(contents(&m), before);
    m.check_at_rest();
    release(&m, range);
    m.check_at_rest();
}

#[test]
fn two_cpus_ask_at_once() {
    let m = filled([90; 14]);
    let before = contents(&m);
    let taken = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (m, taken) = (&m, &taken);
            scope.spawn(move || {
                let cpu = CpuId::new(cpu);
                let mut got = 0;
                let mut seed = 77 + cpu.index() as u64;
                for round in 0..100_000 {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let frames = 1 + (seed >> 33) as usize % 1500;
                    let class = [FrameClass::Unmovable, FrameClass::Movable][round % 2];
                    let request = ContiguousRequest::new(frames, class);
                    let first = match m.mobility.alloc_contiguous(cpu, request) {
                        Ok(first) => first,
                        // The other has it just now.
                        Err(
                            ContiguousError::NoWindow
                            | ContiguousError::BelowWatermark
                            | ContiguousError::Evacuate(_),
                        ) => {
                            std::thread::yield_now();
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    let range = (0..frames as u64).map(|at| first.plus(at));
                    for frame in range.clone() {
                        assert_eq!(m.frames.state(frame), FrameState::Owned);
                        assert!(taken.lock().unwrap().insert(frame), "{frame} twice");
                    }
                    for frame in range.rev() {
                        assert!(taken.lock().unwrap().remove(&frame));
                        m.frames.free(cpu, frame, Order::BASE).unwrap();
                    }
                    got += 1;
                    if got == 60 {
                        return;
                    }
                }
                panic!("only {got} ranges");
            });
        }
    });
    assert_eq!(contents(&m), before);
    m.check_at_rest();
}

#[derive(Clone, Debug)]
enum Step {
    Fill(u16),
    Map(u16),
    Inflate(u16),
    Unmovable,
    FreeUnmovable(u16),
    Thin(u16),
    FreeOne(u16),
    Pin(u16),
    Unpin,
    Stubborn(u16),
    Docile,
    Say(u8, u8),
    Answer(u8),
    Room(u8),
    Settle(u8),
    Direct,
    FreeHuge,
    Contiguous {
        frames: usize,
        align: u8,
        class: u8,
        watermark: u8,
    },
    At {
        place: u64,
        frames: usize,
        class: u8,
        watermark: u8,
    },
    /// Frees every n-th frame that ranges have given.
    FreePieces(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let frames = || prop_oneof![1usize..64, 1usize..600, 500usize..2200];
    prop_oneof![
        1 => (1u16..100).prop_map(Step::Fill),
        2 => (1u16..600).prop_map(Step::Map),
        2 => (1u16..600).prop_map(Step::Inflate),
        1 => Just(Step::Unmovable),
        2 => any::<u16>().prop_map(Step::FreeUnmovable),
        4 => (2u16..6).prop_map(Step::Thin),
        2 => any::<u16>().prop_map(Step::FreeOne),
        1 => any::<u16>().prop_map(Step::Pin),
        2 => Just(Step::Unpin),
        1 => any::<u16>().prop_map(Step::Stubborn),
        1 => Just(Step::Docile),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(n, kind)| Step::Say(n, kind)),
        1 => any::<u8>().prop_map(Step::Answer),
        1 => any::<u8>().prop_map(Step::Room),
        2 => any::<u8>().prop_map(Step::Settle),
        1 => Just(Step::Direct),
        1 => Just(Step::FreeHuge),
        8 => (frames(), 0u8..11, 0u8..4, 0u8..4).prop_map(|(frames, align, class, watermark)| {
            Step::Contiguous { frames, align, class, watermark }
        }),
        6 => (any::<u64>(), frames(), 0u8..4, 0u8..4).prop_map(|(place, frames, class, watermark)| {
            Step::At { place, frames, class, watermark }
        }),
        4 => (1usize..4).prop_map(Step::FreePieces),
    ]
}

const WATERMARKS: [Watermark; 4] = [
    Watermark::None,
    Watermark::Min,
    Watermark::Low,
    Watermark::High,
];

fn outcome(kind: u8) -> Outcome {
    match kind % 5 {
        0 => Outcome::Moved,
        1 => Outcome::Refused,
        2 => Outcome::Released,
        3 => Outcome::Busy,
        _ => Outcome::Pending,
    }
}

fn listed(m: &Machine, at: u16) -> Option<Pfn> {
    let mut frames = m.user.frames();
    frames.extend(m.balloon.frames());
    (!frames.is_empty()).then(|| frames[usize::from(at) % frames.len()])
}

#[derive(Default)]
struct Held {
    unmovable: Vec<Pfn>,
    huge: Vec<Pfn>,
    pinned: Vec<Pfn>,
    /// How many ranges there were.
    ranges: usize,
}

/// A range was asked for: if it was given, nothing lies in it, and nothing moved from one frame of its blocks to another.
fn asked(
    m: &Machine,
    held: &mut Held,
    result: Result<Pfn, ContiguousError>,
    (frames, class): (usize, FrameClass),
    before: Before,
) {
    let Ok(first) = result else { return };
    let blocks = |frame: Pfn| frame.block_base();
    let range = own(m, first, frames, class);
    held.ranges += 1;
    let window = blocks(range[0])..=blocks(*range.last().unwrap());
    if m.event(Event::CompactBlockAborted) != before.aborted {
        // A window was given up before this one, and its frames may have moved into this one.
        return;
    }
    for (owner, seen) in [m.user, m.balloon].into_iter().zip(before.seen) {
        for &(from, to) in &owner.seen.lock().unwrap()[seen..] {
            let moved_inside = window.contains(&blocks(from)) && window.contains(&blocks(to));
            assert!(
                !moved_inside,
                "{from} to {to} for {first} and {frames} frames"
            );
        }
    }
}

/// What there was when a range was asked for.
struct Before {
    seen: [usize; 2],
    aborted: u64,
}

fn before(m: &Machine) -> Before {
    Before {
        seen: [m.user, m.balloon].map(|owner| owner.seen.lock().unwrap().len()),
        aborted: m.event(Event::CompactBlockAborted),
    }
}

fn released(m: &Machine) -> usize {
    let of = |owner: &machine::MockOwner| owner.released.load(Ordering::Relaxed);
    of(m.user) + of(m.balloon)
}

fn take(m: &Machine, step: Step, held: &mut Held) {
    let frames = m.frames;
    match step {
        Step::Fill(turn) => {
            let map = || (0..turn).filter(|_| m.map().is_some()).count();
            while map() + m.inflate(turn.into()) > 0 {}
        }
        Step::Map(count) => {
            for _ in 0..count {
                m.map();
            }
        }
        Step::Inflate(count) => {
            m.inflate(count.into());
        }
        Step::Unmovable => {
            let request = AllocRequest::unmovable().with_watermark(Watermark::None);
            held.unmovable.extend(frames.alloc(CPU, request));
        }
        Step::FreeUnmovable(at) => {
            if !held.unmovable.is_empty() {
                let at = usize::from(at) % held.unmovable.len();
                let frame = held.unmovable.swap_remove(at);
                frames.free(CPU, frame, Order::BASE).unwrap();
            }
        }
        Step::Thin(nth) => m.thin(|frame| frame.get() % u64::from(nth) != 0),
        Step::FreeOne(at) => {
            if let Some(frame) = listed(m, at) {
                m.owner_of(frame).free(frame);
            }
        }
        Step::Pin(at) => {
            if let Some(frame) = listed(m, at) {
                frames.set_flags(frame, FrameFlags::PINNED);
                held.pinned.push(frame);
            }
        }
        Step::Unpin => {
            held.pinned
                .drain(..)
                .for_each(|frame| frames.clear_flags(frame, FrameFlags::PINNED));
        }
        Step::Stubborn(at) => {
            if let Some(frame) = listed(m, at) {
                m.owner_of(frame).refuse(frame);
            }
        }
        Step::Docile => {
            for owner in [m.user, m.balloon] {
                owner.stubborn.lock().unwrap().clear();
                owner.script.lock().unwrap().clear();
                *owner.always.lock().unwrap() = None;
            }
        }
        Step::Say(n, kind) => {
            let owner = if n % 2 == 0 { m.user } else { m.balloon };
            owner.script.lock().unwrap().clear();
            owner.say((0..n / 2).map(|_| Outcome::Moved));
            owner.say([outcome(kind)]);
        }
        Step::Answer(kind) => {
            let answer = [
                Answer::Never,
                Answer::Moved,
                Answer::Refused,
                Answer::Released,
            ][usize::from(kind) % 4];
            *m.user.answer.lock().unwrap() = answer;
            *m.balloon.answer.lock().unwrap() = answer;
        }
        Step::Room(kind) => {
            // From now on the balloon answers late, and takes few at a time.
            let always = [None, Some(Outcome::Pending)][usize::from(kind) % 2];
            *m.balloon.always.lock().unwrap() = always;
            let room = [1, 20, 100, usize::MAX][usize::from(kind / 2) % 4];
            m.balloon.room.store(room, Ordering::Relaxed);
        }
        Step::Settle(kind) => {
            m.user.settle(outcome(kind % 3));
            m.balloon.settle(outcome(kind / 4 % 3));
        }
        Step::Direct => {
            held.huge.extend(match m.direct(FrameClass::Unmovable) {
                dirigible_mobility::CompactResult::Captured(head) => Some(head),
                _ => None,
            });
        }
        Step::FreeHuge => {
            if let Some(head) = held.huge.pop() {
                m.free_huge(head);
            }
        }
        Step::Contiguous {
            frames,
            align,
            class,
            watermark,
        } => {
            let class = FrameClass::from_bits(class);
            let request = ContiguousRequest::new(frames, class)
                .aligned(Order::new(align).unwrap())
                .with_watermark(WATERMARKS[usize::from(watermark)]);
            let before = before(m);
            let result = m.mobility.alloc_contiguous(CPU, request);
            assert!(result.is_err() || result.unwrap().is_aligned(request.align));
            asked(m, held, result, (frames, class), before);
        }
        Step::At {
            place,
            frames: count,
            class,
            watermark,
        } => {
            let class = FrameClass::from_bits(class);
            let span = frames.blocks().len() as u64 * 512 + 600;
            let first = Pfn::new((frames.base().get() + place % span).saturating_sub(300));
            let watermark = WATERMARKS[usize::from(watermark)];
            let before = before(m);
            let result = m.mobility.alloc_at(CPU, first, count, class, watermark);
            asked(m, held, result.map(|()| first), (count, class), before);
        }
        Step::FreePieces(nth) => {
            let singles: Vec<_> = m.singles.lock().unwrap().iter().copied().collect();
            release(m, singles.into_iter().rev().step_by(nth));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn ranges_are_exclusive_and_no_contents_are_lost(
        start in 0u64..1200,
        lengths in proptest::collection::vec((600u64..3600, 0u64..900), 1..4),
        two_zones in any::<bool>(),
        (turn, thin) in (1u16..100, 2u16..6),
        budget_blocks in 1usize..5,
        exchange_batch in prop_oneof![Just(1), Just(16), Just(256)],
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let config = CompactionConfig {
            exchange_batch,
            budget_blocks,
            idle_polls: 20,
            ..CompactionConfig::default()
        };
        let mut ranges = Vec::new();
        let mut at = start;
        for (length, gap) in lengths {
            ranges.push(at..at + length);
            at += length + gap;
        }
        // Zones share no block.
        let above = at.next_multiple_of(512);
        let other = [above..above + 4 * 512];
        let m = if two_zones {
            machine::zoned(&[&ranges, &other], config)
        } else {
            machine::zoned(&[&ranges], config)
        };
        let mut held = Held::default();
        for step in [Step::Fill(turn), Step::Thin(thin), Step::Unmovable] {
            take(&m, step, &mut held);
        }
        for step in steps {
            let before = (contents(&m), released(&m));
            let asks = matches!(step, Step::Contiguous { .. } | Step::At { .. });
            // Pins and refusals are the mock's and go with the frame, which moves or is freed under them.
            let cached = matches!(step, Step::FreeOne(_));
            take(&m, step, &mut held);
            if !cached {
                m.check();
            }
            let after = contents(&m);
            if asks {
                prop_assert!(after.is_subset(&before.0));
                prop_assert_eq!(before.0.len() - after.len(), released(&m) - before.1);
                prop_assert_eq!(m.frames.isolated_blocks(), 0);
            }
        }
        m.user.settle(Outcome::Moved);
        m.balloon.settle(Outcome::Moved);
        take(&m, Step::Unpin, &mut held);
        m.check_at_rest();
        take(&m, Step::FreePieces(3), &mut held);
        m.check_at_rest();
        take(&m, Step::FreePieces(1), &mut held);
        held.huge.drain(..).for_each(|head| m.free_huge(head));
        held.unmovable.drain(..).for_each(|frame| m.frames.free(CPU, frame, Order::BASE).unwrap());
        m.thin(|_| true);
        m.check_at_rest();
        prop_assert_eq!(m.frames.free_frames(), m.frames.managed_frames());
    }
}
