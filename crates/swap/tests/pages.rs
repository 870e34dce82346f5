//! Single properties of swap.

#[path = "../../pagecache/tests/support/mod.rs"]
mod support;

mod programs;

use std::sync::atomic::Ordering;

use dirigible_disk::DiskError;
use dirigible_frames::{Event, FrameFlags, FrameState};
use dirigible_pagecache::{BlockPages, CacheConfig, CacheError, Flusher};
use dirigible_paging::{SwapError, SwapSpace};
use dirigible_reclaim::Kind;
use programs::Programs;
use support::*;

const SWAP: u64 = 512;

fn programs() -> Programs {
    Programs::new(Build {
        swap: SWAP,
        ..Build::default()
    })
}

#[test]
fn pages_go_out_in_runs_and_come_back_with_their_neighbours() {
    let p = programs();
    let slots = p.fill(1_000, 20);
    assert_eq!(slots, (0..20).collect::<Vec<_>>());
    let counts = p.w.cache.counts();
    assert_eq!((counts.dirty, counts.writeback), (20, 0));
    assert!(slots.iter().all(|&slot| {
        p.w.has(p.block(slot), FrameFlags::DIRTY.union(FrameFlags::RECLAIM))
    }));
    p.check();
    p.w.disk.set_auto(false);
    p.swap.write_out(&slots);
    assert_eq!(p.w.disk.log(), [(true, p.block(0), 20)]);
    assert_eq!(p.w.cache_as_evictable().dirty_and_writeback(), (0, 20));
    assert!(p.swap.take(3).is_none(), "it is being written");
    p.w.settle();
    let written = [
        (Event::PswpOut, 20),
        (Event::VmscanWrite, 20),
        (Event::PgPgOut, 80),
        (Event::NrDirtied, 0),
        (Event::NrWritten, 0),
    ];
    for (event, count) in written {
        assert_eq!(p.w.event(event), count, "{event:?}");
    }
    // 20, and halved, as there are so few frames.
    assert_eq!(p.w.generations.costs()[Kind::Anonymous as usize], 10);
    // What is written is the oldest.
    assert_eq!(p.w.generations.sizes(), [20, 0, 0, 0]);
    slots.iter().for_each(|&slot| p.evict(slot));
    assert_eq!(p.check().in_memory, 0);

    p.w.disk.set_auto(true);
    assert_eq!(p.fault(10), Ok(([1_010, 10], true)));
    assert_eq!(p.w.disk.log(), [(false, p.block(8), 8)]);
    let read = [
        (Event::PswpIn, 8),
        (Event::SwapAhead, 7),
        (Event::PgPgIn, 32),
        (Event::RefaultAnon, 8),
        (Event::WorkingsetRefault, 0),
    ];
    for (event, count) in read {
        assert_eq!(p.w.event(event), count, "{event:?}");
    }
    // The group's others are there; the next group is read up to where there are contents.
    assert_eq!(p.fault(15).map(|(words, _)| words), Ok([1_015, 15]));
    assert_eq!(p.w.disk.log(), []);
    assert_eq!(p.fault(17).map(|(words, _)| words), Ok([1_017, 17]));
    assert_eq!(p.w.disk.log(), [(false, p.block(16), 4)]);
    assert_eq!((p.swap.used(), p.check().in_memory), (17, 9));
    p.end(0);
}

#[test]
fn a_read_stops_where_there_is_nothing_to_read() {
    let p = programs();
    let slots = p.fill(0, 8);
    p.write_and_evict(&slots);
    p.swap.free(&[2]);
    assert!(p.fault(5).is_ok());
    p.w.disk.log();
    // 3, 4, 6 and 7 are in memory, 2 is free.
    assert_eq!(p.fault(1), Ok(([1, 1], true)));
    assert_eq!(p.w.disk.log(), [(false, p.block(0), 2)]);
    // What is gone is not read, and nobody waits for it.
    assert_eq!(p.swap.fetch(2), Ok(()));
    assert!(p.swap.take(2).is_none());
    assert_eq!(p.w.disk.log(), []);
    p.end(0);
}

