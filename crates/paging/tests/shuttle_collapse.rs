//! Random interleavings of a collapse with what else happens to its range: `RUSTFLAGS="--cfg shuttle" cargo test -p
//! dirigible-paging --test shuttle_collapse`.
#![cfg(shuttle)]

#[path = "support/interleaved.rs"]
mod interleaved;

use dirigible_frames::FrameContents;
use dirigible_mobility::MovableOwner;
use dirigible_paging::{CollapseConfig, CollapseError, Collapsed, Fault, FaultKind, Page};
use interleaved::{RUNS, World, explore_often};

/// The page and its neighbour are in a range that their program wants as a huge page, and there is one.
fn explore_collapse(test: impl Fn(World) + Send + Sync + 'static) {
    explore_often(RUNS / 3, World::roomy, move |w| {
        let wanted = w.fault_wanted(w.page.plus(1));
        assert!(wanted.fresh && !wanted.huge);
        test(w);
    });
}

/// What these tests do with a world.
trait Collapsing {
    fn collapse(&self) -> Result<Collapsed, CollapseError>;
    fn unmap_one(&self, page: Page);
    fn fault_wanted(&self, page: Page) -> Fault;
    fn check_collapse(&self, base: u64, huge: u64);
}

impl Collapsing for World {
    /// Collapses the page's range. Filled pages are not written: no test reads them.
    fn collapse(&self) -> Result<Collapsed, CollapseError> {
        let config = CollapseConfig::default();
        self.paging
            .collapse(self.space, self.page, config, self.source, |_, _| {})
    }

    fn unmap_one(&self, page: Page) {
        assert_eq!(self.paging.unmap(self.space, page..page.plus(1)), 1);
    }

    fn fault_wanted(&self, page: Page) -> Fault {
        self.paging
            .fault(self.space, page, FaultKind::HugeIfPossible, self.source)
            .unwrap()
    }

    fn check_collapse(&self, base: u64, huge: u64) {
        let audit = self.paging.audit().unwrap();
        assert_eq!(
            (audit.migration_entries, audit.isolated, audit.pinned),
            (0, 0, 0)
        );
        assert_eq!((audit.base, audit.huge), (base, huge));
        self.frames.verify().unwrap();
        self.frames.drain_cpu_caches();
        assert_eq!(self.frames.class_frames().movable, base + huge * 512);
        assert_eq!(self.frames.class_frames().unmovable, audit.tables);
    }
}

#[test]
fn collapse_against_access() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            for value in [8, 9] {
                assert!(w.write(value));
                assert_eq!(w.read(), Some((value, value)));
            }
        });
        let collapsed = w.collapse().unwrap();
        user.join().unwrap();
        assert_eq!(w.read(), Some((9, 9)));
        let mapping = w.paging.lookup(w.space, w.page).unwrap();
        assert!(mapping.dirty && mapping.huge);
        assert_eq!((collapsed.copied, collapsed.filled), (2, 510));
        w.check_collapse(0, 1);
    });
}

#[test]
fn the_first_write_against_collapse() {
    explore_collapse(|w| {
        // Two pages that were never written: the dirty mark must not be lost, however late it is set.
        let other = World {
            page: w.page.plus(1),
            ..w
        };
        w.unmap_one(w.page);
        w.fault_wanted(w.page.plus(2));
        let user = other.spawn(1, |w| assert!(w.write(8)));
        assert!(other.collapse().is_ok());
        user.join().unwrap();
        assert!(w.paging.lookup(w.space, other.page).unwrap().dirty);
        assert_eq!(other.read(), Some((8, 8)));
        w.check_collapse(0, 1);
    });
}

#[test]
fn collapse_against_many_writes() {
    // The first page of the range is copied soon after the table was hidden, so a write that began before may be lost
    // if nobody waits for it. There are so many that one is under way then.
    explore_often(RUNS, World::roomy, |w| {
        let page = w.page.huge_base();
        w.fault_wanted(page);
        let other = World { page, ..w };
        let user = other.spawn(1, |w| {
            for value in 100..500 {
                assert!(w.write(value));
                assert_eq!(w.read(), Some((value, value)));
            }
        });
        assert!(other.collapse().is_ok());
        user.join().unwrap();
        w.check_collapse(0, 1);
    });
}

#[test]
fn collapse_against_fault() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            let fault = w.fault(w.page.plus(2));
            // Either it comes first, or it finds the huge page.
            assert_ne!(fault.fresh, fault.huge);
        });
        let collapsed = w.collapse().unwrap();
        assert!(collapsed.copied == 2 || collapsed.copied == 3);
        user.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        w.check_collapse(0, 1);
    });
}

#[test]
fn collapse_against_unmap() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            w.unmap_one(w.page);
            assert_eq!(w.read(), None);
        });
        let result = w.collapse();
        user.join().unwrap();
        match result {
            Ok(_) => w.check_collapse(511, 0),
            Err(error) => {
                assert_eq!(error, CollapseError::NotEligible);
                w.check_collapse(1, 0);
            }
        }
    });
}

#[test]
fn collapse_against_migrate() {
    explore_collapse(|w| {
        let mover = w.spawn(1, |w| {
            w.move_frame();
        });
        let result = w.collapse();
        mover.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        match result {
            Ok(_) => w.check_collapse(0, 1),
            Err(error) => {
                assert_eq!(error, CollapseError::Busy);
                w.check_collapse(2, 0);
            }
        }
    });
}

#[test]
fn pitfall_71_collapse_against_isolation() {
    // The first page is isolated by the collapse before it comes to the one that somebody else has isolated since the
    // look.
    explore_collapse(|w| {
        w.fault_wanted(w.page.huge_base());
        let user = w.spawn(1, |w| {
            for _ in 0..100 {
                if w.paging.isolate(w.frame) {
                    w.paging.putback(w.frame);
                }
            }
        });
        let result = w.collapse();
        user.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        match result {
            Ok(_) => w.check_collapse(0, 1),
            Err(error) => {
                assert_eq!(error, CollapseError::Busy);
                w.check_collapse(3, 0);
            }
        }
    });
}

#[test]
fn collapse_against_destroy() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            let gone = w.paging.destroy_space(w.space);
            assert!(gone == 2 || gone == 512);
        });
        let _ = w.collapse();
        user.join().unwrap();
        assert_eq!(w.read(), None);
        w.check_collapse(0, 0);
    });
}

#[test]
fn collapse_against_pin() {
    explore_collapse(|w| {
        let pinner = w.spawn(1, |w| {
            let frame = w.paging.pin(w.space, w.page).unwrap();
            assert_eq!(w.guest.read_word(frame, 0), 7);
            assert_eq!(w.paging.translate(w.space, w.page), Some(frame));
            w.paging.unpin(frame);
        });
        let huge = w.collapse().is_ok();
        pinner.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        match huge {
            true => w.check_collapse(0, 1),
            false => w.check_collapse(2, 0),
        }
    });
}

#[test]
fn collapse_against_collapse() {
    explore_collapse(|w| {
        let other = w.spawn(1, |w| {
            let looks = (0..2).map(|_| w.paging.translate(w.space, w.page));
            assert!(looks.into_iter().all(|frame| frame.is_some()));
            let _ = w.collapse();
        });
        let _ = w.collapse();
        other.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        w.check_collapse(0, 1);
    });
}
