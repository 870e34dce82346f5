//! Interleavings around the sums, the spare blocks and the index: what is free is found, and counted once.
//!
//! See `shuttle.rs` for how to run them.

#![cfg(shuttle)]

mod explore;

use dirigible_frames::{
    AllocRequest, BlockId, BlockState, CpuId, FRAMES_PER_BLOCK, FrameAllocator, FrameClass,
    IsolateError, Order, Pfn,
};
use explore::Explore;
use shuttle::thread::scope;

const A: CpuId = CpuId::new(0);
const B: CpuId = CpuId::new(1);

fn request(order: u8, class: FrameClass) -> AllocRequest {
    AllocRequest::new(Order::new(order).expect("0 to 10"), class)
}

/// Takes everything; gives the singles of the last eight frames.
fn fill_a_block(frames: &FrameAllocator<'_>) -> Vec<Pfn> {
    for order in [8, 7, 6, 5, 4, 3] {
        frames
            .alloc(A, request(order, FrameClass::Balloon))
            .unwrap();
    }
    let single = request(0, FrameClass::Balloon);
    let held = (0..8).map(|_| frames.alloc(A, single).unwrap()).collect();
    assert_eq!(frames.free_frames(), 0);
    held
}

/// One CPU raised the ledger and has not filed the block yet; another frees a frame of the same block and finds it.
#[test]
fn a_frame_that_was_freed_is_found_by_who_freed_it() {
    let explore = Explore {
        schedules: 1500,
        ..Explore::blocks(1)
    };
    explore.run(|frames| {
        let held = fill_a_block(frames);
        scope(|scope| {
            let five = held[..5].to_vec();
            scope.spawn(move || frames.free_bulk(A, &five).unwrap());
            frames.free_bulk(B, &held[5..6]).unwrap();
            frames
                .alloc(B, request(0, FrameClass::Balloon))
                .expect("one was just freed");
        });
    });
}

/// A huge page would go below the mark, a single frame would not.
#[test]
fn a_request_that_must_fail_hides_no_frames() {
    let explore = Explore {
        mark: 212,
        ..Explore::blocks(1)
    };
    explore.run(|frames| {
        scope(|scope| {
            scope.spawn(|| {
                assert!(frames.alloc(A, AllocRequest::huge()).is_err());
            });
            frames
                .alloc(B, request(0, FrameClass::Balloon))
                .expect("300 are above the mark");
        });
    });
}

/// Only one block is whole, so a request for two in a row always fails.
#[test]
fn a_request_for_two_blocks_hides_no_whole_block() {
    Explore::blocks(2).run(|frames| {
        let pair = frames.alloc(A, request(10, FrameClass::Movable)).unwrap();
        frames.free(A, pair, Order::MAX).unwrap();
        // A frame of the upper block.
        frames
            .alloc_at(A, pair.plus(700), 1, request(0, FrameClass::Movable))
            .unwrap();
        scope(|scope| {
            scope.spawn(|| {
                assert!(frames.alloc(A, request(10, FrameClass::Movable)).is_err());
            });
            frames
                .alloc(B, request(9, FrameClass::Unmovable))
                .expect("the lower block is whole");
        });
    });
}

/// What a CPU has freed counts for a request of another one near the mark, wherever the sum is kept at that moment.
#[test]
fn a_frame_above_the_mark_is_had_while_sums_are_folded() {
    let explore = Explore {
        mark: 1000,
        ..Explore::blocks(2)
    };
    explore.run(|frames| {
        // 24 frames above the mark: 20 are taken, by a CPU that keeps a part of the sum.
        let single = request(0, FrameClass::Movable);
        let held: Vec<Pfn> = (0..20).map(|_| frames.alloc(A, single).unwrap()).collect();
        scope(|scope| {
            scope.spawn(|| {
                for &pfn in &held {
                    frames.free(A, pfn, Order::BASE).unwrap();
                }
                frames.drain_cpu_caches();
            });
            frames
                .alloc(B, request(0, FrameClass::Balloon))
                .expect("four are above the mark all the time");
        });
        frames.drain_cpu_caches();
        assert_eq!(frames.free_frames(), 1023);
    });
}

