//! Migration of mapped frames, in one thread: the numbered pitfalls, and all that can happen between two steps.

mod support;

use dirigible_frames::{FrameContents, FrameFlags, FrameState, Order, Pfn};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use dirigible_paging::{Page, PageSource, SplitError};
use support::{World, world};

/// A space with a base page at 5 and a huge page at 512, both written.
fn populated(w: &World) -> (dirigible_paging::SpaceId, [(u64, Pfn, Order); 2]) {
    let space = w.space();
    let base = w.map(space, 5);
    let huge = w.map_huge(space, 512);
    for page in (512..1024).chain([5]) {
        w.write(space, page, (page % 512) as usize, page + 1);
    }
    (space, [(5, base, Order::BASE), (512, huge, Order::HUGE)])
}

#[test]
fn pitfall_66_no_migration_entry_stays_behind() {
    let w = world(8);
    let (space, pages) = populated(&w);
    for round in 0..20 {
        for (page, _, order) in pages {
            let from = w.paging.translate(space, Page::new(page)).unwrap();
            assert_eq!(w.move_frame(from, order), Outcome::Moved);
            let to = w.paging.translate(space, Page::new(page)).unwrap();
            assert_ne!(from, to, "round {round}");
            assert_eq!(w.frames.owner_word(to), u64::from(space.get()) << 36 | page);
            w.check_at_rest();
        }
    }
    for page in (512..1024).chain([5]) {
        assert_eq!(w.read(space, page, (page % 512) as usize), Some(page + 1));
    }
}

#[test]
fn pitfall_67_pinned_frames_stay_where_they_are() {
    let w = world(8);
    let (space, pages) = populated(&w);
    for (page, frame, order) in pages {
        let before = w.paging.lookup(space, Page::new(page));
        // A pin: isolation is refused.
        w.paging.pin(space, Page::new(page)).unwrap();
        assert_eq!(w.move_frame(frame, order), Outcome::Refused);
        assert_eq!(w.paging.lookup(space, Page::new(page)), before);
        w.paging.unpin(frame);
        // Once the frame is isolated, a pin fails.
        assert!(w.mobility.isolate(frame));
        assert!(!w.frames.set_flags(frame, FrameFlags::PINNED));
        w.mobility.putback_movable_frames(&[frame]);
        // A reference taken after the isolation: the move is refused, and the old mapping is unchanged.
        let to = w.target(order);
        assert!(w.mobility.isolate(frame));
        assert!(w.frames.get_ref(frame));
        let mut pairs = [MovePair {
            from: frame,
            to,
            order,
            outcome: Outcome::Todo,
        }];
        w.mobility.migrate_frames(&mut pairs);
        assert_eq!(pairs[0].outcome, Outcome::Refused);
        assert!(w.frames.put_ref(frame));
        assert_eq!(w.paging.lookup(space, Page::new(page)), before);
        w.check_at_rest();
        // Without either, the page is moved.
        assert_eq!(w.move_frame(frame, order), Outcome::Moved);
        w.check_at_rest();
    }
}

#[test]
fn pitfall_68_contents_and_marks_move_along() {
    let w = world(8);
    let space = w.space();
    let kept = FrameFlags::DIRTY.union(FrameFlags::REFERENCED);
    for (page, order) in [
        (5, Order::BASE),
        (512, Order::HUGE),
        (6, Order::BASE),
        (1024, Order::HUGE),
    ] {
        let from = if order == Order::HUGE {
            w.map_huge(space, page)
        } else {
            w.map(space, page)
        };
        let dirty = page == 5 || page == 512;
        for i in 0..order.frames() as u64 {
            for index in 0..512 {
                w.guest
                    .write_word(from.plus(i), index, page << 32 | i << 16 | index as u64);
            }
        }
        if dirty {
            w.paging
                .access(space, Page::new(page), true, |_| ())
                .unwrap();
            w.frames.set_flags(from, kept);
        }
        w.frames.set_generation(from, 5);
        let before = w.paging.lookup(space, Page::new(page)).unwrap();
        assert_eq!(before.dirty, dirty);
        assert_eq!(w.move_frame(from, order), Outcome::Moved);
        let after = w.paging.lookup(space, Page::new(page)).unwrap();
        assert_ne!(after.frame, from);
        assert_eq!(
            dirigible_paging::Mapping {
                frame: from,
                ..after
            },
            before
        );
        assert_eq!(w.frames.generation(after.frame), 5);
        assert_eq!(w.frames.flags(after.frame).contains(kept), dirty);
        for i in 0..order.frames() as u64 {
            for index in 0..512 {
                let word = w.guest.read_word(after.frame.plus(i), index);
                assert_eq!(word, page << 32 | i << 16 | index as u64);
            }
        }
        let seen = *w.notes.0.lock().unwrap().last().unwrap();
        assert_eq!(seen, (space, Page::new(page), after.frame, order));
    }
    w.check_at_rest();
}

