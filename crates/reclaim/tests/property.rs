//! Random uses, writes, moves and reclaim: after every step words, counts, tallies and index agree with the owner's naive
//! books, and what was dropped was free to go.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{Event, FrameFlags, Order, Pfn, Reclaim, Watermarks};
use dirigible_reclaim::{Age, Kswapd, KswapdConfig};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::{Machine, OWNER, World, world};

#[derive(Clone, Debug)]
enum Step {
    Add(u16, bool),
    Use(u16, u8),
    /// Uses every n-th page.
    UseMany(u8),
    Dirty(u16, u8),
    Flush(u16, u8),
    EndWrites(u8),
    Hold(u16, u8),
    ReleaseAll,
    Isolate(u16, u8),
    PutBackAll,
    Remove(u16, u8),
    Migrate(u16, u8),
    Direct(u16),
    Huge(u16),
    Kswapd(u8),
    Room(u8),
    /// The owner comes and goes.
    Unregister,
    Register,
    Stubborn(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let some = || (any::<u16>(), 1u8..40);
    prop_oneof![
        5 => (1u16..300, any::<bool>()).prop_map(|(n, young)| Step::Add(n, young)),
        3 => some().prop_map(|(at, n)| Step::Use(at, n)),
        1 => (1u8..9).prop_map(Step::UseMany),
        3 => some().prop_map(|(at, n)| Step::Dirty(at, n)),
        2 => some().prop_map(|(at, n)| Step::Flush(at, n)),
        3 => any::<u8>().prop_map(Step::EndWrites),
        2 => some().prop_map(|(at, n)| Step::Hold(at, n)),
        1 => Just(Step::ReleaseAll),
        2 => some().prop_map(|(at, n)| Step::Isolate(at, n)),
        1 => Just(Step::PutBackAll),
        2 => some().prop_map(|(at, n)| Step::Remove(at, n)),
        2 => some().prop_map(|(at, n)| Step::Migrate(at, n)),
        4 => (1u16..400).prop_map(Step::Direct),
        1 => (1u16..1024).prop_map(Step::Huge),
        4 => (1u8..60).prop_map(Step::Kswapd),
        1 => any::<u8>().prop_map(Step::Room),
        1 => Just(Step::Unregister),
        1 => Just(Step::Register),
        1 => any::<bool>().prop_map(Step::Stubborn),
    ]
}

struct Run {
    w: World,
    kswapd: Kswapd<'static, 'static, Machine>,
    now: u64,
    returned: u64,
}

impl Run {
    /// `count` pages from a place on.
    fn some(&self, at: u16, count: u8) -> Vec<Pfn> {
        let pages = self.w.cache.listed();
        let skip = usize::from(at) % pages.len().max(1);
        pages.into_iter().skip(skip).take(count.into()).collect()
    }

    fn direct(&mut self, goal: u16, order: Order) {
        let cache = self.w.cache;
        let registered = self.w.reclaimer.register(OWNER, cache).is_ok();
        if registered {
            // It was not: nothing can be had.
            self.w.reclaimer.unregister(OWNER);
        }
        let unused = |page: &Pfn| {
            let used = FrameFlags::REFERENCED.union(FrameFlags::ACTIVE);
            !self.w.frames.flags(*page).intersects(used)
        };
        let free_to_go: Vec<_> = {
            let books = cache.books();
            let idle = books.pages.iter().filter(|(_, page)| page.is_free_to_go());
            idle.map(|(page, _)| *page).filter(unused).collect()
        };
        let before = cache.count();
        cache.no_writes.store(true, Relaxed);
        let freed = self.w.reclaimer.reclaim(goal.into(), order);
        cache.no_writes.store(false, Relaxed);
        assert_eq!(freed, before - cache.count());
        assert!(freed <= usize::from(goal) + 32);
        if registered || cache.stubborn.load(Relaxed) {
            assert_eq!(freed, 0);
        } else if freed < goal.into() && order == Order::BASE {
            // Then nothing is left that nobody uses.
            let left = cache.listed();
            assert!(free_to_go.iter().all(|page| !left.contains(page)));
        }
        self.returned += freed as u64;
    }