/// Two CPUs book at once: each may book one request too much, and nothing is lost.
#[test]
fn the_mark_holds_but_for_a_request_of_each_cpu() {
    let explore = Explore {
        mark: 900,
        ..Explore::blocks(2)
    };
    explore.run(|frames| {
        let take = |cpu| {
            let mut count = 0;
            while frames.alloc(cpu, AllocRequest::unmovable()).is_ok() {
                count += 1;
            }
            count
        };
        let taken = scope(|scope| {
            let other = scope.spawn(|| take(A));
            take(B) + other.join().unwrap()
        });
        frames.drain_cpu_caches();
        assert_eq!(frames.free_frames() + taken, 1024);
        assert!((124..=124 + 128).contains(&taken), "{taken}");
    });
}

/// One CPU takes huge pages and gives them back, and so keeps spare ones; another one isolates each block in turn.
#[test]
fn a_spare_block_can_be_isolated() {
    Explore::blocks(6).run(|frames| {
        scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 {
                    if let Ok(huge) = frames.alloc(A, AllocRequest::huge()) {
                        frames.free(A, huge, Order::HUGE).unwrap();
                    }
                }
            });
            for number in [0, 1] {
                match frames.isolate_block(BlockId::new(number)) {
                    Ok(token) => {
                        assert_eq!(frames.ledger(token.block()).state(), BlockState::Isolated);
                        let head = frames.capture_block(token, FrameClass::Movable);
                        frames
                            .free(B, head.expect("wholly free"), Order::HUGE)
                            .unwrap();
                    }
                    Err(error) => assert_eq!(error, IsolateError::Huge),
                }
            }
        });
        frames.drain_cpu_caches();
        assert_eq!(frames.free_blocks(), 6);
    });
}

/// A request of another CPU gets the spare blocks that a CPU keeps.
#[test]
fn a_spare_block_is_not_missed() {
    Explore::blocks(4).run(|frames| {
        let huge = frames.alloc(A, AllocRequest::huge()).unwrap();
        frames.free(A, huge, Order::HUGE).unwrap();
        scope(|scope| {
            scope.spawn(|| {
                let huge = frames.alloc(A, AllocRequest::huge()).expect("3 are left");
                frames.free(A, huge, Order::HUGE).unwrap();
            });
            for _ in 0..3 {
                frames
                    .alloc(B, request(9, FrameClass::Unmovable))
                    .expect("3 of 4");
            }
        });
        assert_eq!(frames.free_blocks(), 1);
    });
}

/// Spare blocks are given back while others take from them: every frame has one holder.
#[test]
fn giving_spare_blocks_back_against_taking_them() {
    Explore::blocks(4).run(|frames| {
        let huge = frames.alloc(A, AllocRequest::huge()).unwrap();
        frames.free(A, huge, Order::HUGE).unwrap();
        let taken = scope(|scope| {
            scope.spawn(|| frames.drain_cpu_caches());
            let run = scope.spawn(|| frames.alloc(A, request(8, FrameClass::Unmovable)).unwrap());
            let range = frames
                .alloc_range(B, 600, Order::BASE, request(0, FrameClass::Movable))
                .ok();
            (run.join().unwrap(), range)
        });
        if let Some(range) = taken.1 {
            let inside = range.get()..range.get() + 600;
            assert!((0..256).all(|at| !inside.contains(&(taken.0.get() + at))));
            frames.free_range(B, range, 600).unwrap();
        }
        frames.free(A, taken.0, Order::new(8).unwrap()).unwrap();
        frames.drain_cpu_caches();
        assert_eq!(frames.free_frames(), 4 * FRAMES_PER_BLOCK as u64);
    });
}

