//! Threads: programs fault and access pages while compaction moves the same frames, and spaces are created and
//! destroyed.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use dirigible_frames::{FrameContents, Order};
use dirigible_mobility::{MovePair, Outcome};
use dirigible_paging::{FaultKind, MoveObserver, Page, PageSource, SpaceId};
use support::{World, run_on, world};

/// Each page is written by one thread only, with the same value in all words that are used. So torn or stale contents
/// are found.
const MARKED: [usize; 4] = [0, 63, 200, 511];

fn write_all(w: &World, space: SpaceId, page: u64, value: u64) -> Option<()> {
    w.paging.access(space, Page::new(page), true, |frame| {
        MARKED
            .iter()
            .for_each(|&index| w.guest.write_word(frame, index, value));
    })
}

fn read_all(w: &World, space: SpaceId, page: u64) -> Option<[u64; MARKED.len()]> {
    w.paging.access(space, Page::new(page), false, |frame| {
        MARKED.map(|index| w.guest.read_word(frame, index))
    })
}

/// Isolates and moves the frame or huge page that holds `page`, as compaction does.
fn try_move(w: &World, space: SpaceId, page: u64) -> Outcome {
    let Some(mapping) = w.paging.lookup(space, Page::new(page)) else {
        return Outcome::Todo;
    };
    let (from, order) = if mapping.huge {
        (mapping.frame.block_base(), Order::HUGE)
    } else {
        (mapping.frame, Order::BASE)
    };
    let request = dirigible_frames::AllocRequest::new(order, dirigible_frames::FrameClass::Movable);
    let Ok(to) = w.source.alloc(request) else {
        return Outcome::Todo;
    };
    // Isolated directly and not through mobility: the frame may have become part of a huge page since the look-up.
    if !w.mobility.isolate(from) {
        w.source.free(to, order);
        return Outcome::Refused;
    }
    if w.frames.frame(from).unwrap().order != order {
        w.mobility.putback_movable_frames(&[from]);
        w.source.free(to, order);
        return Outcome::Refused;
    }
    let mut pairs = [MovePair {
        from,
        to,
        order,
        outcome: Outcome::Todo,
    }];
    w.mobility.migrate_frames(&mut pairs);
    pairs[0].outcome
}

/// One page is moved again and again while a program writes and reads it.
#[test]
fn pitfall_66_a_page_is_moved_under_its_users_feet() {
    let w = &world(8);
    let space = w.space();
    let pages = [0, 1, 700, 70_000];
    for page in pages {
        w.map(space, page);
    }
    let huge = 5 * 512;
    w.map_huge(space, huge);
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            run_on(1);
            let mut moved = 0;
            let mut turn = 0;
            while moved < 20_000 {
                let page = if turn % 500 == 0 {
                    huge
                } else {
                    pages[turn % pages.len()]
                };
                turn += 1;
                moved += u64::from(try_move(w, space, page) == Outcome::Moved);
            }
            done.store(true, Relaxed);
        });
        scope.spawn(move || {
            run_on(2);
            let mut value = 1;
            while !done.load(Relaxed) {
                for page in pages.into_iter().chain([huge, huge + 300]) {
                    write_all(w, space, page, value).expect("mapped");
                    let fault = w
                        .paging
                        .fault(space, Page::new(page), FaultKind::Base, w.source);
                    assert!(!fault.unwrap().fresh);
                    assert_eq!(read_all(w, space, page), Some([value; 4]), "round {value}");
                }
                value += 1;
            }
        });
    });
    w.check_at_rest();
}

/// Several programs map, write, punch holes, unmap and restart, while two threads move the pages that they find.
#[test]
fn programs_live_while_their_frames_move() {
    let w = &world(12);
    let done = &AtomicU64::new(0);
    let ids: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
    let ids = &ids;
    thread::scope(|scope| {
        for program in 0..2u16 {
            scope.spawn(move || {
                run_on(program);
                let mut random = 12345 + u64::from(program);
                let mut next = move |bound: u64| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % bound
                };
                for life in 0..15 {
                    let space = w.space();
                    ids[usize::from(program)].store(space.get().into(), Relaxed);
                    let value = |page: u64| life << 40 | u64::from(program) << 32 | page;
                    let mut mapped = std::collections::BTreeSet::new();
                    for _ in 0..40 {
                        let (first, count) = (next(1500), next(100) + 1);
                        let kind = if next(4) == 0 {
                            FaultKind::HugeIfPossible
                        } else {
                            FaultKind::Base
                        };
                        for page in first..first + count {
                            let Ok(fault) = w.paging.fault(space, Page::new(page), kind, w.source)
                            else {
                                break;
                            };
                            let pages = match (fault.fresh, fault.huge) {
                                (true, true) => page / 512 * 512..page / 512 * 512 + 512,
                                _ => page..page + 1,
                            };
                            for page in pages {
                                write_all(w, space, page, value(page)).expect("just mapped");
                                mapped.insert(page);
                            }
                        }
                        let (first, count) = (next(1500), next(200));
                        let gone = w.unmap(space, first..first + count);
                        let before = mapped.len();
                        mapped.retain(|page| !(first..first + count).contains(page));
                        assert_eq!(gone, before - mapped.len());
                    }
                    for &page in &mapped {
                        assert_eq!(read_all(w, space, page), Some([value(page); 4]));
                    }
                    assert_eq!(w.paging.destroy_space(space), mapped.len());
                }
                done.fetch_add(1, Relaxed);
            });
        }
        for mover in 2..4u16 {
            scope.spawn(move || {
                run_on(mover);
                let mut page = u64::from(mover);
                let mut moved = 0u64;
                while done.load(Relaxed) < 2 {
                    page = (page + 37) % 1700;
                    let id = ids[usize::from(mover - 2)].load(Relaxed);
                    let space = SpaceId::new(id as u32);
                    moved += u64::from(try_move(w, space, page) == Outcome::Moved);
                }
                assert!(moved > 0);
            });
        }
    });
    let audit = w.check_at_rest();
    assert_eq!((audit.spaces, audit.frames()), (0, 0));
}

