//! What the cache does, one behaviour at a time.

mod support;

use std::sync::atomic::Ordering;

use dirigible_disk::DiskError;
use dirigible_frames::{Event, FrameFlags, FrameState, Order, Pfn, Platform};
use dirigible_mobility::{CompactionConfig, Fate, MovableOwner, Outcome};
use dirigible_pagecache::{BlockPages, CacheConfig, CacheError, Flusher};
use dirigible_reclaim::{Evictable, Kept, Stamp};
use support::*;

#[test]
fn a_block_is_read_once() {
    let w = world();
    assert_eq!(w.read(7), Ok(factory(7)));
    assert_eq!(w.read(7), Ok(factory(7)));
    assert_eq!(w.disk.log(), [(false, 7, 1)]);
    assert_eq!((w.event(Event::PgPgIn), w.cache.counts().pages), (4, 1));
    assert_eq!(w.read(4096), Err(CacheError::Beyond { block: 4096 }));
    assert_eq!(
        w.write(u64::MAX, [0, 0]),
        Err(CacheError::Beyond { block: u64::MAX })
    );
    w.check();
    w.end(0);
}

#[test]
fn reads_that_follow_each_other_read_ahead_more_and_more() {
    let w = world();
    for block in 100..200 {
        assert_eq!(w.read_ahead(block, 1000), Ok(factory(block)));
    }
    let log = w.disk.log();
    assert_eq!(
        log,
        [
            (false, 100, 4),
            (false, 104, 8),
            (false, 112, 16),
            (false, 128, 32),
            (false, 160, 32),
            (false, 192, 32)
        ]
    );
    // As far as is allowed, and as far as is absent.
    w.read(1004).unwrap();
    w.read_ahead(1000, 1).unwrap();
    w.read_ahead(1002, 10).unwrap();
    w.read_ahead(4094, 10).unwrap();
    let log = w.disk.log();
    assert_eq!(
        log,
        [
            (false, 1004, 1),
            (false, 1000, 2),
            (false, 1002, 2),
            (false, 4094, 2)
        ]
    );
    w.check();
    w.end(0);
}

#[test]
fn reading_ahead_spares_the_last_free_frames() {
    let w = build(Build {
        memory: 1,
        min: 64,
        config: CacheConfig {
            ahead_first: 32,
            ..Default::default()
        },
        ..Default::default()
    });
    let mut block = 0;
    loop {
        w.frames.drain_cpu_caches();
        if w.frames.free_frames() <= 90 {
            break;
        }
        w.read(block).unwrap();
        block += 1;
    }
    let (free, pages) = (w.frames.free_frames(), w.cache.counts().pages);
    w.read_ahead(3000, 32).unwrap();
    let taken = w.cache.counts().pages - pages;
    assert!((1..32).contains(&taken), "{taken} of {free}");
    w.source.empty.store(true, Ordering::Relaxed);
    assert_eq!(w.read(2000), Err(CacheError::OutOfMemory));
    assert_eq!(w.write(2000, [1, 1]), Err(CacheError::OutOfMemory));
    assert_eq!(w.read(0), Ok(factory(0)));
    w.check();
    w.end(0);
}

/// Nor does it take what other CPUs have in their caches.
#[test]
fn reading_ahead_that_is_refused_leaves_the_caches() {
    let w = build(Build {
        memory: 1,
        min: 160,
        ..Default::default()
    });
    run_on(1);
    let request = dirigible_frames::AllocRequest::movable();
    let cached = w.frames.alloc(w.machine.cpu(), request).unwrap();
    w.free(cached);
    run_on(0);
    let mut block = 0;
    while w.frames.free_frames() > 199 {
        w.read(block).unwrap();
        block += 1;
    }
    assert_eq!(w.frames.state(cached), FrameState::Cached);
    for block in (3000..3010).step_by(5) {
        w.read_ahead(block, 5).unwrap();
        assert!(!w.cache.contains(block + 1));
    }
    assert_eq!(w.frames.state(cached), FrameState::Cached);
    w.end(0);
}

