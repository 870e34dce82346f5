//! Background reclaim.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{Event, FrameFlags, Order, Reclaim, Watermarks};
use dirigible_reclaim::{Age, Kswapd, KswapdConfig};
use support::{Machine, Objects, World, world};

const MARKS: Watermarks = Watermarks {
    min: 100,
    low: 200,
    high: 300,
};
/// What 16 blocks should have free: a sixteenth of them above the low watermark is more than the high one and a gap.
const GOAL: u64 = 200 + 512;

fn kswapd(w: &World) -> Kswapd<'static, 'static, Machine> {
    Kswapd::new(w.reclaimer, KswapdConfig::default())
}

/// Steps until it rests; gives how many steps it took, without looks in a pause, and the time.
fn run(kswapd: &mut Kswapd<'_, '_, Machine>, w: &World) -> (u32, u64) {
    let begun = w.machine.clock.load(Relaxed);
    let mut step = 0;
    for _ in 1..100_000 {
        let now = w.machine.clock.load(Relaxed);
        let scanned = w.event(Event::PgScanKswapd);
        let next = kswapd.step(now);
        let looks = next > now && kswapd.is_running() && w.event(Event::PgScanKswapd) == scanned;
        step += u32::from(!looks);
        w.machine.clock.store(next.max(now), Relaxed);
        if !kswapd.is_running() {
            w.cache.check();
            return (step, next - begun);
        }
    }
    panic!("it does not end");
}

/// A world of 16 blocks with `pages` pages and `free` frames free; the rest is taken.
fn short_of_memory(pages: usize, free: u64) -> World {
    let w = world(16, MARKS);
    w.fill(free + pages as u64);
    w.frames.drain_cpu_caches();
    assert_eq!(w.cache.add_many(pages, Age::New).len(), pages);
    w.frames.drain_cpu_caches();
    assert_eq!(w.frames.free_frames(), free);
    w
}

#[test]
fn it_keeps_quiet_while_enough_is_free() {
    let w = short_of_memory(3000, 200);
    let mut kswapd = kswapd(&w);
    assert_eq!(kswapd.step(5), 5 + 1_000_000);
    assert!(!kswapd.is_running());
    assert_eq!(
        (w.event(Event::KswapdWake), w.event(Event::PgScanKswapd)),
        (0, 0)
    );
}

#[test]
fn below_the_low_watermark_it_begins_by_itself_and_ends_at_its_goal() {
    let w = short_of_memory(3000, 199);
    let mut kswapd = kswapd(&w);
    run(&mut kswapd, &w);
    let free = w.frames.free_frames();
    assert!((GOAL..GOAL + 256).contains(&free), "{free}");
    assert_eq!(w.event(Event::KswapdWake), 1);
    assert_eq!(w.event(Event::PgStealKswapd), free - 199);
    assert_eq!(
        (w.event(Event::PgStealDirect), w.event(Event::PgScanDirect)),
        (0, 0)
    );
    run(&mut kswapd, &w);
    assert_eq!(w.frames.free_frames(), free);
}

#[test]
fn a_wake_begins_it_earlier_and_once() {
    let w = short_of_memory(3000, 400);
    let mut kswapd = kswapd(&w);
    w.reclaimer.wake();
    run(&mut kswapd, &w);
    assert!(w.frames.free_frames() >= GOAL);
    w.reclaimer.wake();
    let scanned = w.event(Event::PgScanKswapd);
    run(&mut kswapd, &w);
    assert_eq!(
        w.event(Event::PgScanKswapd),
        scanned,
        "all zones have enough"
    );
    assert_eq!(w.event(Event::KswapdWake), 1);
}

#[test]
fn one_step_is_a_bounded_piece() {
    let w = short_of_memory(5000, 100);
    let config = KswapdConfig {
        piece: 50,
        ..KswapdConfig::default()
    };
    let mut kswapd = Kswapd::new(w.reclaimer, config);
    let mut before = 0;
    for _ in 0..300 {
        kswapd.step(0);
        let scanned = w.event(Event::PgScanKswapd);
        assert!(scanned - before <= 50);
        before = scanned;
    }
    assert!(before > 600);
}