/// A partial unmap of an isolated huge page waits until it was moved or put back.
#[test]
fn pitfall_70_a_partial_unmap_waits_for_an_isolated_huge_page() {
    for moves in [false, true] {
        let w = &world(8);
        let space = w.space();
        let head = w.map_huge(space, 0);
        (0..512).for_each(|page| write_all(w, space, page, page).unwrap());
        assert!(w.mobility.isolate(head));
        thread::scope(|scope| {
            let unmapper = scope.spawn(move || {
                run_on(1);
                w.unmap(space, 100..200)
            });
            while w.guest.relaxed.load(Relaxed) < 100 {
                thread::yield_now();
            }
            assert!(!unmapper.is_finished());
            if moves {
                let mut pairs = [MovePair::huge(head, w.target(Order::HUGE))];
                assert_eq!(w.mobility.migrate_frames(&mut pairs).moved, 512);
            } else {
                w.mobility.putback_movable_frames(&[head]);
            }
            assert_eq!(unmapper.join().unwrap(), 100);
        });
        for page in 0..512 {
            let expected = (!(100..200).contains(&page)).then_some([page; 4]);
            assert_eq!(read_all(w, space, page), expected);
        }
        w.check_at_rest();
    }
}

/// Stops the migration after the copy, while the migration entry is in place, until it is released.
#[derive(Default)]
struct Gate {
    reached: AtomicBool,
    open: AtomicBool,
}

impl MoveObserver for Gate {
    fn moved(&self, _: SpaceId, _: Page, _: dirigible_frames::Pfn, _: Order) {
        self.reached.store(true, Relaxed);
        while !self.open.load(Relaxed) {
            thread::yield_now();
        }
    }
}

/// If a fault, access, unmap or destroy finds a migration entry, it waits until the page is mapped again.
#[test]
fn pitfall_66_everyone_waits_for_a_migration_entry() {
    use dirigible_frames::OwnerId;
    use dirigible_paging::Paging;
    for act in 0..4 {
        let w = &world(4);
        let gate = support::leak(Gate::default());
        let owner = OwnerId::new(7).unwrap();
        let paging = support::leak(Paging::new(w.frames, w.guest, owner, 4).observed_by(gate));
        w.mobility.register(owner, paging).unwrap();
        let space = paging.create_space(w.source).unwrap();
        let page = Page::new(3);
        let from = paging
            .fault(space, page, FaultKind::Base, w.source)
            .unwrap()
            .frame;
        paging
            .access(space, page, true, |frame| w.guest.write_word(frame, 9, 99))
            .unwrap();
        thread::scope(|scope| {
            let mover = scope.spawn(move || {
                run_on(1);
                let to = w.target(Order::BASE);
                assert!(w.mobility.isolate(from));
                let mut pairs = [MovePair::base(from, to)];
                assert_eq!(w.mobility.migrate_frames(&mut pairs).moved, 1);
                to
            });
            while !gate.reached.load(Relaxed) {
                thread::yield_now();
            }
            assert_eq!(paging.audit().unwrap().migration_entries, 1);
            assert!(paging.lookup(space, page).unwrap().migrating);
            let user = scope.spawn(move || {
                run_on(2);
                match act {
                    0 => {
                        let fault = paging
                            .fault(space, page, FaultKind::Base, w.source)
                            .unwrap();
                        assert!(!fault.fresh && fault.frame != from);
                    }
                    1 => {
                        let seen = paging.access(space, page, true, |frame| {
                            (frame != from, w.guest.read_word(frame, 9))
                        });
                        assert_eq!(seen, Some((true, 99)));
                    }
                    2 => assert_eq!(paging.unmap(space, page..page.plus(1)), 1),
                    _ => assert_eq!(paging.destroy_space(space), 1),
                }
            });
            while w.guest.relaxed.load(Relaxed) < 100 {
                thread::yield_now();
            }
            assert!(!user.is_finished(), "act {act} did not wait");
            gate.open.store(true, Relaxed);
            user.join().unwrap();
            let to = mover.join().unwrap();
            if act < 2 {
                assert_eq!(paging.translate(space, page), Some(to));
            }
        });
        assert_eq!(paging.audit().unwrap().migration_entries, 0);
        w.frames.verify().unwrap();
    }
}