#[test]
fn what_is_written_reaches_the_disk_in_runs() {
    let w = world();
    for block in 10..80 {
        w.write(block, [block, 1]).unwrap();
    }
    w.put(200, [200, 1], false).unwrap();
    assert_eq!(w.disk.log(), [(false, 200, 1)], "only a part of it is new");
    assert_eq!(w.cache.counts().dirty, 71);
    w.cache.sync(0..4096).unwrap();
    assert_eq!(
        w.disk.log(),
        [
            (true, 10, 32),
            (true, 42, 32),
            (true, 74, 6),
            (true, 200, 1)
        ]
    );
    assert!((10..80).all(|block| w.disk.contents(block) == [block, 1]));
    let counts = w.cache.counts();
    assert_eq!((counts.dirty, counts.writeback, counts.pages), (0, 0, 71));
    assert_eq!(
        (w.event(Event::NrDirtied), w.event(Event::NrWritten)),
        (71, 71)
    );
    assert_eq!(w.event(Event::PgPgOut), 71 * 4);
    w.cache.sync(0..4096).unwrap();
    assert!(w.disk.log().is_empty());
    w.check();
    w.end(0);
}

#[test]
fn a_page_that_is_being_written_stays_as_it_is() {
    let w = world();
    w.write(5, [1, 1]).unwrap();
    w.disk.set_auto(false);
    assert_eq!(w.write_out(w.frame(5).unwrap()), 1);
    assert!(w.has(5, FrameFlags::WRITEBACK));
    // Readers do not wait.
    assert_eq!(w.read(5), Ok([1, 1]));
    assert_eq!(w.evict(w.frame(5).unwrap(), 1), Err(Kept::Writeback));
    assert_eq!(BlockPages::drop_clean(w.cache, 0..10), 0);
    assert!(!MovableOwner::isolate(w.cache, w.frame(5).unwrap()));
    // The disk answers while the writer waits; the mock disk compares what it was sent with what it finds then.
    w.machine.at_relax(move || {
        w.disk.answer(1);
    });
    w.write(5, [2, 2]).unwrap();
    assert!(w.machine.on_relax.lock().unwrap().is_none(), "it waited");
    assert_eq!((w.disk.contents(5), w.read(5)), ([1, 1], Ok([2, 2])));
    assert!(w.has(5, FrameFlags::DIRTY));
    w.check();
    w.end(0);
}

#[test]
fn reclaim_takes_clean_pages_and_has_dirty_ones_written() {
    let w = world();
    w.read(1).unwrap();
    w.write(2, [2, 2]).unwrap();
    w.write(3, [3, 3]).unwrap();
    assert_eq!(w.evict(w.frame(1).unwrap(), 77), Ok(()));
    assert_eq!(w.evict(w.frame(2).unwrap(), 78), Err(Kept::Dirty));
    assert_eq!(w.check().shadows, 1);
    w.disk.set_auto(false);
    let frame = w.frame(2).unwrap();
    assert_eq!(w.write_out(frame), 2, "with its neighbour");
    assert_eq!(w.cache.dirty_and_writeback(), (0, 2));
    // The one that reclaim has met is the next that it takes.
    let age = w.frames.generation(frame);
    w.frames.set_flags(frame, FrameFlags::RECLAIM);
    w.settle();
    let marks = FrameFlags::RECLAIM.union(FrameFlags::WRITEBACK);
    assert!(!w.frames.flags(frame).intersects(marks));
    assert_ne!(w.frames.generation(frame), age);
    assert_eq!(w.frames.generation(w.frame(3).unwrap()), age);
    assert_eq!(w.evict(frame, 79), Ok(()));
    assert_eq!(w.frames.state(frame), FrameState::Cached);
    w.disk.set_auto(true);
    assert_eq!((w.read(2), w.read(1)), (Ok([2, 2]), Ok(factory(1))));
    assert_eq!(w.check().shadows, 0);
    w.end(0);
}

#[test]
fn contents_that_are_overwritten_do_not_come_back() {
    let w = world();
    for block in [1, 2] {
        w.read(block).unwrap();
        assert_eq!(w.evict(w.frame(block).unwrap(), 0), Ok(()));
    }
    w.write(1, [1, 1]).unwrap();
    assert_eq!(w.event(Event::WorkingsetRefault), 0);
    assert!(!w.has(1, FrameFlags::WORKINGSET));
    w.read(2).unwrap();
    assert_eq!(w.event(Event::WorkingsetRefault), 1);
    w.end(0);
}

