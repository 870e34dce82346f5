//! Harvesting accessed bits.
#![cfg(not(shuttle))]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::Order;
use dirigible_paging::{FaultKind, Harvest, Page, SpaceId};
use support::{World, world};

const FIRST: Page = Page::new(0x1000);

/// A space with base pages at `pages`.
fn space_of(w: &World, pages: impl Iterator<Item = u64>) -> SpaceId {
    let space = w.paging.create_space(w.source).unwrap();
    for page in pages {
        let fault = w
            .paging
            .fault(space, FIRST.plus(page), FaultKind::Base, w.source);
        assert!(fault.is_ok());
    }
    space
}

fn harvest(w: &World, space: SpaceId) -> (Harvest, BTreeSet<u64>) {
    let mut seen = BTreeSet::new();
    let harvest = w
        .paging
        .harvest(space, Page::new(0)..Page::LIMIT, |page, frame, order| {
            assert_eq!(order, Order::BASE);
            assert!(w.frames.frame(frame).is_some());
            assert!(seen.insert(page.get() - FIRST.get()), "once each");
        });
    (harvest, seen)
}

#[test]
fn each_use_is_found_once() {
    let w = world(8);
    let space = space_of(&w, 0..1000);
    let (found, seen) = harvest(&w, space);
    assert_eq!(
        found,
        Harvest {
            looked: 1000,
            used: 1000
        },
        "a fault is a use"
    );
    assert!(seen.into_iter().eq(0..1000));
    assert_eq!(
        harvest(&w, space).0,
        Harvest {
            looked: 1000,
            used: 0
        }
    );
    for page in [3, 511, 512, 999] {
        w.paging
            .access(space, FIRST.plus(page), page % 2 == 0, |_| ());
    }
    let (found, seen) = harvest(&w, space);
    assert_eq!((found.used, seen), (4, BTreeSet::from([3, 511, 512, 999])));
    let written = w.paging.lookup(space, FIRST.plus(512)).unwrap();
    assert!(
        written.dirty && !written.accessed,
        "what was written stays so"
    );
    w.paging.destroy_space(space);
    w.check_at_rest();
}

#[test]
fn a_shoot_down_follows_only_where_bits_were_cleared() {
    let w = world(8);
    let space = space_of(&w, 0..512);
    harvest(&w, space);
    let before = w.guest.shoot_downs.load(Relaxed);
    harvest(&w, space);
    assert_eq!(w.guest.shoot_downs.load(Relaxed), before);
    w.paging.access(space, FIRST.plus(5), false, |_| ());
    harvest(&w, space);
    assert_eq!(w.guest.shoot_downs.load(Relaxed), before + 1);
    w.paging.destroy_space(space);
}

#[test]
fn only_the_range_is_looked_at_and_holes_are_passed_by() {
    let w = world(16);
    let space = space_of(&w, [0, 1, 700, 1 << 20, 1 << 30].into_iter());
    let mut seen = Vec::new();
    let found = w.paging.harvest(
        space,
        FIRST.plus(1)..FIRST.plus(1 << 30),
        |page, frame, _| {
            seen.push((page.get() - FIRST.get(), frame));
        },
    );
    assert_eq!(found.used, 3);
    assert!(seen.iter().map(|(page, _)| *page).eq([1, 700, 1 << 20]));
    for (page, frame) in seen {
        assert_eq!(w.paging.translate(space, FIRST.plus(page)), Some(frame));
    }
    assert_eq!(harvest(&w, space).1, BTreeSet::from([0, 1 << 30]));
    w.paging.destroy_space(space);
}

#[test]
fn a_huge_page_is_one_mapping() {
    let w = world(8);
    let space = w.paging.create_space(w.source).unwrap();
    let fault = w
        .paging
        .fault(space, FIRST, FaultKind::HugeIfPossible, w.source)
        .unwrap();
    let mut seen = Vec::new();
    let range = FIRST.plus(7)..FIRST.plus(9);
    let found = w.paging.harvest(space, range, |page, frame, order| {
        seen.push((page, frame, order))
    });
    assert_eq!(found, Harvest { looked: 1, used: 1 });
    assert_eq!(seen, [(FIRST.huge_base(), fault.frame, Order::HUGE)]);
    assert_eq!(
        w.paging
            .harvest(space, FIRST..FIRST.plus(512), |_, _, _| ())
            .used,
        0
    );
    w.paging.destroy_space(space);
    w.check_at_rest();
}

#[test]
fn a_space_that_is_gone_gives_nothing() {
    let w = world(4);
    let space = space_of(&w, 0..10);
    w.paging.destroy_space(space);
    assert_eq!(harvest(&w, space).0, Harvest::default());
    assert_eq!(harvest(&w, SpaceId::new(0)).0, Harvest::default());
}
