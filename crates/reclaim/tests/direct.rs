//! Reclaim for requests.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{Event, FrameFlags, Order, Platform, Reclaim, Watermarks};
use dirigible_reclaim::{Age, Kind, Shrinker, Shrunk, Stamp, Who};
use support::{NO_MARKS, OWNER, Objects, World, leak, world};

fn direct(w: &World, frames: usize) -> usize {
    w.cache.no_writes.store(true, Relaxed);
    let freed = w.reclaimer.reclaim(frames, Order::BASE);
    w.cache.no_writes.store(false, Relaxed);
    w.cache.check();
    freed
}

#[test]
fn the_goal_is_freed_and_not_much_more() {
    let w = world(16, NO_MARKS);
    w.cache.add_many(4000, Age::New);
    let free = w.frames.free_frames();
    let freed = direct(&w, 32);
    assert_eq!(freed, 32);
    assert_eq!(w.frames.free_frames() - free, 32);
    assert_eq!(
        (w.event(Event::PgScanDirect), w.event(Event::PgStealDirect)),
        (32, 32)
    );
    assert_eq!(
        (w.event(Event::PgScanKswapd), w.event(Event::PgStealKswapd)),
        (0, 0)
    );
    assert_eq!(w.event(Event::PgReclaimed), 0, "counted by the slow path");
    assert_eq!(
        (
            w.machine.scans.load(Relaxed),
            w.machine.reclaims.load(Relaxed)
        ),
        (32, 32)
    );
}

#[test]
fn everything_that_is_clean_and_unused_goes_in_the_end() {
    let w = world(8, NO_MARKS);
    w.cache.add_many(2000, Age::New);
    w.cache.add_many(500, Age::Young);
    assert_eq!(direct(&w, 10_000), 2500);
    assert_eq!(direct(&w, 1), 0);
    assert_eq!(w.generations.size(), 0);
}

#[test]
fn what_is_used_once_stays_longer_and_what_is_used_twice_longest() {
    let w = world(8, NO_MARKS);
    let pages = w.cache.add_many(300, Age::New);
    for (at, &page) in pages.iter().enumerate() {
        for _ in 0..at % 3 {
            w.generations.used(page);
        }
    }
    assert_eq!(direct(&w, 100), 100);
    let left = w.cache.listed();
    assert!(pages.iter().step_by(3).all(|page| !left.contains(page)));
    // The next ones are those that were used once.
    assert_eq!(direct(&w, 100), 100);
    let left = w.cache.listed();
    assert!(pages[2..].iter().step_by(3).all(|page| left.contains(page)));
    assert_eq!(w.event(Event::PgActivate), 100);
    assert!(w.event(Event::PgDeactivate) <= w.event(Event::PgRefill));
    assert_eq!(direct(&w, 1000), 100, "used no more");
}

#[test]
fn marks_of_use_are_made_step_by_step() {
    let w = world(2, NO_MARKS);
    let page = w.cache.add(Age::New).unwrap();
    let flags = || w.frames.flags(page);
    w.generations.used(page);
    assert_eq!(flags(), FrameFlags::REFERENCED);
    w.generations.used(page);
    w.generations.used(page);
    assert_eq!(flags(), FrameFlags::REFERENCED.union(FrameFlags::ACTIVE));
    assert!(w.cache.remove(page));
    w.generations.used(page);
    assert_eq!(flags(), FrameFlags::EMPTY, "nobody holds it");
    w.cache.check();
}

#[test]
fn frames_in_hand_are_kept() {
    let w = world(4, NO_MARKS);
    let pages = w.cache.add_many(90, Age::New);
    pages[..30].iter().for_each(|&page| w.cache.hold(page));
    assert!(pages[30..60].iter().all(|&page| w.cache.isolate(page)));
    assert_eq!(direct(&w, 1000), 30);
    pages[..30].iter().for_each(|&page| w.cache.release(page));
    pages[30..60]
        .iter()
        .for_each(|&page| w.cache.put_isolated_back(page));
    assert_eq!(direct(&w, 1000), 60);
}

#[test]
fn frames_of_an_unknown_owner_are_kept() {
    let w = world(4, NO_MARKS);
    w.cache.add_many(100, Age::New);
    w.reclaimer.unregister(OWNER);
    assert_eq!(direct(&w, 10), 0);
    w.reclaimer.register(OWNER, w.cache).unwrap();
    assert!(w.reclaimer.register(OWNER, w.cache).is_err());
    assert_eq!(direct(&w, 10), 10);
}