#[test]
fn pages_move_with_their_marks() {
    let w = world();
    w.read(1).unwrap();
    w.write(2, [2, 3]).unwrap();
    let frame = w.frame(2).unwrap();
    w.frames
        .set_flags(frame, FrameFlags::REFERENCED.union(FrameFlags::WORKINGSET));
    for block in [1, 2] {
        let from = w.frame(block).unwrap();
        assert_eq!(w.move_frame(from), Some(Outcome::Moved));
        let to = w.frame(block).unwrap();
        assert!(to != from && w.notes.0.lock().unwrap().contains(&(block, to)));
    }
    let marks = FrameFlags::DIRTY.union(FrameFlags::REFERENCED);
    assert!(w.has(2, marks.union(FrameFlags::WORKINGSET)) && !w.has(1, FrameFlags::DIRTY));
    assert_eq!((w.read(1), w.read(2)), (Ok(factory(1)), Ok([2, 3])));
    assert_eq!(w.machine.moved.load(Ordering::Relaxed), 2);
    w.cache.sync(0..10).unwrap();
    assert_eq!(w.disk.contents(2), [2, 3]);
    // With a reference, and under writeback, it stays.
    w.write(2, [4, 4]).unwrap();
    let frame = w.frame(2).unwrap();
    assert!(w.frames.get_ref(frame));
    assert_eq!(w.move_frame(frame), None);
    assert!(w.isolate(frame) && w.frames.put_ref(frame));
    w.disk.set_auto(false);
    assert_eq!(w.cache.begin_write(frame), 1);
    let to = w
        .frames
        .alloc(w.machine.cpu(), dirigible_frames::AllocRequest::movable())
        .unwrap();
    let mut pairs = [dirigible_mobility::MovePair::base(frame, to)];
    w.cache.migrate(&mut pairs);
    assert_eq!(pairs[0].outcome, Outcome::Refused);
    w.cache.putback(frame);
    w.free(to);
    w.settle();
    w.check();
    w.end(0);
}

/// Reads a block, whose page is as one that was read ahead then: not used.
fn read_cold(w: &World, block: u64) -> Pfn {
    w.read(block).unwrap();
    let frame = w.frame(block).unwrap();
    w.frames.clear_flags(frame, FrameFlags::REFERENCED);
    frame
}

#[test]
fn cold_pages_are_dropped_where_they_are_emptied() {
    let w = world();
    let pages: Vec<Pfn> = (2..6).map(|block| read_cold(&w, block)).collect();
    let [cold, dirty, used, late] = pages[..] else {
        unreachable!()
    };
    let plan = |frame| MovableOwner::plan(w.cache, frame);
    w.put(3, [3, 3], true).unwrap();
    w.generations.used(used);
    for &frame in &pages {
        assert!(w.isolate(frame));
    }
    assert_eq!([cold, late].map(plan), [Fate::Drop; 2]);
    assert_eq!([dirty, used].map(plan), [Fate::Move; 2]);
    // Whatever is asked, what has changed stays.
    assert!(!w.cache.drop_frame(dirty) && !w.cache.drop_frame(used));
    w.put(5, [5, 5], true).unwrap();
    assert!(!w.cache.drop_frame(late), "it became dirty");
    for frame in [dirty, used, late] {
        assert_eq!(w.frames.state(frame), FrameState::Isolated);
        w.cache.putback(frame);
    }
    let before = w.generations.stamp();
    assert!(w.cache.drop_frame(cold));
    assert_eq!(w.generations.stamp().since(before), 1);
    assert_eq!(
        (w.frames.state(cold), w.frames.generation(cold)),
        (FrameState::Allocated, 0)
    );
    w.free(cold);
    assert_eq!(w.check().shadows, 1);
    assert_eq!((w.read(2), w.read(3)), (Ok(factory(2)), Ok([3, 3])));
    assert_eq!((w.read(4), w.read(5)), (Ok(factory(4)), Ok([5, 5])));
    assert_eq!(w.event(Event::WorkingsetRefault), 1);
    w.end(0);
}

