//! Reclaim of anonymous frames.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{Event, FrameFlags, Order, OwnerId, Reclaim, Watermarks};
use dirigible_reclaim::{Age, Kind, Kswapd, KswapdConfig, ReclaimConfig};
use support::{
    NO_MARKS, World,
    programs::{PROGRAMS, Programs},
    world, world_with,
};

fn direct(w: &World, frames: usize) -> usize {
    w.cache.no_writes.store(true, Relaxed);
    let freed = w.reclaimer.reclaim(frames, Order::BASE);
    w.cache.no_writes.store(false, Relaxed);
    w.cache.check();
    freed
}

fn scanned(w: &World) -> u64 {
    w.event(Event::PgScanDirect)
}

/// A request that finds programs' pages alone gives them to swap, waits for their writes, and frees these.
#[test]
fn programs_pages_alone_serve_a_request() {
    let w = world(16, NO_MARKS);
    let programs = Programs::new(&w, 10_000);
    programs.add_many(4000);
    w.machine.ends.store(8, Relaxed);
    let freed = direct(&w, 32);
    assert!((32..64).contains(&freed), "{freed}");
    assert_eq!(w.event(Event::PgStealDirect), freed as u64);
    assert!(w.machine.relaxed.load(Relaxed) < 20);
    // The goal, and what was given away after the first frames were free.
    assert!(programs.count() >= 4000 - 100, "{}", programs.count());
    let events = (w.event(Event::VmscanWrite), w.event(Event::VmscanImmediate));
    assert_eq!(events, (0, 0), "whoever ends the writes counts them");
    assert!(scanned(&w) < 500, "{}", scanned(&w));
}

/// The disk does not answer: no more is given to swap than each pass needs.
#[test]
fn writes_that_do_not_end_swap_out_no_more_than_is_wanted() {
    let w = world(16, NO_MARKS);
    let programs = Programs::new(&w, 10_000);
    programs.add_many(4000);
    assert_eq!(direct(&w, 16), 0);
    let given = 4000 - programs.count();
    assert_eq!(given, 16);
    assert_eq!(w.machine.relaxed.load(Relaxed), 100, "a bounded wait");
}

#[test]
fn a_request_ends_with_nothing_if_there_is_no_swap_or_it_is_full() {
    for (slots, stubborn) in [(0, false), (10_000, true)] {
        let w = world(4, NO_MARKS);
        let programs = Programs::new(&w, slots);
        programs.add_many(1000);
        programs.stubborn.store(stubborn, Relaxed);
        assert_eq!(direct(&w, 32), 0);
        assert_eq!(programs.count(), 1000);
        // Each frame at each priority, and four times at the last.
        assert!(scanned(&w) <= 2 * 1000 + 4 * 1000 + 13 * 32);
        assert_eq!(programs.batches.lock().unwrap().is_empty(), slots == 0);
        assert_eq!(w.event(Event::ReclaimThrottled), 0);
    }
    // It becomes full half-way.
    let w = world(4, NO_MARKS);
    let programs = Programs::new(&w, 20);
    programs.add_many(1000);
    w.machine.ends.store(8, Relaxed);
    assert_eq!(direct(&w, 100), 20);
    assert_eq!((programs.count(), direct(&w, 100)), (980, 0));
}

/// Without room in swap files are taken as if there were no programs' pages.
#[test]
fn without_swap_all_of_the_files_are_taken() {
    let config = ReclaimConfig {
        swappiness: 200,
        ..ReclaimConfig::default()
    };
    let w = world_with(16, NO_MARKS, config);
    let programs = Programs::new(&w, 0);
    programs.add_many(32);
    w.cache.add_many(1000, Age::New);
    assert_eq!(direct(&w, 32), 32);
    assert!(scanned(&w) <= 64 + 32);
}

/// Frames of both kinds, mixed: what is taken of each is its share.
#[test]
fn both_kinds_are_taken_by_their_shares() {
    for (swappiness, cost, files, least, most) in [
        (60, None, 560, 200, 280),
        (100, None, 400, 380, 420),
        (0, None, 800, 0, 0),
        // A cost of the other halves the weight at the most.
        (60, Some(Kind::Anonymous), 660, 120, 150),
        (60, Some(Kind::File), 440, 350, 390),
    ] {
        let config = ReclaimConfig {
            swappiness,
            ..ReclaimConfig::default()
        };
        let w = world_with(16, NO_MARKS, config);
        let programs = Programs::new(&w, 100_000);
        for _ in 0..2000 {
            w.cache.add(Age::New).unwrap();
            programs.add(PROGRAMS, Age::New, Order::BASE).unwrap();
        }
        if let Some(kind) = cost {
            w.generations.cost(kind, 900);
        }
        let freed = direct(&w, files);
        assert!((files..files + 32).contains(&freed), "{freed}");
        let given = 2000 - programs.count();
        assert!(
            (least..=most).contains(&given),
            "{swappiness} {cost:?}: {given} given, {freed} freed"
        );
    }
}