#[test]
fn pitfall_70_no_split_while_isolated_or_pinned() {
    let w = world(8);
    let (space, [_, (_, huge, _)]) = populated(&w);
    let before = w.paging.lookup(space, Page::new(700));
    assert!(w.mobility.isolate(huge));
    assert_eq!(
        w.paging.split_huge(space, Page::new(700)),
        Err(SplitError::Busy)
    );
    assert_eq!(
        w.paging.lookup(space, Page::new(700)),
        before,
        "the huge mapping is intact"
    );
    w.mobility.putback_movable_frames(&[huge]);
    w.paging.pin(space, Page::new(700)).unwrap();
    assert_eq!(
        w.paging.split_huge(space, Page::new(700)),
        Err(SplitError::Busy)
    );
    assert_eq!(w.paging.lookup(space, Page::new(700)), before);
    w.paging.unpin(huge);
    assert_eq!(w.paging.split_huge(space, Page::new(700)), Ok(()));
    w.check_at_rest();
}

#[test]
fn a_frame_unmapped_while_isolated_is_released_by_the_move() {
    let w = world(8);
    let (space, pages) = populated(&w);
    for (page, from, order) in pages {
        let to = w.target(order);
        assert!(w.mobility.isolate(from));
        let n = order.frames();
        assert_eq!(w.unmap(space, page..page + n as u64), n);
        assert_eq!(
            w.frames.state(from),
            FrameState::Isolated,
            "not freed under compaction's hands"
        );
        assert_eq!(w.read(space, page, 0), None);
        // The page may be mapped again meanwhile.
        let again = w.map_huge(space, page);
        assert_ne!(again, from);
        let mut pairs = [MovePair {
            from,
            to,
            order,
            outcome: Outcome::Todo,
        }];
        let stats = w.mobility.migrate_frames(&mut pairs);
        assert_eq!(
            (pairs[0].outcome, stats.released),
            (Outcome::Released, n as u64)
        );
        assert_eq!(w.paging.translate(space, Page::new(page)), Some(again));
        w.check_at_rest();
    }
}

#[test]
fn a_frame_unmapped_while_isolated_is_freed_by_putback() {
    let w = world(8);
    let (space, pages) = populated(&w);
    for (_, from, _) in pages {
        assert!(w.mobility.isolate(from));
    }
    assert_eq!(w.paging.destroy_space(space), 513);
    let next = w.space();
    w.map(next, 5);
    for (_, from, _) in pages {
        w.mobility.putback_movable_frames(&[from]);
        assert!(matches!(
            w.frames.state(from),
            FrameState::Free | FrameState::Cached
        ));
    }
    w.check_at_rest();
}

#[test]
fn a_released_frame_waits_for_walkers_before_it_is_freed() {
    use std::sync::atomic::Ordering::Relaxed;
    let w = world(8);
    let space = w.space();
    let from = w.map(space, 1);
    assert!(w.paging.isolate(from));
    w.unmap(space, 1..2);
    let before = w.guest.shoot_downs.load(Relaxed);
    let mut pairs = [MovePair::base(from, w.target(Order::BASE))];
    w.paging.migrate(&mut pairs);
    assert_eq!(pairs[0].outcome, Outcome::Released);
    assert_eq!(w.guest.shoot_downs.load(Relaxed), before + 1);
}

#[test]
fn a_batch_takes_one_shoot_down() {
    use std::sync::atomic::Ordering::Relaxed;
    let w = world(8);
    let spaces = [w.space(), w.space()];
    let mut pairs: Vec<_> = (0..100)
        .map(|i| {
            let from = w.map(spaces[i as usize % 2], i * 700);
            w.write(spaces[i as usize % 2], i * 700, 1, i);
            MovePair::base(from, w.target(Order::BASE))
        })
        .collect();
    for pair in &pairs {
        assert!(w.mobility.isolate(pair.from));
    }
    let before = w.guest.shoot_downs.load(Relaxed);
    let stats = w.mobility.migrate_frames(&mut pairs);
    assert_eq!(stats.moved, 100);
    assert_eq!(w.guest.shoot_downs.load(Relaxed), before + 1);
    assert_eq!(w.guest.moved.load(Relaxed), 100);
    for i in 0..100 {
        assert_eq!(w.read(spaces[i as usize % 2], i * 700, 1), Some(i));
    }
    w.check_at_rest();
}

#[test]
fn only_our_own_listed_frames_are_isolated() {
    let w = world(8);
    let space = w.space();
    let huge = w.map_huge(space, 0);
    let free = w.target(Order::BASE);
    assert!(!w.paging.isolate(free), "owned by nobody");
    assert!(!w.paging.isolate(huge.plus(1)), "not a head");
    w.source.free(free, Order::BASE);
    assert!(!w.paging.isolate(free), "free");
    assert!(w.paging.isolate(huge));
    assert!(!w.paging.isolate(huge), "isolated already");
    w.paging.putback(huge);
    w.check_at_rest();
}

#[test]
fn a_block_with_mapped_pages_can_be_evacuated() {
    let w = world(8);
    let space = w.space();
    // Every eighth frame of two and a half blocks stays mapped, the rest are holes.
    for page in 0..1280 {
        w.map(space, page);
        w.write(space, page, 511, page ^ 0xabc);
    }
    for page in (0..1280).filter(|page| page % 8 != 0) {
        w.unmap(space, page..page + 1);
    }
    w.frames.drain_cpu_caches();
    let block = w
        .frames
        .block_of(w.paging.translate(space, Page::new(0)).unwrap())
        .unwrap();
    let token = w.mobility.evacuate(block).unwrap();
    assert_eq!(w.frames.ledger(block).free(), 512);
    w.frames.unisolate_block(token);
    for page in (0..1280).step_by(8) {
        assert_eq!(w.read(space, page, 511), Some(page ^ 0xabc));
    }
    w.check_at_rest();
}
