//! Programs, reclaim and compaction at the same pages, on several CPUs.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use dirigible_frames::{Event, Order};
use dirigible_mobility::Outcome;
use dirigible_paging::{FaultKind, Page};
use dirigible_reclaim::Evictable;
use support::{run_on, world_with_swap};

const PAGES: u64 = 700;
/// Each program's rounds at least; more, until enough has happened to its pages.
const ROUNDS: u64 = 60;
const MOST_ROUNDS: u64 = 1000 * ROUNDS;
const ENOUGH: u64 = 200;

#[test]
fn contents_survive_reclaim_and_compaction_at_once() {
    let w = world_with_swap(8, 500);
    let spaces = [w.space(), w.space()];
    let (ends, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    // Every page gets its contents first: later a fault finds it mapped or in swap.
    for space in spaces {
        for page in 0..PAGES {
            w.map_huge(space, page);
        }
    }
    thread::scope(|scope| {
        let programs: Vec<_> = spaces
            .into_iter()
            .zip(1..)
            .map(|(space, cpu)| {
                let (w, moved) = (&w, &moved);
                scope.spawn(move || {
                    run_on(cpu);
                    for round in 0..MOST_ROUNDS {
                        let happened = moved.load(Relaxed).min(w.event(Event::SwapFault));
                        if round >= ROUNDS && happened >= ENOUGH {
                            break;
                        }
                        // Long enough that pages become old, however few processors there are.
                        thread::sleep(Duration::from_micros(200));
                        for page in (0..PAGES).filter(|page| page % 7 == round % 7) {
                            let value = round * PAGES + page;
                            let use_page = |write: bool| loop {
                                let word = |frame| {
                                    use dirigible_frames::FrameContents;
                                    if write {
                                        w.guest.write_word(frame, 5, value);
                                    }
                                    w.guest.read_word(frame, 5)
                                };
                                let at = Page::new(page);
                                if let Some(found) = w.paging.access(space, at, write, word) {
                                    return found;
                                }
                                let kind = FaultKind::HugeIfPossible;
                                let fault = w.paging.fault(space, at, kind, w.source).unwrap();
                                assert!(!fault.fresh, "page {page} lost its contents");
                            };
                            let before = round.checked_sub(7).map_or(0, |last| last * PAGES + page);
                            assert_eq!(use_page(false), before, "page {page}");
                            assert_eq!(use_page(true), value);
                        }
                    }
                })
            })
            .collect();
        let reclaim = scope.spawn(|| {
            run_on(0);
            while !ends.load(Relaxed) {
                Evictable::harvest(w.paging);
                for space in spaces {
                    for first in (0..PAGES).step_by(64) {
                        let mapped = (first..first + 64)
                            .filter_map(|page| w.paging.lookup(space, Page::new(page)));
                        let mut frames: Vec<_> = mapped
                            .map(|found| w.frames.head(found.frame))
                            .filter(|&frame| {
                                w.frames.try_isolate(frame, w.paging.owner_id()).is_ok()
                            })
                            .collect();
                        frames.dedup();
                        w.paging.swap_out(&frames);
                    }
                }
            }
        });
        let compaction = scope.spawn(|| {
            run_on(3);
            while !ends.load(Relaxed) {
                for page in (0..PAGES).step_by(3) {
                    let found = w.paging.lookup(spaces[page as usize % 2], Page::new(page));
                    if let Some(found) = found.filter(|found| !found.huge) {
                        let outcome = w.move_frame(found.frame, Order::BASE);
                        moved.fetch_add(u64::from(outcome == Outcome::Moved), Relaxed);
                    }
                }
            }
        });
        let ended: Vec<_> = programs.into_iter().map(|program| program.join()).collect();
        ends.store(true, Relaxed);
        reclaim.join().unwrap();
        compaction.join().unwrap();
        ended.into_iter().for_each(|program| program.unwrap());
    });
    assert!(w.event(Event::SwapFault) >= ENOUGH && moved.load(Relaxed) >= ENOUGH);
    let audit = w.check_at_rest();
    assert_eq!(w.aged(), audit.base + audit.huge);
    let unused = |pages: u64| pages.next_multiple_of(512) - pages;
    assert_eq!(audit.frames() + audit.swapped, 2 * (PAGES + unused(PAGES)));
    spaces
        .into_iter()
        .for_each(|space| assert!(w.paging.destroy_space(space) > 0));
    assert_eq!(w.check_at_rest().swapped, 0);
    assert_eq!((w.aged(), w.swap().space.slots().used()), (0, 0));
}
