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
    assert_eq!(p.fault(10), Ok([1_010, 10]));
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
    assert_eq!(p.fault(15), Ok([1_015, 15]));
    assert_eq!(p.w.disk.log(), []);
    assert_eq!(p.fault(17), Ok([1_017, 17]));
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
    assert_eq!(p.fault(1), Ok([1, 1]));
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
    assert_eq!(p.fault(1), Ok([51, 1]));
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
    assert_eq!(p.fault(slot), Ok([7, 8]));
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
    assert_eq!(p.fault(0), Ok([0, 0]));
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
    assert_eq!(p.fault(2), Ok([2, 2]));
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
        assert_eq!(p.fault(slot), Ok([slot, slot]), "{slot}");
    }
    assert_eq!(p.swap.fetch(3), Err(SwapError::Io { slot: 3 }));
    assert_eq!(p.swap.used(), 1);
    // It is not lost for good.
    p.w.disk.state.lock().unwrap().bad_reads.clear();
    assert_eq!(p.fault(3), Ok([3, 3]));
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
    p.w.disk.log();
    p.swap.write_out(&[0, 1]);
    assert_eq!((p.w.disk.in_flight(), p.w.disk.log()), (0, vec![]));
    // Their contents are not lost: they come back in other frames.
    let old = p.w.frame(p.block(0)).unwrap();
    p.w.source.empty.store(true, Ordering::Relaxed);
    assert_eq!(p.swap.fetch(0), Err(SwapError::OutOfMemory));
    p.w.source.empty.store(false, Ordering::Relaxed);
    assert_eq!(p.swap.fetch(0), Ok(()));
    assert_ne!(p.w.frame(p.block(0)), Some(old));
    assert_eq!(
        (p.w.cache.counts().abandoned, p.w.cache.counts().dirty),
        (1, 2)
    );
    let info = p.w.frames.frame(old).unwrap();
    assert!(info.state == FrameState::Allocated && info.flags.contains(FrameFlags::PINNED));
    p.check();
    assert_eq!((p.fault(0), p.fault(1)), (Ok([0, 0]), Ok([1, 1])));
    assert_eq!((p.w.disk.log(), p.swap.used()), (vec![], 0));
    p.end(2);
}

/// Writes each of `slots` in a request of its own.
fn write_alone(p: &Programs, slots: &[u64]) {
    for &slot in slots {
        p.swap.write_out(&[slot]);
        p.w.settle();
    }
}

fn set_bad(p: &Programs, slots: core::ops::Range<u64>) {
    let mut state = p.w.disk.state.lock().unwrap();
    state.bad_writes = slots.map(|slot| p.block(slot)).collect();
}

/// Lets the flusher work until what is dirty has aged and was tried again.
fn let_age(p: &Programs, flusher: &mut Flusher<'_, '_, Machine>, now: &mut u64) {
    let age = CacheConfig::default().age_ns;
    let end = *now + 3 * age;
    while *now < end {
        *now = flusher.step(*now);
        p.w.settle();
    }
}

#[test]
fn swap_that_cannot_be_written_is_given_no_more_until_it_can() {
    let p = programs();
    let mut flusher = Flusher::new(p.w.cache, 0);
    let mut now = 1;
    set_bad(&p, 0..SWAP);
    // Every second one, so that none is another's neighbour.
    let slots = p.fill(0, 40);
    p.swap
        .free(&slots.iter().map(|slot| slot | 1).collect::<Vec<_>>());
    let even: Vec<u64> = (0..20).map(|n| n * 2).collect();
    write_alone(&p, &even[..7]);
    assert!(p.swap.has_room());
    write_alone(&p, &even[7..8]);
    assert!(!p.swap.has_room(), "eight in a row");
    write_alone(&p, &even[8..]);
    assert_eq!(p.w.cache.counts().write_errors, 20);
    // Reclaim meets them again and again, and nothing is sent.
    p.w.disk.log();
    for _ in 0..3 {
        even.iter().for_each(|&slot| {
            let frame = p.w.frame(p.block(slot)).unwrap();
            assert_eq!(p.w.write_out(frame), 0);
        });
    }
    assert_eq!(p.w.disk.log(), []);
    // Who waits until less is dirty does not wait for these.
    assert_eq!(p.w.cache_as_evictable().dirty_and_writeback(), (0, 0));
    assert_eq!(p.w.cache.counts().dirty, 20);
    // The flusher tries each of them now and then, and no more than that.
    let_age(&p, &mut flusher, &mut now);
    let tried = p.w.disk.log().len();
    assert!((20..=60).contains(&tried), "{tried}");
    assert!(p.swap.has_room(), "one more may be tried");
    write_alone(&p, &p.fill(100, 1));
    assert!(!p.swap.has_room(), "it failed too");
    p.check();
    assert_eq!(p.fault(6), Ok([6, 6]));
    set_bad(&p, 0..0);
    let_age(&p, &mut flusher, &mut now);
    assert!(p.swap.has_room());
    assert_eq!(
        (p.w.cache.counts().dirty, p.w.event(Event::PswpOut)),
        (0, 20)
    );
    p.end(0);
}