/// The last pass of a request takes what there is, whatever the shares are.
#[test]
fn at_priority_0_both_kinds_are_taken() {
    for swappiness in [0, 200] {
        let config = ReclaimConfig {
            swappiness,
            ..ReclaimConfig::default()
        };
        let w = world_with(4, NO_MARKS, config);
        let programs = Programs::new(&w, 10_000);
        if swappiness == 0 {
            programs.add_many(500);
            // Given away in the last pass.
            assert_eq!(direct(&w, 16), 0);
            assert_eq!(programs.count(), 500 - 16);
            w.cache.end_writes(100);
            assert_eq!(direct(&w, 16), 16);
        } else {
            w.cache.add_many(500, Age::New);
            assert_eq!(direct(&w, 16), 16);
            assert!(scanned(&w) > 500, "only in the last pass");
        }
    }
}

/// Marks decide before the kind does.
#[test]
fn programs_pages_in_use_stay() {
    let w = world(4, NO_MARKS);
    let programs = Programs::new(&w, 10_000);
    w.machine.ends.store(8, Relaxed);
    let pages = programs.add_many(90);
    for &page in &pages[..30] {
        assert!(w.frames.get_ref(page));
    }
    for &page in &pages[30..60] {
        w.generations.used(page);
        w.generations.used(page);
    }
    assert_eq!(direct(&w, 10), 10);
    let left = programs.pages.lock().unwrap().clone();
    assert!(pages[..60].iter().all(|page| left.contains(page)));
    assert!(left.len() >= 75, "{}", left.len());
    assert_eq!(w.event(Event::PgActivate), 30);
}

#[test]
fn each_owner_gets_its_own_frames_in_batches() {
    let w = world(4, NO_MARKS);
    const OTHERS: OwnerId = OwnerId::new(6).unwrap();
    let programs = Programs::new(&w, 10_000);
    let others = Programs::with_id(&w, OTHERS, 10_000);
    for _ in 0..50 {
        programs.add(PROGRAMS, Age::New, Order::BASE).unwrap();
    }
    for _ in 0..50 {
        others.add(OTHERS, Age::New, Order::BASE).unwrap();
    }
    direct(&w, 100);
    assert_eq!((programs.count(), others.count()), (0, 0));
    for owner in [programs, others] {
        let batches = owner.batches.lock().unwrap().clone();
        assert_eq!(batches.iter().sum::<usize>(), 50);
    }
}

/// A huge page is one frame to the hand; its owner splits it.
#[test]
fn huge_pages_go_into_swap_too() {
    let w = world(8, NO_MARKS);
    let programs = Programs::new(&w, 10_000);
    for _ in 0..3 {
        programs.add(PROGRAMS, Age::New, Order::HUGE).unwrap();
    }
    w.machine.ends.store(32, Relaxed);
    let freed = direct(&w, 64);
    assert!(freed >= 32, "{freed}");
    let huge = |page: &&_| w.frames.order(**page) == Order::HUGE;
    let left = programs.pages.lock().unwrap().iter().filter(huge).count();
    assert!(left >= 1, "one in a pass is enough");
}

/// Frames that go through swap are met twice and freed once; nobody counts more freed frames than it has looked at.
#[test]
fn pitfall_65_scanned_is_never_less_than_reclaimed() {
    let w = world(16, MARKS);
    w.fill(6150);
    let programs = Programs::new(&w, 100_000);
    for _ in 0..3000 {
        w.cache.add(Age::New).unwrap();
        programs.add(PROGRAMS, Age::New, Order::BASE).unwrap();
    }
    w.frames.drain_cpu_caches();
    let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
    let (mut now, mut returned) = (0, 0);
    for turn in 0..400 {
        if turn % 4 == 0 {
            returned += direct(&w, 9) as u64;
        }
        now = kswapd.step(now);
        w.cache.end_writes(turn % 16);
        let [direct, stolen, background, stolen_by_it] = [
            Event::PgScanDirect,
            Event::PgStealDirect,
            Event::PgScanKswapd,
            Event::PgStealKswapd,
        ]
        .map(|event| w.event(event));
        assert!(direct >= stolen && background >= stolen_by_it);
        let dropped = w.cache.books().dropped.len() as u64;
        assert_eq!((stolen, stolen + stolen_by_it), (returned, dropped));
        let left = programs.count() + w.cache.count();
        assert_eq!(left as u64 + dropped, 6000, "each is somewhere");
    }
    assert!(programs.count() < 2900 && returned >= 900);
    assert_eq!(w.event(Event::VmscanWrite), 0);
}