#[test]
fn a_page_that_is_not_written_yet_comes_back_without_the_disk() {
    let p = programs();
    p.fill(50, 3);
    assert_eq!(p.fault(1), Ok(([51, 1], false)));
    p.swap.free(&[0]);
    assert_eq!((p.w.disk.log(), p.swap.used()), (vec![], 1));
    p.end(0);
}

#[test]
fn who_wants_what_was_promised_waits() {
    let p = programs();
    let mut slots = [0; 2];
    assert_eq!(p.swap.take_slots(&mut slots), 2);
    let (kept, broken) = (p.isolated([7, 8]).unwrap(), p.isolated([9, 9]).unwrap());
    assert!(p.swap.promise(slots[0], kept) && p.swap.promise(slots[1], broken));
    assert!(!p.swap.promise(slots[0], broken), "twice");
    assert_eq!(p.w.cache.swap_pages(), 2);
    p.w.cache.drop_all_clean();
    p.w.cache.sync(0..p.w.cache.blocks()).unwrap();
    p.swap.withdraw(slots[1], broken);
    assert_eq!(p.swap.fetch(slots[1]), Ok(()));
    p.step(broken, FrameState::Isolated, FrameState::Allocated);
    p.w.free(broken);
    p.swap.free(&slots[1..]);
    let slot = slots[0];
    p.w.machine.at_relax(move || p.adopt(slot, kept));
    assert_eq!(p.swap.fetch(slot), Ok(()));
    assert_eq!(p.fault(slot), Ok(([7, 8], false)));
    p.end(0);
}

#[test]
fn a_page_that_moves_cannot_be_taken_meanwhile() {
    let p = programs();
    p.fill(0, 1);
    let frame = p.w.frame(p.block(0)).unwrap();
    assert!(p.w.isolate(frame));
    assert!(p.swap.take(0).is_none());
    p.w.machine
        .at_relax(move || p.w.cache_as_evictable().put_back(frame));
    assert_eq!(p.swap.fetch(0), Ok(()), "waits until it is back");
    assert_eq!(
        p.w.move_frame(frame),
        Some(dirigible_mobility::Outcome::Moved)
    );
    assert_eq!(p.fault(0), Ok(([0, 0], false)));
    p.end(0);
}

#[test]
fn pitfall_74_what_cannot_be_written_stays_in_memory() {
    let p = programs();
    let slots = p.fill(0, 4);
    let bad = p.block(2);
    p.w.disk.state.lock().unwrap().bad_writes.insert(bad);
    p.swap.write_out(&slots);
    p.w.settle();
    let counts = p.w.cache.counts();
    assert_eq!((counts.dirty, counts.write_errors), (4, 4));
    assert_eq!(
        (p.w.event(Event::PswpOut), p.w.event(Event::VmscanWrite)),
        (0, 0)
    );
    // They are tried again, each alone.
    for slot in 0..4 {
        p.swap.write_out(&[slot]);
        p.w.settle();
    }
    assert_eq!(
        (p.w.cache.counts().dirty, p.w.event(Event::PswpOut)),
        (1, 3)
    );
    assert_eq!(p.w.event(Event::VmscanWrite), 3);
    assert!(p.w.has(bad, FrameFlags::DIRTY.union(FrameFlags::RECLAIM)));
    p.check();
    assert_eq!(p.fault(2), Ok(([2, 2], false)));
    assert!(p.w.disk.log().iter().all(|&(write, ..)| write));
    p.end(0);
}

#[test]
fn a_failed_read_loses_one_slot() {
    let p = programs();
    let slots = p.fill(0, 8);
    p.write_and_evict(&slots);
    let bad = p.block(3);
    p.w.disk.state.lock().unwrap().bad_reads.insert(bad);
    for slot in (0..8).filter(|&slot| slot != 3) {
        assert_eq!(
            p.fault(slot).map(|(words, _)| words),
            Ok([slot, slot]),
            "{slot}"
        );
    }
    assert_eq!(p.swap.fetch(3), Err(SwapError::Io { slot: 3 }));
    assert_eq!(p.swap.used(), 1);
    // It is not lost for good.
    p.w.disk.state.lock().unwrap().bad_reads.clear();
    assert_eq!(p.fault(3).map(|(words, _)| words), Ok([3, 3]));
    p.end(0);
}