#[test]
fn an_owner_that_says_no_keeps_its_frames() {
    let w = world(4, NO_MARKS);
    w.cache.add_many(100, Age::New);
    w.cache.stubborn.store(true, Relaxed);
    assert_eq!(direct(&w, 10), 0);
    // Each frame at each priority, and four times at the last.
    assert!(w.event(Event::PgScanDirect) <= 2 * 100 + 4 * 100 + 13 * 32);
    w.cache.stubborn.store(false, Relaxed);
    assert_eq!(direct(&w, 1000), 100);
}

/// Everything is dirty: a request marks, wakes the flusher, and frees nothing.
#[test]
fn pitfall_76_a_request_never_writes() {
    let w = world(4, NO_MARKS);
    let pages = w.cache.add_many(64, Age::New);
    pages.iter().for_each(|&page| w.cache.dirty(page));
    assert_eq!(direct(&w, 32), 0);
    assert!(w.event(Event::VmscanImmediate) >= 64 && w.cache.woken.load(Relaxed) > 0);
    assert_eq!(w.event(Event::VmscanWrite), 0);
    let all = |mark| {
        pages
            .iter()
            .all(|&page| w.frames.flags(page).contains(mark))
    };
    assert!(all(FrameFlags::RECLAIM.union(FrameFlags::DIRTY)));
    // Once written they are the first to go.
    pages.iter().for_each(|&page| assert!(w.cache.flush(page)));
    w.cache.end_writes(64);
    assert!(!all(FrameFlags::RECLAIM));
    w.cache.add_many(100, Age::New);
    assert_eq!(direct(&w, 64), 64);
    assert!(w.cache.listed().iter().all(|page| !pages.contains(page)));
}

#[test]
fn a_request_waits_for_writes_only_if_most_is_being_written() {
    let w = world(4, NO_MARKS);
    let pages = w.cache.add_many(200, Age::New);
    for &page in &pages {
        w.cache.dirty(page);
        w.cache.flush(page);
    }
    w.machine.ends.store(8, Relaxed);
    assert!(direct(&w, 16) >= 16);
    assert_eq!(w.event(Event::ReclaimThrottled), 1);
    // A cluster of writes, at eight for each look.
    assert_eq!(w.machine.relaxed.load(Relaxed), 4);
    w.cache.end_writes(1000);
    direct(&w, 16);
    assert_eq!(w.event(Event::ReclaimThrottled), 1);
}

/// Nobody else takes what the disk has finished.
/// Objects that come back as fast as they are given up.
struct Spring(std::sync::atomic::AtomicU64);

impl Shrinker for Spring {
    fn count(&self) -> u64 {
        100
    }

    fn shrink(&self, objects: u64, _: Who) -> Shrunk {
        assert!(self.0.fetch_add(1, Relaxed) < 1000, "it does not end");
        Shrunk {
            scanned: objects,
            freed: objects,
            frames: 1,
        }
    }
}

#[test]
fn the_operators_wish_ends() {
    let w = world(4, NO_MARKS);
    w.reclaimer
        .add_shrinker(leak(Spring(Default::default())))
        .unwrap();
    assert_eq!(w.reclaimer.shrink_all(), 8);
}

#[test]
fn who_waits_takes_finished_writes() {
    let w = world(4, NO_MARKS);
    for page in w.cache.add_many(200, Age::New) {
        w.cache.dirty(page);
        w.cache.flush(page);
    }
    w.cache.finds.store(8, Relaxed);
    assert!(direct(&w, 16) >= 16);
    assert_eq!(w.machine.relaxed.load(Relaxed), 4);
}

/// The balloon's worker lets no flusher run while it waits: it waits for what is in flight, and for nothing else.
#[test]
fn who_lets_nobody_run_waits_for_no_flusher() {
    for (program, waits) in [(false, 0), (true, 100)] {
        let w = world(4, NO_MARKS);
        for page in w.cache.add_many(200, Age::New) {
            w.cache.dirty(page);
        }
        w.machine.program.store(program, Relaxed);
        assert_eq!(direct(&w, 16), 0);
        assert_eq!(w.machine.relaxed.load(Relaxed), waits);
        assert_eq!(w.event(Event::ReclaimThrottled), waits / 100);
    }
    let w = world(4, NO_MARKS);
    for (at, page) in w.cache.add_many(200, Age::New).into_iter().enumerate() {
        w.cache.dirty(page);
        if at < 10 {
            w.cache.flush(page);
        }
    }
    w.cache.finds.store(5, Relaxed);
    direct(&w, 100);
    assert_eq!(w.machine.relaxed.load(Relaxed), 2);
}