const MARKS: Watermarks = Watermarks {
    min: 100,
    low: 200,
    high: 300,
};

/// Steps until it rests, or for some seconds.
fn run(w: &World, kswapd: &mut Kswapd<'_, '_, support::Machine>, writes: usize, seconds: u64) {
    let mut now = w.machine.clock.load(Relaxed);
    let end = now + seconds * 1_000_000_000;
    while now < end {
        let next = kswapd.step(now);
        if next > now {
            w.cache.end_writes(writes);
        }
        now = next;
        if !kswapd.is_running() {
            break;
        }
    }
    w.machine.clock.store(now, Relaxed);
    w.cache.check();
}

#[test]
fn background_reclaim_frees_programs_pages() {
    for (swappiness, free) in [(60, 150), (60, 50), (0, 50)] {
        let config = ReclaimConfig {
            swappiness,
            ..ReclaimConfig::default()
        };
        let w = world_with(16, MARKS, config);
        w.fill(6000 + free);
        let programs = Programs::new(&w, 10_000);
        programs.add_many(6000);
        w.frames.drain_cpu_caches();
        assert_eq!(w.frames.free_frames(), free);
        let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
        run(&w, &mut kswapd, 64, 1);
        assert!(!kswapd.is_running() && !kswapd.has_given_up());
        let lack = 712 - free;
        assert_eq!(w.event(Event::PgStealKswapd), w.frames.free_frames() - free);
        assert!(w.frames.free_frames() >= 712);
        let given = 6000 - programs.count() as u64;
        assert!((lack..2 * lack).contains(&given), "{given} of {lack}");
    }
}

/// Full swap, or none: it gives up, and does not turn for ever.
#[test]
fn background_reclaim_gives_up_if_swap_is_full() {
    for (slots, stubborn) in [(0, false), (10_000, true), (100, false)] {
        let w = world(16, MARKS);
        w.fill(6050);
        let programs = Programs::new(&w, slots);
        programs.stubborn.store(stubborn, Relaxed);
        programs.add_many(6000);
        w.frames.drain_cpu_caches();
        let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
        run(&w, &mut kswapd, 64, 30);
        assert!(kswapd.has_given_up() && !kswapd.is_running());
        let given = if stubborn { 0 } else { slots };
        assert_eq!(w.event(Event::PgStealKswapd), given);
    }
}

/// Files' frames that reclaim itself has to write cost as much as programs' that go into swap, which the cache counts.
#[test]
fn writes_of_files_are_a_cost() {
    let w = world(16, MARKS);
    w.fill(2150);
    for page in w.cache.add_many(2000, Age::New) {
        w.cache.dirty(page);
    }
    w.frames.drain_cpu_caches();
    w.cache.room.store(40, Relaxed);
    let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
    run(&w, &mut kswapd, 0, 1);
    assert_eq!(w.cache.books().written, 40);
    assert_eq!(w.generations.costs()[Kind::File as usize], 40);
    assert_eq!(w.generations.costs()[Kind::Anonymous as usize], 0);
}

/// Writes that never end: it rests, and what it gives to swap is bounded.
#[test]
fn background_reclaim_waits_for_swap_to_be_written() {
    let w = world(16, MARKS);
    w.fill(6150);
    let programs = Programs::new(&w, 10_000);
    programs.add_many(6000);
    w.frames.drain_cpu_caches();
    let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
    run(&w, &mut kswapd, 0, 1);
    assert!(kswapd.is_running());
    let given = 6000 - programs.count();
    assert!((562..1000).contains(&given), "{given}");
}

#[test]
fn what_is_old_is_what_reclaim_takes_soon() {
    let w = world(4, NO_MARKS);
    let new = w.cache.add(Age::New).unwrap();
    let young = w.cache.add(Age::Young).unwrap();
    assert!(w.generations.is_old(new) && !w.generations.is_old(young));
    w.generations.used(new);
    assert!(!w.generations.is_old(new));
    assert!(!w.generations.is_old(dirigible_frames::Pfn::new(0)));
    w.cache.remove(young);
    assert!(!w.generations.is_old(young), "in no generation");
    assert!(w.frames.flags(new).contains(FrameFlags::REFERENCED));
}