#[test]
fn in_trouble_it_writes_and_pauses() {
    let w = short_of_memory(1000, 150);
    w.cache
        .listed()
        .into_iter()
        .for_each(|page| w.cache.dirty(page));
    w.cache.room.store(40, Relaxed);
    let mut kswapd = kswapd(&w);
    let mut now = 0;
    let mut pauses = 0;
    while w.event(Event::VmscanWrite) == 0 {
        let next = kswapd.step(now);
        let in_trouble = w.event(Event::VmscanWrite) > 0;
        assert_eq!(next > now, in_trouble, "no pause before");
        now = next;
    }
    // Dirty frames at priorities 12 to 10 are the flusher's.
    assert!(w.event(Event::VmscanImmediate) > 0 && w.cache.woken.load(Relaxed) > 0);
    let mut last = now;
    for _ in 0..2000 {
        let scanned = w.event(Event::PgScanKswapd);
        let next = kswapd.step(now);
        if w.event(Event::PgScanKswapd) > scanned {
            pauses += u32::from(now >= last + 100_000_000);
            last = now;
        }
        now = next;
    }
    assert!(pauses > 0);
    assert_eq!(w.event(Event::VmscanWrite), 40, "as much as the disk takes");
    assert_eq!(w.cache.books().written, 40);
    assert_eq!(w.event(Event::KswapdSkipWait), 0);
    // A wake ends one.
    while kswapd.step(now) == now {}
    let scanned = w.event(Event::PgScanKswapd);
    assert!(kswapd.step(now) > now);
    assert_eq!(w.event(Event::PgScanKswapd), scanned);
    w.reclaimer.wake();
    kswapd.step(now);
    assert!(w.event(Event::PgScanKswapd) > scanned);
    // And so does a lack.
    while kswapd.step(now) == now {}
    let scanned = w.event(Event::PgScanKswapd);
    kswapd.step(now);
    assert_eq!(w.event(Event::PgScanKswapd), scanned);
    let lack = w.fill(90);
    kswapd.step(now);
    assert!(w.event(Event::PgScanKswapd) > scanned);
    w.free(lack);
    w.cache.end_writes(1000);
    w.cache.check();
}

/// The mark that a write leaves for its end is there before that.
#[test]
fn what_is_written_at_once_keeps_no_mark() {
    let w = short_of_memory(1000, 150);
    w.cache.quick.store(true, Relaxed);
    for page in w.cache.listed() {
        w.cache.dirty(page);
    }
    let mut kswapd = kswapd(&w);
    while w.event(Event::VmscanWrite) == 0 {
        kswapd.step(0);
    }
    let books = w.cache.books();
    let clean = books.pages.iter().filter(|(_, page)| !page.dirty);
    let marked = |frame| w.frames.flags(frame).contains(FrameFlags::RECLAIM);
    assert!(clean.clone().count() > 0);
    assert!(clean.map(|(&frame, _)| frame).all(|frame| !marked(frame)));
}

#[test]
fn below_the_min_watermark_it_does_not_pause() {
    let w = short_of_memory(1000, 99);
    w.cache.stubborn.store(true, Relaxed);
    let mut kswapd = kswapd(&w);
    let (_, time) = run(&mut kswapd, &w);
    assert!(kswapd.has_given_up());
    assert!(time <= 1_000_000);
    // Nine passes of each of 16 rounds; it gives up after the last of them.
    assert_eq!(w.event(Event::KswapdSkipWait), 16 * 9 - 1);
}

/// There is nothing to reclaim, or nothing that can be: it gives up, and begins again when there is reason to.
#[test]
fn pitfall_79_background_reclaim_ends_when_nothing_helps() {
    for (pages, free) in [(0, 50), (700, 50), (700, 150)] {
        let w = short_of_memory(pages, free);
        w.cache.stubborn.store(true, Relaxed);
        let mut kswapd = kswapd(&w);
        let (steps, _) = run(&mut kswapd, &w);
        assert!(kswapd.has_given_up() && steps < 16 * 12 * 5, "{steps}");
        let scanned = w.event(Event::PgScanKswapd);
        for _ in 0..1000 {
            w.reclaimer.wake();
            assert_eq!(run(&mut kswapd, &w).0, 1);
        }
        assert_eq!(w.event(Event::PgScanKswapd), scanned);
        // A request reclaims something.
        w.cache.stubborn.store(false, Relaxed);
        if pages > 0 {
            assert_eq!(w.reclaimer.reclaim(1, Order::BASE), 1);
            run(&mut kswapd, &w);
            assert!(!kswapd.has_given_up() && w.event(Event::PgStealKswapd) > 0);
        }
    }
}

#[test]
fn what_somebody_frees_is_a_reason_to_begin_again() {
    let w = world(16, MARKS);
    let mut taken = w.fill(750);
    assert_eq!(w.cache.add_many(700, Age::New).len(), 700);
    w.frames.drain_cpu_caches();
    w.cache.stubborn.store(true, Relaxed);
    let mut kswapd = kswapd(&w);
    run(&mut kswapd, &w);
    assert!(kswapd.has_given_up());
    w.cache.stubborn.store(false, Relaxed);
    run(&mut kswapd, &w);
    assert!(
        kswapd.has_given_up(),
        "nothing has changed that it knows of"
    );
    // Ups and downs are no reason.
    for _ in 0..20 {
        let free = w.frames.free_frames();
        let up_and_down = w.fill(free - 31);
        run(&mut kswapd, &w);
        w.free(up_and_down);
        run(&mut kswapd, &w);
        assert!(kswapd.has_given_up());
    }
    w.free(taken.split_off(taken.len() - 32));
    run(&mut kswapd, &w);
    assert!(!kswapd.has_given_up());
    assert!(w.frames.free_frames() >= GOAL);
    w.free(taken);
}

