//! Memory that is added later.
#![cfg(not(shuttle))]

mod layout;

use std::{collections::BTreeSet, ops::Range};

use dirigible_frames::{
    AllocAtError, AllocError, AllocRequest, BlockId, Config, FRAMES_PER_BLOCK, FrameAllocator,
    FrameClass, FrameFlags, GrowError, Order, Pfn, ZoneId,
};
use layout::{A, B, BLOCK, blocks, with, zone};

const ZONE: ZoneId = ZoneId::new(0);

#[test]
fn memory_that_comes_later_is_used_like_the_rest() {
    let first = [blocks(10..20)];
    let other = [blocks(100..102)];
    let zones = [zone(&first), zone(&other)];
    let config = Config {
        zones: &zones,
        cpus: 2,
        later: &[6],
        ..Config::default()
    };
    with(&config, |frames| {
        let free = |frames: &FrameAllocator<'_>| (frames.block_count(), frames.free_frames());
        assert_eq!(free(frames), (12, 12 * BLOCK));
        assert_eq!(
            frames.isolate_block(BlockId::new(10)).err().map(|_| ()),
            Some(())
        );
        // Right behind the zone's memory, and apart from it.
        for (range, count) in [(20..22, 14), (50..52, 16), (30..32, 18)] {
            frames.add_range(ZONE, blocks(range.clone())).expect("room");
            assert_eq!(free(frames), (count, count as u64 * BLOCK));
            assert_eq!(frames.managed_frames(), count as u64 * BLOCK);
            frames.verify().expect("all counts fit");
            let start = Pfn::new(range.start * BLOCK);
            assert_eq!(frames.zone_of(start), Some(ZONE));
            let block = frames.block_of(start).expect("memory");
            assert_eq!(frames.block_start(block), start);
            let token = frames.isolate_block(block).expect("open");
            frames.unisolate_block(token);
        }
        let long = 12 * FRAMES_PER_BLOCK;
        let range = frames
            .alloc_at(A, Pfn::new(10 * BLOCK), long, AllocRequest::movable())
            .map(|()| Pfn::new(10 * BLOCK))
            .expect("the first segment grew");
        frames.free_range(B, range, long).expect("ours");
        let mut all = BTreeSet::new();
        while let Ok(huge) = frames.alloc(B, AllocRequest::huge()) {
            assert!(all.insert(huge.get() / BLOCK));
        }
        let expected: BTreeSet<u64> = [10..22, 30..32, 50..52, 100..102]
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(all, expected);
        for block in all {
            frames
                .free(A, Pfn::new(block * BLOCK), Order::HUGE)
                .expect("ours");
        }
        let full = frames.add_range(ZONE, blocks(60..61));
        assert_eq!(full, Err(GrowError::TooLarge(0)));
    });
}

/// Blocks that are neighbours in memory but not in the tables, and the other way round: no allocation crosses the
/// border.
#[test]
fn no_allocation_goes_over_the_border_of_what_came_later() {
    let first = [blocks(0..11)];
    let zones = [zone(&first)];
    let config = Config {
        zones: &zones,
        later: &[4],
        ..Config::default()
    };
    with(&config, |frames| {
        // In the tables 11 is block 100, 12 is block 11, 13 and 14 are blocks 102 and 101.
        for block in [100, 11, 102, 101] {
            frames
                .add_range(ZONE, blocks(block..block + 1))
                .expect("room");
        }
        let pair = AllocRequest::new(Order::MAX, FrameClass::Movable);
        let mut held = Vec::new();
        while let Ok(head) = frames.alloc(A, pair) {
            held.push(head);
        }
        assert_eq!(held.len(), 5, "0 to 9");
        for (number, &head) in held.iter().enumerate() {
            match number % 3 {
                0 => frames.free(A, head, Order::MAX).expect("ours"),
                1 => {
                    assert!(frames.set_flags(head, FrameFlags::PINNED));
                    frames.clear_flags(head, FrameFlags::PINNED);
                    frames.split(head).expect("ours");
                    frames.free_range(A, head, 1024).expect("ours");
                }
                _ => {
                    frames.free_range(A, head.plus(1000), 24).expect("ours");
                    frames.free_range(A, head, 1000).expect("ours");
                }
            }
            frames.verify().expect("all counts fit");
        }
        for (start, count) in [(0, 12 * 512), (10, 1024), (100, 1024), (11, 513)] {
            let place = Pfn::new(start * BLOCK);
            let refused = frames.alloc_at(A, place, count, AllocRequest::movable());
            assert_eq!(refused, Err(AllocAtError::NoMemory), "{start}");
        }
        let refused = frames.alloc_range(A, 12 * 512, Order::BASE, AllocRequest::movable());
        assert_eq!(refused, Err(AllocError::Fragmented));
        assert_eq!(frames.free_blocks(), 15);
    });
}

