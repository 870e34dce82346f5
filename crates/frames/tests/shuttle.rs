//! Interleavings of a few threads in one or two pageblocks, explored by shuttle.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle \
//!     cargo test -p dirigible-frames --features shuttle --test shuttle
//! ```
//!
//! Without the flag this file is empty. Each run makes an allocator, runs a test on it, and verifies all counts.

#![cfg(shuttle)]

mod explore;

use dirigible_frames::{
    AllocError, AllocRequest, BalloonPlacement, BlockId, CpuId, FrameAllocator, FrameClass,
    FrameFlags, FrameState, Order, OwnerId, Pfn, Refusal, Watermark,
    sync::{AtomicU32, Ordering},
};
use explore::Explore;
use shuttle::thread::scope;

const A: CpuId = CpuId::new(0);
const B: CpuId = CpuId::new(1);

/// Runs `test` under many schedules, each time with a new allocator of `blocks` free pageblocks.
fn explore(blocks: u64, test: fn(&FrameAllocator<'_>)) {
    Explore::blocks(blocks).run(test);
}

/// The same where movable frames leave `reserve_blocks` whole.
fn explore_with_reserve(blocks: u64, reserve_blocks: u32, test: fn(&FrameAllocator<'_>)) {
    let explore = Explore {
        reserve_blocks,
        ..Explore::blocks(blocks)
    };
    explore.run(test);
}

fn order(order: u8) -> Order {
    Order::new(order).expect("0 to 10")
}

#[test]
fn isolating_against_taking_off_the_books() {
    explore(1, |frames| {
        let owner = OwnerId::new(7).unwrap();
        let pfn = frames.alloc(A, AllocRequest::movable()).unwrap();
        frames.set_owner(pfn, owner, 42);
        frames
            .transition(pfn, FrameState::Allocated, FrameState::Listed)
            .unwrap();
        let (isolated, delisted) = scope(|scope| {
            let compaction = scope.spawn(|| {
                let won = frames.try_isolate(pfn, owner).is_ok();
                if won {
                    assert_eq!(frames.owner_word(pfn), 42);
                    // Nobody else may touch it now, so putting it back cannot fail.
                    assert_eq!(
                        frames.transition(pfn, FrameState::Isolated, FrameState::Listed),
                        Ok(())
                    );
                }
                won
            });
            let driver = scope.spawn(|| {
                match frames.transition(pfn, FrameState::Listed, FrameState::Leaving) {
                    Ok(()) => true,
                    Err(found) => {
                        assert_eq!(found, FrameState::Isolated);
                        false
                    }
                }
            });
            (compaction.join().unwrap(), driver.join().unwrap())
        });
        assert!(isolated || delisted, "both lost");
        let state = if delisted {
            FrameState::Leaving
        } else {
            FrameState::Listed
        };
        assert_eq!(frames.state(pfn), state);
    });
}

#[test]
fn one_of_two_isolators_gets_the_block() {
    explore(1, |frames| {
        let block = BlockId::new(0);
        let won = scope(|scope| {
            let other = scope.spawn(|| frames.isolate_block(block).ok());
            let mine = frames.isolate_block(block).ok();
            [mine, other.join().unwrap()]
        });
        let mut tokens: Vec<_> = won.into_iter().flatten().collect();
        assert_eq!(tokens.len(), 1);
        frames.unisolate_block(tokens.remove(0));
    });
}

#[test]
fn a_cache_keeps_nothing_of_an_isolated_block() {
    explore(2, |frames| {
        const BEFORE: u32 = 0;
        const ISOLATED: u32 = 1;
        const OPEN: u32 = 2;
        // One frame is held, 63 of the same block are in the cache of A.
        let first = frames.alloc(A, AllocRequest::movable()).unwrap();
        let block = frames.block_of(first).unwrap();
        let phase = AtomicU32::new(BEFORE);
        scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3 {
                    let before = phase.load(Ordering::Acquire);
                    let pfn = frames.alloc(A, AllocRequest::movable()).unwrap();
                    let during = before == ISOLATED && phase.load(Ordering::Acquire) == ISOLATED;
                    assert!(
                        !during || frames.block_of(pfn) != Some(block),
                        "taken while isolated"
                    );
                    frames.free(A, pfn, Order::BASE).unwrap();
                }
            });
            let token = frames.isolate_block(block).unwrap();
            phase.store(ISOLATED, Ordering::Release);
            let used = frames.ledger(block).used();
            assert!(used <= 2, "{used} frames, two of which somebody holds");
            phase.store(OPEN, Ordering::Release);
            frames.unisolate_block(token);
        });
        frames.free(A, first, Order::BASE).unwrap();
    });
}