/// Writes that are in flight for longer than 16 rounds take: it waits for them, and does not burn the time.
#[test]
fn it_does_not_give_up_while_writes_are_in_flight() {
    for free in [50, 150] {
        let w = short_of_memory(1000, free);
        for page in w.cache.listed() {
            w.cache.dirty(page);
            w.cache.flush(page);
        }
        let mut kswapd = kswapd(&w);
        let mut steps = 0;
        let mut now = 0;
        while now < 1_000_000_000 {
            now = kswapd.step(now);
            steps += 1;
            assert!(kswapd.is_running() && steps < 120_000);
        }
        w.cache.end_writes(1000);
        w.machine.clock.store(now, Relaxed);
        run(&mut kswapd, &w);
        assert!(!kswapd.has_given_up() && w.frames.free_frames() >= GOAL);
    }
}

/// Between the watermarks and on both sides of each: it ends, and what it has begun it brings to the goal.
#[test]
fn pitfall_60_background_reclaim_comes_to_an_end_from_any_amount() {
    for free in [
        0,
        1,
        99,
        100,
        101,
        199,
        200,
        201,
        299,
        300,
        301,
        GOAL - 1,
        GOAL,
        GOAL + 1,
    ] {
        let w = short_of_memory(2000, free);
        let mut kswapd = kswapd(&w);
        w.reclaimer.wake();
        let (steps, _) = run(&mut kswapd, &w);
        assert!(steps < 1000, "{free} free: {steps} steps");
        assert!(w.frames.free_frames() >= GOAL);
        let scanned = w.event(Event::PgScanKswapd);
        run(&mut kswapd, &w);
        assert_eq!(w.event(Event::PgScanKswapd), scanned);
    }
}

/// Huge pages are asked for without end, and never had: background reclaim frees what its goal says, and no more for all
/// the requests.
#[test]
fn pitfall_61_huge_pages_that_cannot_be_had_reclaim_no_more_than_the_goal() {
    let w = short_of_memory(6000, 150);
    let mut kswapd = kswapd(&w);
    for _ in 0..1000 {
        w.reclaimer.wake();
        run(&mut kswapd, &w);
    }
    let free = w.frames.free_frames();
    assert!(free < GOAL + 256, "{free}");
    assert_eq!(w.event(Event::KswapdWake), 1);
    // What direct reclaim gives for them is bounded as well.
    for _ in 0..100 {
        w.reclaimer.reclaim(1024, Order::HUGE);
    }
    assert!(w.frames.free_frames() <= MARKS.low + 1024 + 32);
    assert!(w.cache.count() > 4000);
    w.cache.check();
}

/// Compaction wants `low + 512` at the most; reclaim for it ends at twice that, background reclaim at its goal. One frame
/// more or less at any of these amounts does not send them to each other.
#[test]
fn pitfall_62_reclaim_ends_around_compactions_thresholds() {
    let around = |amount: u64| [amount - 1, amount, amount + 1];
    let amounts = [MARKS.min + 512, MARKS.low + 512, MARKS.low + 1024].map(around);
    for free in amounts.into_iter().flatten() {
        let w = short_of_memory(3000, free);
        let mut kswapd = kswapd(&w);
        let mut asked = 0;
        loop {
            let freed = w.reclaimer.reclaim(1024, Order::HUGE);
            w.reclaimer.wake();
            run(&mut kswapd, &w);
            asked += 1;
            if freed == 0 {
                break;
            }
        }
        assert!(asked <= 2, "{free} free: {asked} calls");
        let now = w.frames.free_frames();
        assert!(
            (MARKS.low + 1024..MARKS.low + 1024 + 32).contains(&now),
            "{now}"
        );
    }
}

#[test]
fn objects_are_reclaimed_in_the_background_too() {
    let w = short_of_memory(1000, 100);
    w.cache
        .listed()
        .into_iter()
        .for_each(|page| w.cache.hold(page));
    let objects = Objects::new(3000);
    w.reclaimer.add_shrinker(objects).unwrap();
    let mut kswapd = kswapd(&w);
    run(&mut kswapd, &w);
    assert!(
        objects
            .calls
            .lock()
            .unwrap()
            .iter()
            .all(|call| call.1 == dirigible_reclaim::Who::Kswapd)
    );
    assert!(w.event(Event::SlabsScanned) >= 3000);
    w.cache
        .listed()
        .into_iter()
        .for_each(|page| w.cache.release(page));
    w.cache.check();
}