/// A few bad blocks among good ones do not end swap.
#[test]
fn blocks_that_can_never_be_written_do_not_stop_the_others() {
    let p = programs();
    let mut flusher = Flusher::new(p.w.cache, 0);
    let mut now = 1;
    set_bad(&p, 0..10);
    let slots = p.fill(0, 10);
    write_alone(&p, &slots);
    assert!(p.swap.has_room(), "they failed in one request");
    write_alone(&p, &slots);
    assert!(p.swap.has_room(), "nothing new");
    for &slot in &slots {
        // Freed, it is as good as any other.
        p.swap.free(&[slot]);
        let again = p.put(&[[slot, slot]]);
        write_alone(&p, &again);
    }
    assert!(!p.swap.has_room());
    let_age(&p, &mut flusher, &mut now);
    assert!(p.swap.has_room());
    let good = p.fill(20, 5);
    p.swap.write_out(&good);
    p.w.settle();
    assert_eq!(p.w.event(Event::PswpOut), 5);
    // So many may fail one after the other again.
    write_alone(&p, &slots);
    assert!(p.swap.has_room());
    assert_eq!(p.fault(3), Ok([3, 3]));
    p.end(0);
}

#[test]
fn a_dead_disk_keeps_what_is_in_memory() {
    let p = programs();
    let mut slots = p.fill(0, 2);
    p.write_and_evict(&slots);
    p.w.disk.state.lock().unwrap().dead = true;
    for slot in 2..12 {
        assert_eq!(p.swap.has_room(), slot < 10, "{slot}");
        slots.extend(p.put(&[[slot, slot]]));
        p.swap.write_out(&slots[2..]);
    }
    for &slot in &slots[2..] {
        assert_eq!(p.fault(slot), Ok([slot, slot]));
    }
    for &slot in &slots[..2] {
        assert_eq!(p.fault(slot), Err(SwapError::Io { slot }));
    }
    assert_eq!(p.swap.used(), 2);
    p.end(0);
}

/// While the disk does not answer, what it has waits, and all else can be taken.
#[test]
fn a_disk_that_never_answers_holds_only_what_it_has() {
    let p = Programs::new(Build {
        swap: SWAP,
        depth: 2,
        ..Build::default()
    });
    p.w.disk.set_auto(false);
    let slots = p.fill(0, 200);
    p.swap.write_out(&slots);
    let (dirty, writeback) = p.w.cache_as_evictable().dirty_and_writeback();
    assert_eq!((p.w.disk.in_flight(), dirty + writeback), (2, 200));
    let mut flusher = Flusher::new(p.w.cache, 0);
    let mut now = 1;
    for _ in 0..50 {
        let next = flusher.step(now);
        assert!(next > now, "it rests");
        now = next;
    }
    assert_eq!(p.w.disk.log().len(), 2, "nothing is sent again and again");
    let there: Vec<u64> = slots
        .iter()
        .copied()
        .filter(|&slot| {
            p.swap.take(slot).is_some_and(|frame| {
                assert_eq!(words_of(p.w.machine, frame), [slot, slot]);
                p.w.free(frame);
                true
            })
        })
        .collect();
    assert_eq!(there.len() as u64, dirty);
    // The driver has given up and reset it: all comes back.
    while p.w.disk.fail(DiskError::Io) {}
    p.w.cache.poll();
    for slot in slots.iter().copied().filter(|slot| !there.contains(slot)) {
        assert_eq!(p.fault(slot), Ok([slot, slot]));
    }
    assert_eq!(p.swap.used(), 0);
    p.w.disk.set_auto(true);
    p.end(0);
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

/// Pages come in batches: swap that was full is not offered the next one when a slot or two are free.
#[test]
fn swap_that_was_full_has_room_again_for_a_batch() {
    for (size, enough) in [(1, 1), (5, 3), (200, 32)] {
        let p = Programs::new(Build {
            swap: size,
            ..Build::default()
        });
        assert_eq!(p.fill(0, size - 1).len() as u64, size - 1);
        assert!(p.swap.has_room(), "it was never full");
        assert_eq!(p.fill(0, 2).len(), 1);
        for slot in 0..enough {
            assert!(!p.swap.has_room(), "{slot} of {size}");
            p.swap.free(&[slot]);
        }
        assert!(p.swap.has_room());
        // Whoever asks gets what there is.
        assert_eq!(p.fill(0, size).len() as u64, enough);
        assert!(!p.swap.has_room());
        p.end(0);
    }
}

/// Where what is read around the wanted pages is not used less of it is read, and more again where it is.
#[test]
fn pages_around_are_read_as_far_as_it_is_worth_it() {
    let p = programs();
    let slots = p.fill(0, 160);
    p.write_and_evict(&slots);
    let mut read = |slot: u64| {
        p.w.disk.log();
        assert_eq!(p.swap.fetch(slot), Ok(()));
        assert_eq!(p.fault(slot), Ok([slot, slot]));
        p.w.disk
            .log()
            .iter()
            .map(|&(_, _, count)| count)
            .sum::<usize>()
    };
    // The window halves, and doubles.
    assert_eq!([3, 19, 35, 51, 67].map(&mut read), [8, 4, 2, 1, 1]);
    assert_eq!(
        [0, 1, 83, 82, 81, 80, 96].map(&mut read),
        [0, 0, 4, 0, 0, 0, 8]
    );
    p.end(0);
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
    assert_eq!(p.fault(1), Ok([1, 1]));
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