/// Compaction and the cache together: a huge page is had by dropping, with no frame that could be a target.
#[test]
fn a_block_of_cold_pages_becomes_a_huge_page() {
    let w = build(Build {
        compaction: CompactionConfig {
            drops_cold: true,
            ..CompactionConfig::default()
        },
        ..Build::default()
    });
    // All memory: two blocks of pages.
    for block in 0..1024 {
        read_cold(&w, block);
    }
    assert_eq!(w.check().counts.pages, 1024);
    let cpu = w.machine.cpu();
    let result = w
        .mobility
        .compact_direct(cpu, dirigible_frames::FrameClass::Movable);
    let dirigible_mobility::CompactResult::Captured(head) = result else {
        panic!("{result:?}")
    };
    assert_eq!(w.event(Event::CompactDropped), 512);
    assert_eq!(
        (w.event(Event::PgStealDirect), w.event(Event::PgScanDirect)),
        (512, 512)
    );
    assert_eq!(w.event(Event::PgmigrateSuccess), 0);
    w.mobility.verify().unwrap();
    assert_eq!(w.check().shadows, 512);
    w.frames.free(cpu, head, Order::HUGE).unwrap();
    assert_eq!(
        (0..1024)
            .filter(|&block| w.read(block) != Ok(factory(block)))
            .count(),
        0
    );
    w.end(0);
}

/// A file is cut off while its pages are moved: the page is forgotten at once, and its frame comes back exactly once,
/// by whoever has it.
#[test]
fn pitfall_75_truncation_against_migration() {
    let w = world();
    for way in 0..4 {
        w.write(9, [9, 9]).unwrap();
        let from = w.frame(9).unwrap();
        let to = w
            .frames
            .alloc(w.machine.cpu(), dirigible_frames::AllocRequest::movable())
            .unwrap();
        assert!(w.isolate(from));
        assert_eq!(w.cache.forget(9..10), 1);
        assert!(!w.cache.contains(9));
        assert_eq!(w.check().detached, 1);
        // Meanwhile the block gets a new page.
        w.write(9, [10, way]).unwrap();
        match way {
            0 => w.cache.putback(from),
            1 => {
                let mut pairs = [dirigible_mobility::MovePair::base(from, to)];
                w.cache.migrate(&mut pairs);
                assert_eq!(pairs[0].outcome, Outcome::Released);
                assert_eq!(w.frames.state(from), FrameState::Allocated);
                w.free(from);
            }
            2 => {
                assert_eq!(
                    w.cache_as_evictable().drop_clean(from, Stamp::from_bits(1)),
                    Ok(())
                );
                w.free(from);
            }
            _ => {
                assert_eq!(w.cache.begin_write(from), 0);
                w.cache.put_back(from);
            }
        }
        w.free(to);
        let audit = w.check();
        assert_eq!(
            (audit.detached, audit.counts.pages, audit.counts.dirty),
            (0, 1, 1)
        );
        assert_eq!(w.read(9), Ok([10, way]));
    }
    w.end(0);
}

/// A file is cut off while its pages are written, or read: that waits for the disk, and nothing is written later.
#[test]
fn pitfall_75_truncation_against_writeback() {
    let w = world();
    w.write(9, [9, 9]).unwrap();
    w.disk.set_auto(false);
    w.write_out(w.frame(9).unwrap());
    w.machine.at_relax(move || {
        w.disk.answer(1);
    });
    assert_eq!(w.cache.forget(0..4096), 1);
    assert_eq!((w.disk.in_flight(), w.cache.counts().writeback), (0, 0));
    w.check();
    w.disk.set_auto(true);
    // Never written: the disk keeps what it had.
    w.write(9, [11, 11]).unwrap();
    assert_eq!(w.cache.forget(9..10), 1);
    w.cache.sync(0..4096).unwrap();
    assert_eq!(w.read(9), Ok([9, 9]));
    w.end(0);
}

#[test]
fn a_failed_read_is_an_error_of_its_own_block() {
    let w = world();
    w.disk.state.lock().unwrap().bad_reads.insert(22);
    // Its neighbours come, though the request for all failed.
    assert_eq!(w.read_ahead(20, 10), Ok(factory(20)));
    assert_eq!(w.read_ahead(21, 10), Ok(factory(21)));
    assert_eq!(w.read_ahead(22, 10), Err(CacheError::Io { block: 22 }));
    assert_eq!(w.read_ahead(23, 10), Ok(factory(23)));
    w.check();
    // A part of a block that cannot be read cannot be written; all of it can.
    assert_eq!(w.put(22, [1, 1], false), Err(CacheError::Io { block: 22 }));
    assert_eq!(w.put(22, [1, 1], true), Ok(()));
    assert_eq!(w.read(22), Ok([1, 1]));
    w.disk.state.lock().unwrap().dead = true;
    assert_eq!(w.read_ahead(40, 3), Err(CacheError::Io { block: 40 }));
    w.disk.state.lock().unwrap().dead = false;
    assert_eq!(w.read(40), Ok(factory(40)), "an error is not kept");
    w.end(0);
}

