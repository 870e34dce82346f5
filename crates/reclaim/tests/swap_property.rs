//! Random programs and files, writes and reclaim: after every step the words, counts, tallies and index agree with the
//! owners' naive books, and no page is lost.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{Event, Order, Reclaim, Watermarks};
use dirigible_reclaim::{Age, Kind, Kswapd, KswapdConfig, ReclaimConfig};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::{
    programs::{PROGRAMS, Programs},
    world_with,
};

#[derive(Clone, Debug)]
enum Step {
    Files(u16, bool),
    Programs(u16, bool),
    Huge,
    Use(u16, u8),
    EndWrites(u16),
    Direct(u16),
    Kswapd(u8),
    Slots(u16),
    Stubborn(bool),
    Cost(bool, u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u16..300, any::<bool>()).prop_map(|(n, young)| Step::Files(n, young)),
        4 => (1u16..300, any::<bool>()).prop_map(|(n, young)| Step::Programs(n, young)),
        1 => Just(Step::Huge),
        2 => (any::<u16>(), 1u8..60).prop_map(|(at, n)| Step::Use(at, n)),
        4 => (0u16..400).prop_map(Step::EndWrites),
        4 => (1u16..400).prop_map(Step::Direct),
        4 => (1u8..60).prop_map(Step::Kswapd),
        1 => (0u16..2000).prop_map(Step::Slots),
        1 => any::<bool>().prop_map(Step::Stubborn),
        1 => (any::<bool>(), 0u16..500).prop_map(|(files, n)| Step::Cost(files, n)),
    ]
}

fn run(steps: &[Step], swappiness: u8, ends: u64) {
    let marks = Watermarks {
        min: 100,
        low: 200,
        high: 300,
    };
    let config = ReclaimConfig {
        swappiness,
        ..ReclaimConfig::default()
    };
    let w = world_with(8, marks, config);
    let programs = Programs::new(&w, 1000);
    w.machine.ends.store(ends, Relaxed);
    let mut kswapd = Kswapd::new(w.reclaimer, KswapdConfig::default());
    let (mut now, mut returned, mut added) = (0, 0, 0);
    let age = |young| if young { Age::Young } else { Age::New };
    for step in steps {
        match *step {
            Step::Files(count, young) => {
                added += w.cache.add_many(count.into(), age(young)).len();
            }
            Step::Programs(count, young) => {
                let add = |_| programs.add(PROGRAMS, age(young), Order::BASE);
                added += (0..count).filter_map(add).count();
            }
            Step::Huge => {
                let page = programs.add(PROGRAMS, Age::New, Order::HUGE);
                added += if page.is_some() { 512 } else { 0 };
            }
            Step::Use(at, count) => {
                let pages: Vec<_> = programs.pages.lock().unwrap().iter().copied().collect();
                let skip = usize::from(at) % pages.len().max(1);
                let some = pages.into_iter().skip(skip).take(count.into());
                some.for_each(|page| w.generations.used(page));
            }
            Step::EndWrites(count) => w.cache.end_writes(count.into()),
            Step::Direct(goal) => {
                let (before, slots) = (programs.count(), programs.slots.load(Relaxed));
                let freed = w.reclaimer.reclaim(goal.into(), Order::BASE);
                returned += freed;
                assert!(freed <= usize::from(goal) + 32);
                let given = slots - programs.slots.load(Relaxed);
                // A batch more than is wanted, at the most.
                assert!(given <= u64::from(goal) + 32, "{given} for {goal}");
                assert!(given > 0 || programs.count() >= before);
            }
            Step::Kswapd(steps) => {
                for _ in 0..steps {
                    now = kswapd.step(now);
                }
            }
            Step::Slots(slots) => programs.slots.store(slots.into(), Relaxed),
            Step::Stubborn(stubborn) => programs.stubborn.store(stubborn, Relaxed),
            Step::Cost(files, pages) => {
                let kind = if files { Kind::File } else { Kind::Anonymous };
                w.generations.cost(kind, pages.into());
            }
        }
        w.cache.check();
        let order = |page: &_| w.frames.order(*page).frames();
        let of_programs: usize = programs.pages.lock().unwrap().iter().map(order).sum();
        let dropped = w.cache.books().dropped.len();
        assert_eq!(of_programs + w.cache.count() + dropped, added);
        assert_eq!(w.event(Event::PgStealDirect), returned as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_page_is_lost_on_its_way_through_swap(
        steps in prop::collection::vec(step(), 1..60),
        swappiness in 0u8..=200,
        ends in prop_oneof![Just(0u64), 1u64..64],
    ) {
        run(&steps, swappiness, ends);
    }
}
