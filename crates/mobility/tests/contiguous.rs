//! Contiguous ranges that are given: where they lie, what they are, what moves for them.

mod machine;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use dirigible_frames::{
    AllocRequest, CpuId, Event, FrameClass, FrameState, Migratetype, Order, Pfn, Watermark,
    Watermarks,
};
use dirigible_mobility::{
    CompactionConfig, ContiguousError, ContiguousRequest, EvacuateError, MAX_RANGE_USED, Outcome,
};
use machine::ranges::{all_open, ask, ask_at, block_number, contents, filled, release};
use machine::{CPU, blocks, machine};

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
    // To the exact frame.
    let zone = m.frames.zones().next().unwrap();
    let min = m.frames.free_frames() - 1024;
    let (low, high) = (min, min);
    m.frames.set_watermarks(zone, Watermarks { min, low, high });
    // The only whole blocks are not neighbours.
    let range = ask(&m, ContiguousRequest::unmovable(1024)).unwrap();
    assert_eq!(range[0], Pfn::new(512));
    assert_eq!(contents(&m), before);
    assert!(m.free_in(m.block(4)) < 512);
    m.check_at_rest();
    // Where there is no room at all, everything stays.
    let free = m.frames.free_frames();
    let request = ContiguousRequest::unmovable(1024).with_watermark(Watermark::None);
    assert_eq!(ask(&m, request), Err(ContiguousError::BelowWatermark));
    assert_eq!(m.frames.free_frames(), free);
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
                        assert_eq!(m.frames.state(frame), FrameState::Allocated);
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

/// Makes the other thread end, also when this one panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn ranges_are_given_while_memory_is_in_use() {
    let m = filled([150; 12]);
    let done = AtomicBool::new(false);
    let next = |seed: &mut u64| {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        *seed >> 33
    };
    std::thread::scope(|scope| {
        // Somebody allocates, frees, and wants huge pages.
        scope.spawn(|| {
            let (cpu, mut seed) = (CpuId::new(1), 5);
            let mut huge = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let start = Pfn::new(next(&mut seed) % (12 * 512));
                if m.user.free_next(cpu, start)
                    && let Ok(frame) = m.frames.alloc(cpu, AllocRequest::movable())
                {
                    m.user.list(frame);
                }
                if next(&mut seed) % 64 == 0 {
                    huge.extend(m.frames.alloc(cpu, AllocRequest::huge()));
                }
                if next(&mut seed) % 32 == 0
                    && let Some(head) = huge.pop()
                {
                    m.frames.free(cpu, head, Order::HUGE).unwrap();
                }
            }
            for head in huge {
                m.frames.free(cpu, head, Order::HUGE).unwrap();
            }
        });
        let _ends = Ends(&done);
        let mut seed = 3;
        let mut given = 0;
        for round in 0..1500 {
            let frames = 1 + next(&mut seed) as usize % 1800;
            let request = ContiguousRequest::unmovable(frames);
            let range = if round % 2 == 0 {
                ask(&m, request)
            } else {
                ask_at(&m, next(&mut seed) % (8 * 512), frames)
            };
            if let Ok(range) = range {
                release(&m, range);
                given += 1;
            }
        }
        assert!(given > 0);
    });
    contents(&m);
    m.check_at_rest();
}