    fn step(&mut self, step: &Step) {
        let cache = self.w.cache;
        match *step {
            Step::Add(count, young) => {
                let age = if young { Age::Young } else { Age::New };
                cache.add_many(count.into(), age);
            }
            Step::Use(at, count) => {
                let pages = self.some(at, count);
                pages
                    .into_iter()
                    .for_each(|page| self.w.generations.used(page));
            }
            Step::UseMany(every) => {
                for page in cache.listed().into_iter().step_by(every.into()) {
                    self.w.generations.used(page);
                }
            }
            Step::Dirty(at, count) => {
                let pages = self.some(at, count).into_iter();
                pages.for_each(|page| cache.dirty(page));
            }
            Step::Flush(at, count) => {
                let pages = self.some(at, count).into_iter();
                pages.for_each(|page| {
                    cache.flush(page);
                });
            }
            Step::EndWrites(count) => cache.end_writes(count.into()),
            Step::Hold(at, count) => {
                let pages = self.some(at, count).into_iter();
                pages.for_each(|page| cache.hold(page));
            }
            Step::ReleaseAll => {
                let pages = cache.listed().into_iter();
                pages.for_each(|page| cache.release(page));
            }
            Step::Isolate(at, count) => {
                let pages = self.some(at, count).into_iter();
                pages.for_each(|page| {
                    cache.isolate(page);
                });
            }
            Step::PutBackAll => {
                let pages = cache.listed().into_iter();
                pages.for_each(|page| cache.put_isolated_back(page));
            }
            Step::Remove(at, count) => {
                let pages = self.some(at, count).into_iter();
                pages.for_each(|page| {
                    cache.remove(page);
                });
            }
            Step::Migrate(at, count) => {
                let pages = self.some(at, count).into_iter();
                pages.for_each(|page| {
                    cache.migrate(page);
                });
            }
            Step::Direct(goal) => self.direct(goal, Order::BASE),
            Step::Huge(goal) => self.direct(goal, Order::HUGE),
            Step::Kswapd(steps) => {
                self.w.reclaimer.wake();
                for _ in 0..steps {
                    self.now = self.kswapd.step(self.now);
                }
            }
            Step::Room(room) => cache.room.store(room.into(), Relaxed),
            Step::Unregister => self.w.reclaimer.unregister(OWNER),
            Step::Register => drop(self.w.reclaimer.register(OWNER, cache)),
            Step::Stubborn(is) => cache.stubborn.store(is, Relaxed),
        }
    }

    fn check(&self) {
        let w = &self.w;
        w.cache.check();
        let event = |event| w.event(event);
        assert!(event(Event::PgScanDirect) >= event(Event::PgStealDirect));
        assert!(event(Event::PgScanKswapd) >= event(Event::PgStealKswapd));
        assert_eq!(event(Event::PgStealDirect), self.returned);
        let books = w.cache.books();
        let dropped = books.dropped.len() as u64;
        assert_eq!(
            event(Event::PgStealDirect) + event(Event::PgStealKswapd),
            dropped
        );
        assert_eq!(event(Event::VmscanWrite), books.written);
        assert_eq!(event(Event::PgDeactivate), event(Event::PgRefill));
        // One tick of the clock of evictions for each.
        let stamps = books
            .dropped
            .iter()
            .map(|(_, stamp)| u64::from(stamp.bits()));
        assert!(stamps.eq(0..dropped));
    }

    fn end(self) {
        let cache = self.w.cache;
        cache.stubborn.store(false, Relaxed);
        let _ = self.w.reclaimer.register(OWNER, cache);
        cache.end_writes(usize::MAX);
        for page in cache.listed() {
            cache.put_isolated_back(page);
            for _ in 0..32 {
                cache.release(page);
            }
            cache.flush(page);
        }
        cache.end_writes(usize::MAX);
        // Used ones go at the second call at the latest.
        self.w.reclaimer.reclaim(usize::MAX / 2, Order::BASE);
        self.w.reclaimer.reclaim(usize::MAX / 2, Order::BASE);
        assert_eq!((cache.count(), self.w.generations.size()), (0, 0));
        self.w.frames.drain_cpu_caches();
        assert_eq!(self.w.frames.free_frames(), self.w.frames.managed_frames());
        cache.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_the_books_agree(steps in prop::collection::vec(step(), 1..60)) {
        let w = world(5, Watermarks { min: 64, low: 128, high: 256 });
        let kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
        let mut run = Run { w, kswapd, now: 0, returned: 0 };
        for step in &steps {
            run.step(step);
            run.check();
        }
        run.end();
    }
}