#[test]
fn a_wait_for_writes_that_do_not_end_is_bounded() {
    let w = world(4, NO_MARKS);
    for page in w.cache.add_many(200, Age::New) {
        w.cache.dirty(page);
        w.cache.flush(page);
    }
    assert_eq!(direct(&w, 16), 0);
    assert_eq!(
        w.machine.relaxed.load(Relaxed),
        100,
        "100 ms at a millisecond each"
    );
    assert_eq!(w.event(Event::ReclaimThrottled), 1);
}

#[test]
fn a_large_request_ends_as_soon_as_compaction_has_room() {
    let marks = Watermarks {
        min: 50,
        low: 100,
        high: 150,
    };
    for (free, expected) in [(1124, 0..=0), (1123, 1..=32), (1000, 124..=156)] {
        let w = world(16, marks);
        w.cache.add_many(4000, Age::New);
        let taken = w.fill(free);
        let freed = w.reclaimer.reclaim(1024, Order::HUGE) as u64;
        assert!(expected.contains(&freed), "{free} free: {freed}");
        w.free(taken);
        w.cache.check();
    }
}

#[test]
fn objects_are_put_under_the_same_pressure() {
    let w = world(16, NO_MARKS);
    let objects = Objects::new(1000);
    w.reclaimer.add_shrinker(objects).unwrap();
    let pages = w.cache.add_many(1000, Age::New);
    pages.iter().for_each(|&page| w.cache.hold(page));
    // Nothing but objects gives way: all frames are looked at, six times in all.
    let freed = w.reclaimer.reclaim(10_000, Order::BASE) as u64;
    let calls = objects.calls.lock().unwrap().clone();
    let offered: u64 = calls.iter().map(|(objects, _)| objects).sum();
    assert_eq!(w.event(Event::SlabsScanned), offered);
    assert!(
        calls
            .iter()
            .all(|&(count, who)| count <= 128 && who == Who::Direct)
    );
    assert!(objects.count() < 128, "less than a batch may be owed");
    assert!(freed > 50 && w.event(Event::PgStealDirect) == 0, "{freed}");
    pages.iter().for_each(|&page| w.cache.release(page));
    w.cache.check();
}

#[test]
fn a_few_looks_at_frames_offer_few_objects() {
    let w = world(16, NO_MARKS);
    let objects = Objects::new(100_000);
    w.reclaimer.add_shrinker(objects).unwrap();
    w.cache.add_many(4000, Age::New);
    // The frames of objects count for the request.
    assert!(w.reclaimer.reclaim(32, Order::BASE) >= 32);
    // 32 of 4000 frames, twice the share: 1599 objects, in batches of 128; the rest is owed.
    assert_eq!(w.event(Event::SlabsScanned), 1599 / 128 * 128);
    let left = objects.count();
    assert!(w.reclaimer.reclaim(32, Order::BASE) >= 32);
    assert_eq!(w.event(Event::PgStealDirect), 64);
    let both = 1599 + 2 * 32 * left / 3969;
    assert_eq!(w.event(Event::SlabsScanned), both / 128 * 128);
}

#[test]
fn the_operator_gets_all_objects() {
    let w = world(4, NO_MARKS);
    let objects = Objects::new(1000);
    w.reclaimer.add_shrinker(objects).unwrap();
    assert!(w.reclaimer.shrink_all() > 50);
    assert_eq!(objects.count(), 0);
    assert!(
        objects
            .calls
            .lock()
            .unwrap()
            .iter()
            .all(|call| call.1 == Who::Operator)
    );
    assert_eq!(w.reclaimer.shrink_all(), 0);
}

/// A cache of objects that asks for memory while it is shrunk.
struct Recursive(
    std::sync::OnceLock<&'static dyn Reclaim>,
    std::sync::atomic::AtomicU64,
);

impl Shrinker for Recursive {
    fn count(&self) -> u64 {
        1
    }
    fn shrink(&self, objects: u64, _: Who) -> Shrunk {
        let freed = self.0.get().unwrap().reclaim(32, Order::BASE);
        assert_eq!(freed, 0, "reclaim inside of reclaim");
        self.1.fetch_add(1, Relaxed);
        Shrunk {
            scanned: objects,
            ..Shrunk::default()
        }
    }
}