#[test]
fn what_is_freed_into_an_isolated_block_can_be_captured() {
    explore(1, |frames| {
        let single = frames.alloc(A, AllocRequest::movable()).unwrap();
        let balloon = frames
            .alloc(B, AllocRequest::new(Order::BASE, FrameClass::Balloon))
            .unwrap();
        let run = frames
            .alloc(B, AllocRequest::new(order(3), FrameClass::Movable))
            .unwrap();
        let token = scope(|scope| {
            scope.spawn(|| {
                frames.free(A, single, Order::BASE).unwrap();
            });
            scope.spawn(|| {
                frames.free(B, run, order(3)).unwrap();
                frames.free_bulk(B, &[balloon]).unwrap();
            });
            frames.isolate_block(BlockId::new(0)).unwrap()
        });
        assert_eq!(frames.free_frames(), 0, "what is isolated cannot be taken");
        let head = frames
            .capture_block(token, FrameClass::Movable)
            .expect("wholly free");
        assert_eq!(frames.state(head), FrameState::Allocated);
        frames.free(A, head, Order::HUGE).unwrap();
        assert_eq!(frames.free_blocks(), 1);
    });
}

/// Allocates what there is room for. A search looks a bounded number of times: it may miss a block for as long as the
/// other CPU is stopped in the middle of moving it in the index. When that has `ended`, the first attempt must succeed.
fn alloc_beside(
    frames: &FrameAllocator<'_>,
    cpu: CpuId,
    request: AllocRequest,
    ended: &AtomicU32,
) -> Pfn {
    loop {
        let alone = ended.load(Ordering::SeqCst) == 1;
        match frames.alloc(cpu, request) {
            Ok(frame) => return frame,
            Err(error) => assert_eq!((error, alone), (AllocError::Fragmented, false)),
        }
        shuttle::thread::yield_now();
    }
}

#[test]
fn the_index_follows_the_last_change() {
    explore(1, |frames| {
        let ended = [AtomicU32::new(0), AtomicU32::new(0)];
        scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 {
                    let request = AllocRequest::new(order(6), FrameClass::Movable);
                    let run = alloc_beside(frames, A, request, &ended[1]);
                    frames.free(A, run, order(6)).unwrap();
                }
                ended[0].store(1, Ordering::SeqCst);
            });
            scope.spawn(|| {
                let request = AllocRequest::new(order(5), FrameClass::Movable);
                let run = alloc_beside(frames, B, request, &ended[0]);
                frames.reclass(run, FrameClass::Balloon);
                frames.free(B, run, order(5)).unwrap();
                let request = AllocRequest::new(order(7), FrameClass::Balloon);
                alloc_beside(frames, B, request, &ended[0]);
                ended[1].store(1, Ordering::SeqCst);
            });
        });
        assert_eq!(frames.ledger(BlockId::new(0)).balloon(), 128);
    });
}

#[test]
fn two_takers_in_one_block() {
    explore(1, |frames| {
        // 128 frames are left: one run of order 7, which one of the two takes in two words.
        for size in [8, 7] {
            frames
                .alloc(A, AllocRequest::new(order(size), FrameClass::Movable))
                .unwrap();
        }
        let (run, singles) = scope(|scope| {
            let run = scope.spawn(|| {
                frames
                    .alloc(A, AllocRequest::new(order(7), FrameClass::Movable))
                    .ok()
            });
            let mut out = [Pfn::default(); 3];
            let placement = BalloonPlacement::FillHoles;
            let singles = frames.alloc_balloon(B, placement, Watermark::None, &mut out);
            (run.join().unwrap(), singles)
        });
        assert_eq!(singles, if run.is_some() { 0 } else { 3 });
    });
}

#[test]
fn the_last_whole_block_goes_to_one_cpu() {
    explore(1, |frames| {
        let (huge, kernel) = scope(|scope| {
            let huge = scope.spawn(|| frames.alloc(A, AllocRequest::huge()).ok());
            let kernel = frames.alloc(B, AllocRequest::unmovable()).ok();
            (huge.join().unwrap(), kernel)
        });
        assert!(huge.is_some() != kernel.is_some(), "{huge:?} {kernel:?}");
    });
}

#[test]
fn two_huge_pages_out_of_two_blocks() {
    explore(2, |frames| {
        let (pair, single) = scope(|scope| {
            let pair = scope.spawn(|| {
                frames
                    .alloc(A, AllocRequest::new(Order::MAX, FrameClass::Movable))
                    .ok()
            });
            let single = frames.alloc(B, AllocRequest::huge()).ok();
            (pair.join().unwrap(), single)
        });
        assert!(pair.is_some() != single.is_some(), "{pair:?} {single:?}");
    });
}