#[test]
fn a_frame_of_a_device_that_cannot_be_stopped_is_nobodys() {
    let p = programs();
    p.fill(0, 2);
    p.w.disk.set_auto(false);
    p.swap.write_out(&[0]);
    assert!(p.w.disk.fail(DiskError::Abandoned));
    p.w.cache.poll();
    p.w.disk.set_auto(true);
    assert!(p.swap.take(0).is_none());
    assert_eq!(p.swap.fetch(0), Err(SwapError::Io { slot: 0 }));
    p.swap.write_out(&[0, 1]);
    assert_eq!(p.w.disk.in_flight(), 0);
    p.end(2);
}

#[test]
fn writers_of_files_are_not_held_up_by_swap() {
    let p = Programs::new(Build {
        memory: 1,
        swap: SWAP,
        config: CacheConfig {
            dirty_percent: 10,
            background_percent: 5,
            ..CacheConfig::default()
        },
        ..Build::default()
    });
    p.w.disk.set_auto(false);
    p.fill(0, 300);
    let before = p.w.machine.relaxed.load(Ordering::Relaxed);
    p.w.write(5, [1, 2]).unwrap();
    assert_eq!(p.w.machine.relaxed.load(Ordering::Relaxed), before);
    assert_eq!((p.w.disk.in_flight(), p.w.event(Event::NrDirtied)), (0, 1));
    assert_eq!(p.w.cache_as_evictable().dirty_and_writeback(), (301, 0));
    // The flusher writes what is in swap though there is little of files.
    let (mut flusher, mut now) = (Flusher::new(p.w.cache, 0), 1);
    for _ in 0..20 {
        now = flusher.step(now);
        p.w.settle();
    }
    let log = p.w.disk.log();
    assert!(
        log.iter()
            .all(|&(write, block, _)| write && block >= p.block(0))
    );
    assert!(log.len() <= 11, "{log:?}");
    assert_eq!(p.w.cache_as_evictable().dirty_and_writeback(), (1, 0));
    p.w.disk.set_auto(true);
    p.end(0);
}

#[test]
fn without_room_at_the_disk_the_flusher_writes() {
    let p = Programs::new(Build {
        swap: SWAP,
        depth: 2,
        ..Build::default()
    });
    p.w.disk.set_auto(false);
    let slots = p.fill(0, 200);
    p.swap.write_out(&slots);
    assert_eq!(p.w.disk.in_flight(), 2);
    assert!(p.w.cache.counts().dirty > 0);
    let (mut flusher, mut now) = (Flusher::new(p.w.cache, 0), 1);
    for _ in 0..20 {
        p.w.settle();
        now = flusher.step(now);
    }
    p.w.settle();
    assert_eq!(p.w.event(Event::PswpOut), 200);
    // All wear the mark until they are written: so all are the oldest now.
    assert_eq!(p.w.generations.sizes(), [200, 0, 0, 0]);
    p.w.disk.set_auto(true);
    p.end(0);
}

#[test]
fn reclaim_that_writes_a_page_again_does_not_count_it() {
    let p = programs();
    p.fill(0, 1);
    let frame = p.w.frame(p.block(0)).unwrap();
    assert_eq!(p.w.write_out(frame), 0);
    p.w.settle();
    assert_eq!(p.w.event(Event::VmscanWrite), 1);
    assert_eq!(p.w.cache.counts().dirty, 0);
    p.end(0);
}

