//! Background reclaim of several zones, of which one has nothing to give.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{
    AllocRequest, Event, Order, Pfn, Platform, Reclaim, Watermark, Watermarks, ZoneId,
};
use dirigible_reclaim::{Age, Kswapd, KswapdConfig};
use support::{Machine, World, world_of_two};

const MARKS: Watermarks = Watermarks {
    min: 100,
    low: 200,
    high: 300,
};
/// What 16 blocks should have free.
const GOAL: u64 = 200 + 512;

/// Two zones of 16 blocks, all of it taken: `held` frames by zone by nobody that reclaim knows, and all others by pages
/// of files. Gives the held ones by zone.
fn full(held: [usize; 2]) -> (World, [Vec<Pfn>; 2]) {
    let w = world_of_two(16, MARKS);
    let request = AllocRequest::movable().with_watermark(Watermark::None);
    let mut frames = [Vec::new(), Vec::new()];
    let mut rest = Vec::new();
    while let Ok(frame) = w.frames.alloc(w.machine.cpu(), request) {
        let zone = w.frames.zone_of(frame).unwrap().index();
        if frames[zone].len() < held[zone] {
            frames[zone].push(frame);
        } else {
            rest.push(frame);
        }
    }
    w.free(rest);
    while w.cache.add(Age::New).is_some() {}
    w.frames.drain_cpu_caches();
    (w, frames)
}

fn run(w: &World, kswapd: &mut Kswapd<'_, '_, Machine>) {
    for _ in 0..100_000 {
        let now = w.machine.clock.load(Relaxed);
        let next = kswapd.step(now);
        w.machine.clock.store(next.max(now), Relaxed);
        if !kswapd.is_running() {
            w.cache.check();
            return;
        }
    }
    panic!("it does not end");
}

fn free(w: &World) -> [u64; 2] {
    [0, 1].map(|zone| w.frames.zone_free_frames(ZoneId::new(zone)))
}

/// One zone has nothing that can be reclaimed: it is given up, and the other keeps what is above its goal.
#[test]
fn a_zone_that_has_nothing_does_not_empty_the_other() {
    for without in [0, 1] {
        let mut held = [0, 0];
        held[without] = 8192;
        let other = 1 - without;
        let (w, mut frames) = full(held);
        assert_eq!(free(&w), [0, 0]);
        let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
        run(&w, &mut kswapd);
        assert!(kswapd.has_given_up());
        assert_eq!(free(&w)[without], 0);
        let now = free(&w)[other];
        assert!((GOAL..GOAL + 512).contains(&now), "{now}");
        // However often it is woken, and though frames of the other zone come and go.
        for _ in 0..50 {
            w.reclaimer.wake();
            run(&w, &mut kswapd);
        }
        assert_eq!(free(&w)[other], now);
        // The other zone it keeps free all the same.
        for _ in 0..20 {
            let scanned = w.event(Event::PgScanKswapd);
            while free(&w)[other] >= MARKS.low {
                w.cache.add(Age::New).unwrap();
                w.frames.drain_cpu_caches();
            }
            run(&w, &mut kswapd);
            let now = free(&w)[other];
            assert!((GOAL..GOAL + 512).contains(&now), "{now}");
            assert!(kswapd.has_given_up());
            let scanned = w.event(Event::PgScanKswapd) - scanned;
            assert!(scanned < 3 * GOAL, "{scanned}");
        }
        // It begins again when something becomes free there.
        let freed = frames[without].split_off(8192 - 100);
        w.free(freed);
        run(&w, &mut kswapd);
        assert!(kswapd.has_given_up(), "there is nothing more");
        w.free(frames[without].split_off(1000));
        run(&w, &mut kswapd);
        assert!(!kswapd.has_given_up());
    }
}

/// Both can give: both reach their goals, whichever was short.
#[test]
fn each_zone_reaches_its_goal() {
    for held in [[0, 0], [7000, 0], [0, 7000], [7000, 7000]] {
        let (w, _) = full(held);
        let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
        run(&w, &mut kswapd);
        assert!(!kswapd.has_given_up());
        let now = free(&w);
        assert!(
            now.iter().all(|free| (GOAL..GOAL + 512).contains(free)),
            "{held:?}: {now:?}"
        );
    }
}

/// Writes in the zone that has enough are not waited for.
#[test]
fn writes_elsewhere_are_no_reason_to_go_on() {
    let (w, frames) = full([8192, 0]);
    let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
    run(&w, &mut kswapd);
    for page in w.cache.listed() {
        w.cache.dirty(page);
        w.cache.flush(page);
    }
    // A request has had success: it tries again.
    w.cache.end_writes(1);
    assert_eq!(w.reclaimer.reclaim(1, Order::BASE), 1);
    run(&w, &mut kswapd);
    assert!(kswapd.has_given_up());
    w.free(frames.into_iter().flatten().collect());
}
