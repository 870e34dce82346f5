//! Random interleavings of what meets at a page on its way into swap and back: `RUSTFLAGS="--cfg shuttle" cargo test -p
//! dirigible-paging --test shuttle_swap`.
#![cfg(shuttle)]

#[path = "support/interleaved.rs"]
mod interleaved;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use dirigible_frames::Event;
use dirigible_mobility::Outcome;
use dirigible_paging::{FaultError, FaultKind};
use dirigible_reclaim::Evictable;
use interleaved::{World, explore_in};

fn explore(test: impl Fn(World) + Send + Sync + 'static) {
    explore_in(World::with_swap, test);
}

/// The page is read, wherever it is, and everything is accounted for.
fn check_contents(w: &World, value: u64) {
    assert_eq!(w.read_or_fault(), (value, value));
    w.check(1);
}

/// How often `outcome` came about in all runs.
static SWAPPED_OUT: AtomicUsize = AtomicUsize::new(0);
static STAYED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn swap_out_against_access_and_fault() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            assert_eq!(w.read_or_fault(), (7, 7));
            w.write_or_fault(8);
            assert_eq!(w.read_or_fault(), (8, 8));
        });
        match w.swap_out() {
            true => SWAPPED_OUT.fetch_add(1, SeqCst),
            false => STAYED.fetch_add(1, SeqCst),
        };
        user.join().unwrap();
        check_contents(&w, 8);
    });
    let counts = [&SWAPPED_OUT, &STAYED].map(|count| count.load(SeqCst));
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
}

#[test]
fn the_first_write_against_swap_out() {
    explore(|w| {
        let user = w.spawn(1, |w| w.write_or_fault(8));
        let other = w.spawn(2, |w| w.write_or_fault(8));
        w.swap_out();
        user.join().unwrap();
        other.join().unwrap();
        check_contents(&w, 8);
    });
}

#[test]
fn swap_out_against_migrate() {
    explore(|w| {
        let mover = w.spawn(1, |w| {
            let outcome = w.move_frame();
            assert!(matches!(outcome, Outcome::Moved | Outcome::Refused));
        });
        let reader = w.spawn(2, |w| assert_eq!(w.read_or_fault(), (7, 7)));
        w.swap_out();
        mover.join().unwrap();
        reader.join().unwrap();
        check_contents(&w, 7);
    });
}

#[test]
fn swap_out_against_unmap() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            let gone = w.paging.unmap(w.space, w.page..w.page.plus(1));
            assert!(gone <= 1);
            assert_eq!(w.read(), None);
        });
        w.swap_out();
        user.join().unwrap();
        w.check(0);
        assert_eq!(w.swap.unwrap().space.slots().used(), 0);
    });
}

#[test]
fn swap_out_against_destroy_and_fault() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            let fault = w.paging.fault(w.space, w.page, FaultKind::Base, w.source);
            match fault {
                Ok(fault) => assert!(!fault.fresh),
                Err(error) => assert_eq!(error, FaultError::NoSuchSpace),
            }
        });
        let ender = w.spawn(2, |w| {
            assert!(w.paging.destroy_space(w.space) <= 1);
        });
        w.swap_out();
        user.join().unwrap();
        ender.join().unwrap();
        w.check(0);
        assert_eq!(w.swap.unwrap().space.slots().used(), 0);
        assert_eq!(w.frames.class_frames().unmovable, 0);
    });
}

#[test]
fn two_faults_of_a_page_in_swap() {
    explore(|w| {
        assert!(w.swap_out());
        let other = w.spawn(1, |w| assert_eq!(w.read_or_fault(), (7, 7)));
        assert_eq!(w.read_or_fault(), (7, 7));
        other.join().unwrap();
        assert_eq!(w.frames.events().get(Event::SwapFault), 1);
        check_contents(&w, 7);
    });
}

#[test]
fn a_fault_against_unmap_of_a_page_in_swap() {
    explore(|w| {
        assert!(w.swap_out());
        let other = w.spawn(1, |w| {
            // A new page, or the old one, which is unmapped then.
            w.fault(w.page);
        });
        let gone = w.paging.unmap(w.space, w.page..w.page.plus(1));
        other.join().unwrap();
        let left = w.paging.totals().base;
        assert!(gone as u64 + left <= 1);
        w.check(left);
        if left == 1 {
            assert_eq!(w.read(), Some((0, 0)), "the old contents are gone");
        }
    });
}

#[test]
fn harvest_and_exemption_against_migrate() {
    explore(|w| {
        // Used, so that the harvest has something to make young.
        assert_eq!(w.read(), Some((7, 7)));
        let harvester = w.spawn(1, |w| Evictable::harvest(w.paging));
        let keeper = w.spawn(2, |w| assert!(w.paging.keep_in_memory(w.space)));
        w.move_frame();
        harvester.join().unwrap();
        keeper.join().unwrap();
        // No frame has an age.
        let sizes = w.swap.unwrap().generations.verify().unwrap().sizes;
        assert_eq!(sizes, [0; 4]);
        assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        w.check(0);
    });
}