/// A frame of a block is taken at its place at the moment at which its CPU gives the block back: the index follows.
#[test]
fn giving_spare_blocks_back_against_taking_at_a_place() {
    Explore::blocks(6).run(|frames| {
        let huge = frames.alloc(A, AllocRequest::huge()).unwrap();
        frames.free(A, huge, Order::HUGE).unwrap();
        let spare = |b: &BlockId| frames.ledger(*b).state() == BlockState::Spare;
        let kept: Vec<BlockId> = frames.blocks().filter(spare).collect();
        assert_eq!(kept.len(), 2);
        scope(|scope| {
            scope.spawn(|| frames.drain_cpu_caches());
            frames
                .alloc_at(B, frames.block_start(kept[0]), 1, AllocRequest::movable())
                .expect("free");
        });
    });
}

/// A CPU fills its cache from a block at the moment at which that is isolated: it finds nothing there, or what it has
/// cached goes back.
#[test]
fn a_refill_against_isolation() {
    Explore::blocks(2).run(|frames| {
        let block = BlockId::new(0);
        let token = scope(|scope| {
            scope.spawn(|| frames.alloc(A, AllocRequest::movable()).unwrap());
            let token = frames.isolate_block(block).expect("open");
            let used = frames.ledger(block).used();
            assert!(used <= 1, "{used} frames, one of which may be held");
            token
        });
        assert!(frames.ledger(block).used() <= 1);
        frames.unisolate_block(token);
    });
}

/// A range that fails half way puts back what it has taken, into a block that is isolated meanwhile.
#[test]
fn a_range_that_fails_against_isolation() {
    Explore::blocks(2).run(|frames| {
        let start = frames.block_start(BlockId::new(0));
        let movable = AllocRequest::movable();
        frames.alloc_at(A, start.plus(600), 1, movable).unwrap();
        scope(|scope| {
            scope.spawn(|| {
                let range = frames.alloc_at(A, start.plus(100), 600, movable);
                assert!(range.is_err());
            });
            let token = frames.isolate_block(BlockId::new(0)).expect("open");
            frames.unisolate_block(token);
        });
        assert_eq!(frames.free_frames(), 1023);
    });
}

/// Memory is used at the moment at which it is added.
#[test]
fn adding_memory_against_taking_it() {
    let explore = Explore {
        later: 1,
        ..Explore::blocks(1)
    };
    explore.run(|frames| {
        let start = frames.block_start(BlockId::new(0)).plus(512);
        let movable = AllocRequest::movable();
        let (taken, isolated) = scope(|scope| {
            scope.spawn(|| {
                let range = start..start.plus(512);
                frames
                    .add_range(dirigible_frames::ZoneId::new(0), range)
                    .unwrap();
            });
            let taken = scope.spawn(|| frames.alloc_at(A, start, 3, movable).is_ok());
            let isolated = frames.isolate_block(BlockId::new(1));
            let isolated = isolated.map(|token| frames.unisolate_block(token));
            (taken.join().unwrap(), isolated)
        });
        let _ = isolated;
        assert_eq!(frames.free_frames(), 1024 - 3 * u64::from(taken));
        assert_eq!(frames.managed_frames(), 1024);
    });
}

/// A block is filed into a word to which another CPU is just adding the first block: it is found all the same.
#[test]
fn a_block_is_found_before_the_summary_tells_of_its_neighbour() {
    let explore = Explore {
        schedules: 20,
        ..Explore::blocks(66)
    };
    explore.run(|frames| {
        let single = request(0, FrameClass::Balloon);
        let all = 66 * FRAMES_PER_BLOCK;
        let start = frames.block_start(BlockId::new(0));
        frames.alloc_at(A, start, all, single).unwrap();
        let at = |block: u64| start.plus(block * FRAMES_PER_BLOCK as u64);
        scope(|scope| {
            scope.spawn(|| frames.free_bulk(A, &[at(64)]).unwrap());
            frames.free_bulk(B, &[at(65)]).unwrap();
            frames.alloc(B, single).expect("one was just freed");
        });
    });
}

