//! Random interleavings of the operations that meet at one frame: `RUSTFLAGS="--cfg shuttle" cargo test -p
//! dirigible-paging --test shuttle`.
#![cfg(shuttle)]

#[path = "support/interleaved.rs"]
mod interleaved;

use dirigible_frames::{FrameClass, FrameContents, FrameState, Order};
use dirigible_mobility::MovableOwner;
use dirigible_mobility::Outcome;
use dirigible_paging::{FaultKind, PageSource};
use interleaved::{World, explore};

#[test]
fn access_against_migrate() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            for value in [8, 9] {
                assert!(w.write(value));
                assert_eq!(w.read(), Some((value, value)));
            }
        });
        assert_eq!(w.move_frame(), Outcome::Moved);
        user.join().unwrap();
        assert_eq!(w.read(), Some((9, 9)));
        let mapping = w.paging.lookup(w.space, w.page).unwrap();
        assert!(mapping.dirty && mapping.frame != w.frame);
        w.check(1);
    });
}

#[test]
fn fault_against_migrate() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            let fault = w
                .paging
                .fault(w.space, w.page, FaultKind::Base, w.source)
                .unwrap();
            assert!(!fault.fresh);
        });
        assert_eq!(w.move_frame(), Outcome::Moved);
        user.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        w.check(1);
    });
}

#[test]
fn unmap_against_migrate() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
            assert_eq!(w.read(), None);
        });
        w.move_frame();
        user.join().unwrap();
        w.check(0);
    });
}

#[test]
fn unmap_against_putback() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        });
        if w.paging.isolate(w.frame) {
            w.paging.putback(w.frame);
        }
        user.join().unwrap();
        w.check(0);
    });
}

#[test]
fn destroy_against_migrate_and_access() {
    explore(|w| {
        let destroyer = w.spawn(1, |w| assert_eq!(w.paging.destroy_space(w.space), 1));
        let reader = w.spawn(2, |w| {
            let seen = w.read();
            assert!(seen.is_none() || seen == Some((7, 7)), "{seen:?}");
        });
        w.move_frame();
        destroyer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(w.paging.translate(w.space, w.page), None);
        w.check(0);
    });
}

#[test]
fn pin_against_migrate_and_unmap() {
    explore(|w| {
        let pinner = w.spawn(1, |w| {
            if let Some(frame) = w.paging.pin(w.space, w.page) {
                assert_eq!(w.frames.state(frame), FrameState::Allocated);
                assert_eq!(w.frames.frame(frame).unwrap().class, FrameClass::Movable);
                assert_eq!(w.guest.read_word(frame, 0), 7);
                w.paging.unpin(frame);
            }
        });
        let unmapper = w.spawn(2, |w| {
            assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        });
        w.move_frame();
        pinner.join().unwrap();
        unmapper.join().unwrap();
        w.check(0);
    });
}

#[test]
fn two_faults_on_one_page() {
    explore(|w| {
        let page = w.page.plus(1);
        let other = w.spawn(1, move |w| {
            w.fault(page);
        });
        w.fault(page);
        other.join().unwrap();
        w.check(2);
    });
}

#[test]
fn the_first_write_against_migrate() {
    explore(|w| {
        // Mapped and never written: the dirty mark must not be lost, however late it is set.
        let page = w.page.plus(1);
        let frame = w.fault(page).frame;
        let other = World { page, frame, ..w };
        let user = other.spawn(1, |w| assert!(w.write(8)));
        assert_eq!(other.move_frame(), Outcome::Moved);
        user.join().unwrap();
        assert!(w.paging.lookup(w.space, page).unwrap().dirty);
        assert_eq!(other.read(), Some((8, 8)));
        w.check(2);
    });
}

#[test]
fn the_first_write_against_unmap() {
    explore(|w| {
        // The neighbour keeps the table in use, so that the audit finds a late mark in an empty entry.
        let page = w.page.plus(1);
        let other = World {
            page,
            frame: w.fault(page).frame,
            ..w
        };
        let user = other.spawn(1, |w| {
            w.write(8);
        });
        assert_eq!(w.paging.unmap(w.space, page..page.plus(1)), 1);
        // The frame has a new user, whose contents must not change.
        let again = w
            .source
            .alloc(dirigible_frames::AllocRequest::movable())
            .unwrap();
        w.guest.write_word(again, 0, 1);
        w.guest.write_word(again, 1, 1);
        user.join().unwrap();
        assert_eq!(
            (w.guest.read_word(again, 0), w.guest.read_word(again, 1)),
            (1, 1)
        );
        w.source.free(again, Order::BASE);
        w.check(1);
    });
}

#[test]
fn fault_against_destroy() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            for page in [w.page.plus(1), w.page.plus(5_000_000)] {
                let _ = w.paging.fault(w.space, page, FaultKind::Base, w.source);
            }
        });
        assert!(w.paging.destroy_space(w.space) >= 1);
        user.join().unwrap();
        w.check(0);
        assert_eq!(
            w.frames.class_frames().unmovable,
            0,
            "a table was left behind"
        );
    });
}

#[test]
fn access_against_the_end_of_an_empty_space() {
    explore(|w| {
        assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        // Often enough that a walk is in the root table when it is freed.
        let reader = w.spawn(1, |w| (0..200).for_each(|_| assert_eq!(w.read(), None)));
        assert_eq!(w.paging.destroy_space(w.space), 0);
        // The root's next user writes words that a walk must not take for entries.
        let root = w
            .source
            .alloc(dirigible_frames::AllocRequest::unmovable())
            .unwrap();
        w.guest.write_word(root, 0, u64::MAX);
        reader.join().unwrap();
        w.source.free(root, Order::BASE);
        w.check(0);
    });
}

#[test]
fn two_unpins_of_an_unmapped_frame() {
    explore(|w| {
        let frame = w.paging.pin(w.space, w.page).unwrap();
        assert_eq!(w.paging.pin(w.space, w.page), Some(frame));
        assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        let other = w.spawn(1, move |w| w.paging.unpin(frame));
        w.paging.unpin(frame);
        other.join().unwrap();
        w.check(0);
    });
}