/// A device that is reset drops all that it has in hand: who was not at fault tries again. Not for ever.
#[test]
fn a_read_that_is_interrupted_is_tried_again_a_few_times() {
    for (times, comes) in [(1, true), (5, true), (6, false), (9, false)] {
        let w = world();
        w.disk.state.lock().unwrap().interrupted_reads = times;
        let read = w.read(20);
        let expected = if comes {
            Ok(factory(20))
        } else {
            Err(CacheError::Io { block: 20 })
        };
        assert_eq!(read, expected, "{times}");
        assert_eq!(w.disk.log().len(), if comes { times + 1 } else { 6 });
        w.disk.state.lock().unwrap().interrupted_reads = 0;
        assert_eq!(w.read(20), Ok(factory(20)));
        w.end(0);
    }
    // One that was interrupted with others is alone afterwards, and then counts.
    let w = world();
    w.disk.state.lock().unwrap().interrupted_reads = 6;
    assert_eq!(w.read_ahead(20, 10), Ok(factory(20)));
    w.end(0);
}

/// A sync does not fail for a reset that another's request was the cause of, and does not go on for ever either.
#[test]
fn a_sync_tries_again_what_a_reset_interrupted() {
    // The first write, the first that is alone, and six more in vain.
    for (times, done) in [(1, true), (7, true), (8, false), (20, false)] {
        let w = world();
        w.write(10, [10, 5]).unwrap();
        w.disk.state.lock().unwrap().interrupted_writes = times;
        let expected = if done {
            Ok(())
        } else {
            Err(CacheError::Io { block: 10 })
        };
        assert_eq!(w.cache.sync(0..100), expected, "{times}");
        w.disk.state.lock().unwrap().interrupted_writes = 0;
        assert_eq!(w.cache.sync(0..100), Ok(()));
        assert_eq!(w.disk.contents(10), [10, 5]);
        w.end(0);
    }
}

#[test]
fn a_sync_tries_again_as_long_as_fewer_writes_fail() {
    let w = world();
    for block in [10, 20, 30, 40] {
        w.write(block, [block, 5]).unwrap();
    }
    // All but the last fail, then two of three, then one of two: block 10 four times.
    let faults = [1, 1, 1, 0, 1, 0, 1, 1, 0].map(|fault| fault == 1);
    w.disk.state.lock().unwrap().write_faults = faults.into();
    assert_eq!(w.cache.sync(0..100), Ok(()));
    for block in [10, 20, 30, 40] {
        assert_eq!(w.disk.contents(block), [block, 5]);
    }
    // Where none more succeeds it is given up.
    w.write(10, [10, 6]).unwrap();
    w.disk.state.lock().unwrap().write_faults = [true; 10].into();
    w.disk.log();
    assert_eq!(w.cache.sync(0..100), Err(CacheError::Io { block: 10 }));
    assert_eq!(w.disk.log().len(), 3);
    w.disk.state.lock().unwrap().write_faults.clear();
    assert_eq!(w.cache.sync(0..100), Ok(()));
    w.end(0);
}

#[test]
fn a_failed_write_is_reported_and_nothing_is_lost() {
    let w = world();
    w.disk.state.lock().unwrap().bad_writes.extend([13, 15]);
    for block in 10..20 {
        w.write(block, [block, 5]).unwrap();
    }
    assert_eq!(w.cache.sync(0..100), Err(CacheError::Io { block: 13 }));
    assert_eq!(w.cache.sync(14..100), Err(CacheError::Io { block: 15 }));
    assert_eq!(w.cache.sync(16..100), Ok(()));
    let good = (10..20).filter(|block| ![13, 15].contains(block));
    assert!(
        good.clone()
            .all(|block| w.disk.contents(block) == [block, 5])
    );
    assert_eq!(w.cache.counts().dirty, 2);
    assert_eq!(w.disk.contents(13), factory(13));
    // In the background it is tried again, but not all the time.
    let mut flusher = Flusher::new(w.cache, 0);
    w.disk.log();
    w.cache.wake_flusher();
    for now in 1..50 {
        flusher.step(now);
    }
    assert!(w.disk.log().is_empty());
    for second in 1..60 {
        flusher.step(second * 1_000_000_000);
    }
    let log = w.disk.log();
    assert!((2..=8).contains(&log.len()), "{log:?}");
    assert_eq!(w.read(13), Ok([13, 5]));
    w.check();
    // The disk is well again.
    w.disk.state.lock().unwrap().bad_writes.clear();
    assert_eq!(w.cache.sync(0..100), Ok(()));
    assert_eq!(w.disk.contents(13), [13, 5]);
    // A dead disk takes nothing, and that is an error too.
    w.write(30, [30, 30]).unwrap();
    w.disk.state.lock().unwrap().dead = true;
    assert_eq!(w.cache.sync(0..100), Err(CacheError::Io { block: 30 }));
    assert_eq!(w.read(30), Ok([30, 30]));
    w.end(0);
}