/// What CPUs keep of a sum was bounded by the zone's size of that time: a balloon and added memory do not lower the
/// bound.
#[test]
fn the_bound_of_a_cpus_part_does_not_shrink() {
    let first = [blocks(0..512)];
    let zones = [zone(&first)];
    let config = Config {
        zones: &zones,
        later: &[2],
        ..Config::default()
    };
    with(&config, |frames| {
        let held: Vec<Pfn> = (0..3000)
            .map(|_| frames.alloc(A, AllocRequest::movable()).expect("free"))
            .collect();
        frames.adjust_managed(Pfn::new(0), -200_000);
        frames.add_range(ZONE, blocks(600..601)).expect("room");
        frames.verify().expect("as before");
        frames.adjust_managed(Pfn::new(0), 200_000);
        frames.free_bulk(A, &held).expect("ours");
    });
}

#[test]
fn memory_that_cannot_be_added_changes_nothing() {
    let first = [blocks(10..20)];
    let zones = [zone(&first)];
    let config = Config {
        zones: &zones,
        later: &[8],
        ..Config::default()
    };
    with(&config, |frames| {
        let refused = |range: Range<Pfn>| frames.add_range(ZONE, range).expect_err("refused");
        let (odd, even) = (Pfn::new(30 * BLOCK + 1), Pfn::new(31 * BLOCK));
        assert_eq!(refused(odd..even), GrowError::Alignment);
        assert_eq!(refused(even..even), GrowError::Alignment);
        assert_eq!(
            refused(blocks(19..21)),
            GrowError::Overlap(Pfn::new(19 * BLOCK))
        );
        assert_eq!(
            refused(blocks(5..8)),
            GrowError::Below(Pfn::new(10 * BLOCK))
        );
        assert_eq!(refused(blocks(30..39)), GrowError::TooLarge(8));
        let nowhere = frames.add_range(ZoneId::new(1), blocks(30..31));
        assert_eq!(nowhere, Err(GrowError::Zone(ZoneId::new(1))));
        assert_eq!(
            (frames.block_count(), frames.free_frames()),
            (10, 10 * BLOCK)
        );
        // Every second block makes a segment of its own.
        for block in 0..8 {
            frames
                .add_range(ZONE, blocks(40 + 2 * block..41 + 2 * block))
                .expect("room");
        }
        assert_eq!(frames.block_count(), 18);
    });
}

#[test]
fn other_cpus_use_memory_while_some_is_added() {
    let first = [blocks(0..4)];
    let zones = [zone(&first)];
    let config = Config {
        zones: &zones,
        cpus: 2,
        later: &[64],
        ..Config::default()
    };
    with(&config, |frames| {
        std::thread::scope(|scope| {
            let user = scope.spawn(|| {
                let mut held = Vec::new();
                while held.len() < 60 * FRAMES_PER_BLOCK {
                    match frames.alloc(B, AllocRequest::movable()) {
                        Ok(pfn) => held.push(pfn),
                        Err(_) => std::thread::yield_now(),
                    }
                }
                held
            });
            for block in 0..64 {
                let start = if block % 2 == 0 {
                    4 + block
                } else {
                    200 + block
                };
                frames
                    .add_range(ZONE, blocks(start..start + 1))
                    .expect("room");
            }
            let held = user.join().expect("no panic");
            let different: BTreeSet<Pfn> = held.iter().copied().collect();
            assert_eq!(different.len(), held.len());
            for pfn in held {
                frames.free(A, pfn, Order::BASE).expect("ours");
            }
        });
        frames.drain_cpu_caches();
        assert_eq!(frames.free_blocks(), 68);
    });
}