/// A block's cost changes together with its ledger: it is filed by both.
#[test]
fn a_tally_against_a_change_of_the_ledger() {
    let explore = Explore {
        by_tally: true,
        ..Explore::blocks(1)
    };
    explore.run(|frames| {
        let start = frames.block_start(BlockId::new(0));
        frames
            .alloc_at(A, start, 300, AllocRequest::movable())
            .unwrap();
        scope(|scope| {
            scope.spawn(|| frames.set_block_tally(BlockId::new(0), 290));
            frames.free_range(B, start, 64).unwrap();
        });
        assert_eq!(frames.evacuation_cost(BlockId::new(0)), 0);
    });
}

/// The meaning of the tallies changes, and a tally, while the block is filed and its ledger changes.
#[test]
fn an_epoch_against_a_change_of_the_ledger() {
    let explore = Explore {
        by_tally: true,
        ..Explore::blocks(1)
    };
    explore.run(|frames| {
        let block = BlockId::new(0);
        let start = frames.block_start(block);
        frames
            .alloc_at(A, start, 300, AllocRequest::movable())
            .unwrap();
        scope(|scope| {
            scope.spawn(|| {
                frames.set_tally_epoch(100);
                frames.refile_block(block);
            });
            scope.spawn(|| {
                frames.add_to_block_tally(block, 150);
                frames.refile_block(block);
            });
            frames.free_range(B, start, 64).unwrap();
        });
        assert_eq!(frames.evacuation_cost(block), 0);
        frames.verify().expect("filed in one place");
        frames.refile_block(block);
        let mut found = [block];
        assert_eq!(frames.cheapest_blocks(None, &mut found), 1);
    });
}

/// Two CPUs take ranges that overlap; the one that is late puts back what it has taken.
#[test]
fn two_ranges_over_the_same_blocks() {
    Explore::blocks(2).run(|frames| {
        let start = frames.block_start(BlockId::new(0));
        let movable = AllocRequest::movable();
        let (one, two) = scope(|scope| {
            let one = scope.spawn(|| frames.alloc_at(A, start.plus(100), 500, movable).is_ok());
            let two = frames.alloc_at(B, start.plus(550), 100, movable).is_ok();
            (one.join().unwrap(), two)
        });
        assert!(one || two, "one of them has it");
        assert!(!(one && two), "both have frames 550 to 600");
        let (first, count) = if one { (100, 500) } else { (550, 100) };
        assert_eq!(frames.free_frames(), 1024 - count as u64);
        frames.free_range(A, start.plus(first), count).unwrap();
    });
}

/// More than one word in every bucket of the index: blocks come and go at both ends of it.
#[test]
fn blocks_far_apart_come_and_go() {
    let explore = Explore {
        schedules: 15,
        ..Explore::blocks(66)
    };
    explore.run(|frames| {
        let huge = |at: u32| frames.block_start(BlockId::new(at));
        let all = request(0, FrameClass::Movable);
        for (first, count) in [(0, 63 * FRAMES_PER_BLOCK), (65, FRAMES_PER_BLOCK)] {
            frames.alloc_at(A, huge(first), count, all).unwrap();
        }
        // Blocks 63 and 64 are whole: the last of one word and the first of the next.
        scope(|scope| {
            for cpu in [A, B] {
                scope.spawn(move || {
                    for _ in 0..2 {
                        let huge = frames.alloc(cpu, request(9, FrameClass::Unmovable));
                        let huge = huge.expect("as many as CPUs");
                        frames.free(cpu, huge, Order::HUGE).unwrap();
                    }
                });
            }
        });
        assert_eq!(frames.free_blocks(), 2);
    });
}