#[test]
fn frames_of_a_device_that_cannot_be_stopped_are_never_used_again() {
    let w = world();
    w.disk.set_auto(false);
    w.machine.at_relax(move || {
        assert!(w.disk.fail(DiskError::Abandoned));
        w.disk.set_auto(true);
    });
    // The demanded block is read once more, into another frame.
    assert_eq!(w.read_ahead(50, 1), Ok(factory(50)));
    assert_eq!(w.check().counts.abandoned, 2);
    // A write: the page stays, it is the only copy; it does not move, and is not freed.
    w.write(60, [6, 6]).unwrap();
    w.disk.set_auto(false);
    let frame = w.frame(60).unwrap();
    w.write_out(frame);
    w.disk.fail(DiskError::Abandoned);
    w.cache.poll();
    let lost = FrameFlags::ABANDONED.union(FrameFlags::PINNED);
    assert!(w.has(60, FrameFlags::DIRTY.union(lost)));
    // It was isolated when its write was abandoned, and then forgotten.
    w.write(70, [7, 7]).unwrap();
    let other = w.frame(70).unwrap();
    w.write_out(other);
    assert!(w.isolate(other));
    w.disk.fail(DiskError::Abandoned);
    w.cache.poll();
    assert!(!w.has(70, FrameFlags::PINNED));
    w.cache.put_back(other);
    assert!(w.has(70, lost));
    assert_eq!(w.cache.forget(70..71), 0);
    assert_eq!(w.frames.state(other), FrameState::Allocated);
    assert_eq!(w.move_frame(frame), None);
    w.disk.set_auto(true);
    w.cache.sync(0..100).unwrap();
    assert_eq!(w.cache.drop_all_clean(), 1);
    assert!(!w.isolate(frame), "nor isolated by reclaim");
    assert_eq!(w.read(60), Ok([6, 6]));
    assert_eq!(w.cache.forget(60..61), 0);
    w.check();
    w.end(4);
}

#[test]
fn the_operator_drops_what_is_clean() {
    let w = world();
    for block in 0..20 {
        w.read(block * 3).unwrap();
    }
    w.write(3, [1, 1]).unwrap();
    let held = w.frame(6).unwrap();
    assert!(w.frames.get_ref(held));
    assert_eq!(
        (w.cache.drop_all_clean(), w.event(Event::DropPagecache)),
        (18, 18)
    );
    assert!(w.frames.put_ref(held));
    assert_eq!(BlockPages::drop_clean(w.cache, 0..4096), 1);
    assert_eq!(w.check().counts.pages, 1);
    w.end(0);
}

#[test]
fn whoever_makes_too_much_dirty_is_held_up() {
    let w = world();
    // 20 % of 1024 frames.
    for block in 0..600 {
        w.write(block * 2, [block, 1]).unwrap();
        let counts = w.cache.counts();
        assert!(counts.dirty + counts.writeback <= 210, "{counts:?}");
    }
    // A disk that does not answer holds nobody up for ever.
    w.disk.set_auto(false);
    for block in 600..700 {
        w.write(block * 2, [block, 1]).unwrap();
    }
    w.disk.set_auto(true);
    w.cache.sync(0..4096).unwrap();
    assert!((0..700).all(|block| w.disk.contents(block * 2) == [block, 1]));
    w.check();
    w.end(0);
}