#[test]
fn files_and_programs_keep_apart() {
    let p = programs();
    let files = 4096 - SWAP;
    assert_eq!(p.w.cache.blocks(), files);
    let slots = p.fill(0, 4);
    // Neighbours on the disk, in requests of their own.
    p.w.write(files - 1, [3, 3]).unwrap();
    p.w.cache.sync(0..u64::MAX).unwrap();
    assert_eq!(p.w.disk.log(), [(true, files - 1, 1)]);
    p.w.write(files - 1, [4, 4]).unwrap();
    p.swap.write_out(&slots);
    p.w.settle();
    assert_eq!(p.w.disk.log(), [(true, files, 4)]);
    for block in [files, files + 3, 4095] {
        let beyond = Err(CacheError::Beyond { block });
        assert_eq!(
            (p.w.read(block), p.w.write(block, [0, 0])),
            (beyond.map(|()| [0; 2]), beyond)
        );
    }
    p.w.cache.sync(0..files).unwrap();
    assert_eq!(p.w.cache.drop_all_clean(), 1, "the file's");
    assert_eq!(p.w.cache.forget(0..4096), 0);
    assert_eq!(BlockPages::drop_clean(p.w.cache, 0..4096), 0);
    assert_eq!(p.check().in_memory, 4);
    // Reading ahead of the last block of files ends there.
    slots.iter().for_each(|&slot| p.evict(slot));
    p.w.disk.log();
    p.w.read_ahead(files - 1, 100).unwrap();
    assert_eq!(p.w.disk.log(), [(false, files - 1, 1)]);
    p.end(0);
}

#[test]
fn swap_that_is_full_or_absent_says_so() {
    let p = Programs::new(Build {
        swap: 5,
        ..Build::default()
    });
    assert!(p.swap.has_room());
    assert_eq!(p.fill(0, 9).len(), 5);
    assert!(!p.swap.has_room());
    assert_eq!(p.fill(0, 1), []);
    assert!(p.fault(4).is_ok());
    assert_eq!(p.fill(0, 2), [4]);
    p.end(0);
    let none = Programs::new(Build::default());
    assert_eq!((none.swap.has_room(), none.swap.size()), (false, 0));
    assert_eq!(none.fill(0, 3), []);
    none.end(0);
}

#[test]
fn a_slot_that_does_not_exist_is_no_disaster() {
    let p = programs();
    for slot in [SWAP, SWAP + 1, 1 << 40, u64::MAX] {
        let frame = p.isolated([1, 1]).unwrap();
        assert!(!p.swap.promise(slot, frame));
        p.swap.withdraw(slot, frame);
        p.step(frame, FrameState::Isolated, FrameState::Allocated);
        p.w.free(frame);
        assert!(p.swap.take(slot).is_none());
        assert_eq!(p.swap.fetch(slot), Err(SwapError::Io { slot }));
        p.swap.write_out(&[slot]);
        p.swap.free(&[slot]);
    }
    p.end(0);
}

#[test]
fn without_memory_a_page_stays_on_the_disk() {
    let p = programs();
    let slots = p.fill(0, 3);
    p.write_and_evict(&slots);
    p.w.source.empty.store(true, Ordering::Relaxed);
    assert_eq!(p.fault(1), Err(SwapError::OutOfMemory));
    p.w.source.empty.store(false, Ordering::Relaxed);
    assert_eq!(p.fault(1), Ok(([1, 1], true)));
    p.end(0);
}

/// Below the low watermark only what is wanted is read.
#[test]
fn reading_around_spares_the_last_free_frames() {
    let p = Programs::new(Build {
        memory: 1,
        swap: SWAP,
        min: 64,
        ..Build::default()
    });
    let slots = p.fill(0, 8);
    p.write_and_evict(&slots);
    let mut kept = Vec::new();
    while p.w.frames.free_frames() > 80 {
        kept.push(p.isolated([0, 0]).unwrap());
    }
    p.w.disk.log();
    assert!(p.fault(4).is_ok());
    assert_eq!(p.w.disk.log(), [(false, p.block(4), 1)]);
    for frame in kept {
        p.step(frame, FrameState::Isolated, FrameState::Allocated);
        p.w.free(frame);
    }
    p.end(0);
}