#[test]
fn the_last_frame_comes_back_while_the_block_is_claimed() {
    explore(1, |frames| {
        let last = frames.alloc(A, AllocRequest::unmovable()).unwrap();
        let huge = scope(|scope| {
            scope.spawn(|| frames.free(A, last, Order::BASE).unwrap());
            frames.alloc(B, AllocRequest::huge()).ok()
        });
        if let Some(huge) = huge {
            frames.free(B, huge, Order::HUGE).unwrap();
        }
        frames.drain_cpu_caches();
        assert_eq!(frames.free_blocks(), 1);
    });
}

#[test]
fn two_cpus_leave_the_reserve_whole() {
    explore_with_reserve(2, 1, |frames| {
        scope(|scope| {
            scope.spawn(|| frames.alloc(A, AllocRequest::movable()).ok());
            let mut out = [Pfn::default(); 2];
            let placement = BalloonPlacement::WholeBlocks;
            frames.alloc_balloon(B, placement, Watermark::None, &mut out);
        });
        assert_eq!(frames.free_blocks(), 1);
    });
}

#[test]
fn refills_of_one_cpu_do_not_overflow_its_cache() {
    explore(1, |frames| {
        scope(|scope| {
            for _ in 0..7 {
                scope.spawn(|| frames.alloc(A, AllocRequest::movable()).unwrap());
            }
        });
        assert_eq!(
            frames.ledger(BlockId::new(0)).used() as u64,
            7 + frames.cached_frames()
        );
    });
}

#[test]
fn room_is_found_while_its_block_moves_in_the_index() {
    explore(1, |frames| {
        let request = |size| AllocRequest::new(order(size), FrameClass::Balloon);
        scope(|scope| {
            scope.spawn(|| {
                // Claims the block, and leaves it whole again.
                let run = frames
                    .alloc(A, request(6))
                    .expect("there is room all the time");
                frames.free(A, run, order(6)).unwrap();
            });
            let mut out = [Pfn::default(); 2];
            let (placement, mark) = (BalloonPlacement::FillHoles, Watermark::None);
            let count = frames.alloc_balloon(B, placement, mark, &mut out);
            assert_eq!(count, 2, "there is room all the time");
            frames
                .alloc(B, request(0))
                .expect("there is room all the time");
        });
    });
}

/// The frame for which a block is refused is freed at the same moment: the refusal does not outlive it.
#[test]
fn a_refusal_does_not_outlive_the_frame_that_caused_it() {
    explore(2, |frames| {
        let mut pfns = [Pfn::default(); 3];
        assert_eq!(frames.alloc_bulk(A, AllocRequest::movable(), &mut pfns), 3);
        frames.drain_cpu_caches();
        let block = frames.block_of(pfns[1]).unwrap();
        scope(|scope| {
            scope.spawn(|| frames.free_bulk(B, &[pfns[1]]).unwrap());
            frames.refuse_block(block, Refusal::Lasting, Some(pfns[1]));
        });
        assert_eq!(frames.ledger(block).refusal(), Refusal::None);
        let mut found = [BlockId::new(0)];
        assert_eq!(frames.cheapest_blocks(None, &mut found), 1);
        frames.free_bulk(A, &[pfns[0], pfns[2]]).unwrap();
    });
}

/// A pin against isolation and against the ledger's other changes: one of the two has the frame, and all counts fit.
#[test]
fn a_pin_against_allocation_and_isolation() {
    explore(1, |frames| {
        let owner = OwnerId::new(7).unwrap();
        let pfn = frames.alloc(A, AllocRequest::movable()).unwrap();
        frames.set_owner(pfn, owner, 42);
        frames
            .transition(pfn, FrameState::Allocated, FrameState::Listed)
            .unwrap();
        let (pinned, isolated) = scope(|scope| {
            let pinned = scope.spawn(|| frames.set_flags(pfn, FrameFlags::PINNED));
            let isolated = scope.spawn(|| frames.try_isolate(pfn, owner).is_ok());
            let other = frames.alloc(A, AllocRequest::movable()).unwrap();
            frames.free(A, other, Order::BASE).unwrap();
            (pinned.join().unwrap(), isolated.join().unwrap())
        });
        assert!(pinned != isolated, "one of them has it");
        let block = frames.block_of(pfn).unwrap();
        assert_eq!(frames.ledger(block).unmovable(), u16::from(pinned));
        frames.clear_flags(pfn, FrameFlags::PINNED);
        assert_eq!(frames.ledger(block).unmovable(), 0);
    });
}