/// More than may be dirty cannot be written: that holds up nobody who writes elsewhere.
#[test]
fn a_disk_with_bad_blocks_does_not_hold_up_writers() {
    let w = world();
    w.disk.state.lock().unwrap().bad_writes.extend(0..300);
    for block in 0..300 {
        w.write(block, [block, 1]).unwrap();
    }
    assert!(w.cache.sync(0..300).is_err());
    assert_eq!(w.cache.counts().dirty, 300);
    let relaxed = w.machine.relaxed.load(Ordering::Relaxed);
    for block in 1000..1100 {
        w.write(block, [block, 1]).unwrap();
    }
    assert_eq!(w.machine.relaxed.load(Ordering::Relaxed), relaxed);
    // Nor the flusher, whose step ends though none of the blocks that it meets can be written.
    let mut flusher = Flusher::new(w.cache, 0);
    w.cache.sync(1000..1100).unwrap();
    assert_eq!(flusher.step(1), 1 + CacheConfig::default().look_ns);
    w.disk.state.lock().unwrap().bad_writes.clear();
    w.cache.sync(0..300).unwrap();
    w.check();
    for block in 0..300 {
        w.write(block * 3, [block, 1]).unwrap();
        let counts = w.cache.counts();
        assert!(counts.dirty + counts.writeback <= 210, "{counts:?}");
    }
    w.end(0);
}

#[test]
fn the_flusher_writes_in_the_disks_order_above_its_share() {
    let w = world();
    for block in (0..300).rev() {
        if !(90..=209).contains(&block) {
            w.write(block, [block, 2]).unwrap();
        }
    }
    let mut flusher = Flusher::new(w.cache, 0);
    let (mut now, mut steps) = (1, 0);
    while w.cache.counts().dirty > 102 {
        now = flusher.step(now);
        steps += 1;
        assert!(steps < 1000);
    }
    w.settle();
    let log = w.disk.log();
    assert!(log.is_sorted() && log.iter().all(|&(write, _, count)| write && count <= 32));
    let full = log.iter().filter(|&&(.., count)| count == 32).count();
    assert!(log.len() - full <= 3, "{log:?}");
    w.check();
    w.end(0);
}

#[test]
fn what_is_dirty_for_long_is_written() {
    let w = world();
    let second = 1_000_000_000;
    let mut flusher = Flusher::new(w.cache, 0);
    let (mut now, mut written) = (0, [0; 40]);
    // A block each second, none twice.
    for turn in 0..100 {
        if turn < 40 {
            w.write(turn * 2, [turn, 3]).unwrap();
        }
        while now < (turn + 1) * second {
            now = flusher.step(now);
            for (block, at) in (0..).zip(&mut written) {
                if *at == 0 && w.disk.contents(block * 2) == [block, 3] {
                    *at = now / second;
                }
            }
        }
    }
    for (block, &at) in written.iter().enumerate() {
        let age = at.saturating_sub(block as u64);
        assert!(
            (14..=31).contains(&age),
            "block {block} was written after {age} s"
        );
    }
    assert_eq!(w.cache.counts().dirty, 0);
    w.end(0);
}

/// Every page is dirty and no frame is free above the least: writing and dropping need none.
#[test]
fn reclaim_proceeds_with_no_free_frame() {
    let w = build(Build {
        memory: 1,
        depth: 2,
        config: CacheConfig {
            dirty_percent: 100,
            throttle_ns: 0,
            ..Default::default()
        },
        ..Default::default()
    });
    let mut block = 0;
    while w.write(block, [block, 4]).is_ok() {
        block += 1;
    }
    assert_eq!((block, w.frames.free_frames()), (512, 0));
    assert_eq!(w.cache.counts().dirty, 512);
    w.source.empty.store(true, Ordering::Relaxed);
    let mut freed = 0;
    for turn in 0..200_000u64 {
        let Some(frame) = w.frame(turn % 512) else {
            continue;
        };
        if w.has(turn % 512, FrameFlags::DIRTY) {
            w.write_out(frame);
        } else if w.evict(frame, turn as u32).is_ok() {
            freed += 1;
        }
        w.cache.poll();
        if freed == 512 {
            break;
        }
    }
    assert_eq!(freed, 512);
    assert_eq!(w.check().shadows, 512);
    w.source.empty.store(false, Ordering::Relaxed);
    assert!((0..512).all(|block| w.read(block) == Ok([block, 4])));
    w.end(0);
}