#[test]
fn pitfall_63_reclaim_inside_of_reclaim_does_not_wait() {
    let w = world(4, NO_MARKS);
    let recursive = leak(Recursive(Default::default(), Default::default()));
    assert!(recursive.0.set(w.reclaimer).is_ok());
    w.reclaimer.add_shrinker(recursive).unwrap();
    w.cache.add_many(100, Age::New);
    assert_eq!(w.reclaimer.reclaim(200, Order::BASE), 100);
    assert!(recursive.1.load(Relaxed) > 0);
    w.cache.add_many(100, Age::New);
    assert_eq!(
        w.reclaimer.reclaim(32, Order::BASE),
        32,
        "the place is given back"
    );
}

#[test]
fn contents_that_come_back_soon_are_in_use() {
    let w = world(16, NO_MARKS);
    w.cache.add_many(100, Age::Young);
    w.cache.add_many(300, Age::New);
    assert_eq!(direct(&w, 101), 101);
    let first = w.cache.books().dropped[0].1;
    // 101 frames were reclaimed since, and 100 are young.
    assert!(!w.generations.refault(w.machine.cpu(), first, Kind::File));
    let second = Stamp::from_bits(first.bits() + 1);
    assert!(w.generations.refault(w.machine.cpu(), second, Kind::File));
    assert_eq!(
        (
            w.event(Event::WorkingsetRefault),
            w.event(Event::WorkingsetActivate)
        ),
        (2, 1)
    );
}

#[test]
fn a_move_keeps_age_and_use() {
    let w = world(4, NO_MARKS);
    let page = w.cache.add(Age::New).unwrap();
    w.generations.used(page);
    w.generations.used(page);
    w.cache.dirty(page);
    let (generation, flags) = (w.frames.generation(page), w.frames.flags(page));
    let to = w.cache.migrate(page).unwrap();
    assert_eq!(
        (w.frames.generation(to), w.frames.flags(to)),
        (generation, flags)
    );
    w.cache.check();
}

#[test]
fn owners_are_asked_for_uses_when_generations_age() {
    let w = world(4, NO_MARKS);
    w.cache.add_many(10, Age::Young);
    assert_eq!(direct(&w, 10), 10);
    // Three generations were empty, at one time.
    assert_eq!(w.cache.harvests.load(Relaxed), 1);
    let config = dirigible_reclaim::ReclaimConfig::default();
    w.machine.clock.fetch_add(config.harvest_ns, Relaxed);
    w.cache.add_many(10, Age::Young);
    assert_eq!(direct(&w, 10), 10);
    assert_eq!(w.cache.harvests.load(Relaxed), 2);
}

/// A frame that is scanned twice or met by several passes counts each time, and what is freed counts once.
#[test]
fn pitfall_65_counters_of_all_callers_sum_up() {
    let w = world(8, NO_MARKS);
    let pages = w.cache.add_many(1500, Age::New);
    for (at, &page) in pages.iter().enumerate() {
        match at % 4 {
            0 => w.cache.dirty(page),
            1 => w.generations.used(page),
            2 => w.cache.hold(page),
            _ => {}
        }
    }
    let mut kswapd = dirigible_reclaim::Kswapd::new(w.reclaimer, Default::default());
    let mut returned = 0;
    let mut now = 0;
    for _ in 0..200 {
        returned += direct(&w, 7) as u64;
        w.reclaimer.wake();
        now = kswapd.step(now);
        let [scanned, stolen, by_kswapd, stolen_by_kswapd] = [
            Event::PgScanDirect,
            Event::PgStealDirect,
            Event::PgScanKswapd,
            Event::PgStealKswapd,
        ]
        .map(|event| w.event(event));
        assert!(scanned >= stolen && by_kswapd >= stolen_by_kswapd);
        assert_eq!(stolen, returned);
        assert_eq!(
            stolen + stolen_by_kswapd,
            w.cache.books().dropped.len() as u64
        );
        assert_eq!(w.machine.scans.load(Relaxed), scanned + by_kswapd);
        assert_eq!(w.machine.reclaims.load(Relaxed), stolen + stolen_by_kswapd);
    }
    assert_eq!(returned, 750, "clean and not in hand");
}
