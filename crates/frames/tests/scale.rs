//! Large memory, memory with holes, and memory that comes later.
#![cfg(not(shuttle))]

use std::{collections::BTreeSet, ops::Range};

use dirigible_frames::{
    AllocAtError, AllocError, AllocRequest, BlockId, BlockState, Config, CpuId, FRAMES_PER_BLOCK,
    FrameAllocator, FrameClass, FrameFlags, FrameState, GrowError, Ledger, Order, Pfn, Watermarks,
    ZoneConfig, ZoneId,
};

const A: CpuId = CpuId::new(0);
const B: CpuId = CpuId::new(1);
const BLOCK: u64 = FRAMES_PER_BLOCK as u64;
const ZONE: ZoneId = ZoneId::new(0);

fn blocks(blocks: Range<u64>) -> Range<Pfn> {
    Pfn::new(blocks.start * BLOCK)..Pfn::new(blocks.end * BLOCK)
}

fn zone<'a>(ranges: &'a [Range<Pfn>]) -> ZoneConfig<'a> {
    ZoneConfig {
        name: "Normal",
        ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    }
}

fn with<R>(config: &Config<'_>, test: impl FnOnce(&FrameAllocator<'_>) -> R) -> R {
    let bytes = FrameAllocator::metadata_bytes(config).expect("a sound configuration");
    let mut metadata = vec![0xa5; bytes];
    let frames = FrameAllocator::new(config, &mut metadata).expect("enough metadata memory");
    let result = test(&frames);
    frames.verify().expect("all counts fit");
    result
}

/// Two blocks in a row are found by words of the index, also where one ends and the next begins.
#[test]
fn pairs_are_found_over_the_border_of_two_words() {
    let ranges = [blocks(3..203)];
    let zones = [zone(&ranges)];
    let config = Config {
        zones: &zones,
        ..Config::default()
    };
    with(&config, |frames| {
        while frames.alloc(A, AllocRequest::huge()).is_ok() {}
        let pair = AllocRequest::new(Order::MAX, FrameClass::Movable);
        let at = |block: u64| Pfn::new(block * BLOCK);
        // The second of each is the first block of a word; the last pair is the last of the zone.
        for (below, fits) in [
            (66, true),
            (65, false),
            (130, true),
            (200, true),
            (202, false),
        ] {
            let above = (below + 1).min(202);
            for block in below..=above {
                frames.free(A, at(block), Order::HUGE).expect("ours");
            }
            match frames.alloc(A, pair) {
                Ok(head) => assert!(fits && head == at(below), "{head:?}"),
                Err(_) => {
                    assert!(!fits, "{below}");
                    while frames.alloc(A, AllocRequest::huge()).is_ok() {}
                    continue;
                }
            }
            frames.split(at(below)).expect("ours");
            frames.free_range(A, at(below), 1024).expect("ours");
            while frames.alloc(A, AllocRequest::huge()).is_ok() {}
        }
    });
}

/// More than 64 times 64 blocks, so that the index has several words on each level.
#[test]
fn whole_blocks_are_found_at_both_ends_of_a_large_zone() {
    const BLOCKS: u64 = 64 * 64 + 100;
    let ranges = [blocks(3..3 + BLOCKS)];
    let zones = [zone(&ranges)];
    let config = Config {
        zones: &zones,
        cpus: 2,
        ..Config::default()
    };
    with(&config, |frames| {
        let mut held = BTreeSet::new();
        while let Ok(huge) = frames.alloc(A, AllocRequest::huge()) {
            assert!(held.insert(huge));
        }
        assert_eq!(held.len() as u64, BLOCKS);
        let at = |block: u64| Pfn::new((3 + block) * BLOCK);
        for few in [
            vec![0],
            vec![63, 64],
            vec![4095, 4096],
            vec![BLOCKS - 1, 0],
            vec![130, 4160, 77],
        ] {
            for &block in &few {
                frames.free(B, at(block), Order::HUGE).expect("ours");
            }
            // Single frames out of them, and the blocks again.
            let pfn = frames
                .alloc(A, AllocRequest::movable())
                .expect("free memory");
            frames.free(A, pfn, Order::BASE).expect("ours");
            let found: BTreeSet<Pfn> = few
                .iter()
                .map(|_| frames.alloc(A, AllocRequest::huge()).expect("as many"))
                .collect();
            assert_eq!(found, few.iter().map(|&block| at(block)).collect());
            assert_eq!(
                frames.alloc(A, AllocRequest::huge()),
                Err(AllocError::BelowWatermark)
            );
        }
    });
}

#[test]
fn each_cpu_keeps_spare_blocks_of_its_own_part() {
    let ranges = [blocks(0..1024)];
    let zones = [zone(&ranges)];
    let config = Config {
        zones: &zones,
        cpus: 2,
        ..Config::default()
    };
    with(&config, |frames| {
        let one = frames.alloc(A, AllocRequest::huge()).expect("free memory");
        let two = frames.alloc(B, AllocRequest::huge()).expect("free memory");
        assert_eq!(one, Pfn::new(0));
        assert_eq!(two, Pfn::new(512 * BLOCK), "half the zone away");
        let spare = |frames: &FrameAllocator<'_>| {
            let state = |b: &BlockId| frames.ledger(*b).state() == BlockState::Spare;
            frames.blocks().filter(state).count()
        };
        assert!(spare(frames) > 2);
        // They count as free, and are free frames for whoever looks.
        assert_eq!(
            (frames.free_blocks(), frames.free_frames()),
            (1022, 1022 * BLOCK)
        );
        let kept = frames
            .blocks()
            .find(|b| frames.ledger(*b).state() == BlockState::Spare)
            .expect("some");
        assert_eq!(frames.state(frames.block_start(kept)), FrameState::Free);
        assert_eq!(frames.pagetypeinfo().whole, 1022);
        frames.verify().expect("all counts fit");
        // Isolation has one for the asking, and so has an allocation at its place.
        let token = frames.isolate_block(kept).expect("free");
        frames.unisolate_block(token);
        frames
            .alloc_at(
                B,
                frames.block_start(kept).plus(5),
                1,
                AllocRequest::movable(),
            )
            .expect("free");
        frames.drain_cpu_caches();
        assert_eq!((spare(frames), frames.free_blocks()), (0, 1021));
    });
}

#[test]
fn a_hole_costs_nothing() {
    const TIB: u64 = 1 << 28;
    let near = [blocks(0..512), blocks(512..1024)];
    let far = [blocks(0..512), Pfn::new(TIB)..Pfn::new(TIB + 512 * BLOCK)];
    let bytes = |ranges: &[Range<Pfn>]| {
        let zones = [zone(ranges)];
        let config = Config {
            zones: &zones,
            ..Config::default()
        };
        FrameAllocator::metadata_bytes(&config).expect("sound")
    };
    let (one, two) = (bytes(&near), bytes(&far));
    assert!(
        two - one < 64,
        "{one} bytes without the hole, {two} with it"
    );
    let zones = [zone(&far)];
    let config = Config {
        zones: &zones,
        ..Config::default()
    };
    with(&config, |frames| {
        assert_eq!(frames.block_count(), 1024);
        let hole = Pfn::new(TIB / 2);
        assert_eq!(
            (frames.block_of(hole), frames.state(hole)),
            (None, FrameState::Reserved)
        );
        // Blocks that follow each other in the tables, and not in memory.
        let last = frames.block_of(Pfn::new(511 * BLOCK)).expect("memory");
        let first = frames.block_of(Pfn::new(TIB)).expect("memory");
        assert_eq!(first.index(), last.index() + 1);
        assert_eq!(
            (frames.block_above(last), frames.block_below(first)),
            (None, None)
        );
        // No allocation goes over the hole.
        let pair = AllocRequest::new(Order::MAX, FrameClass::Movable);
        let all: Vec<Pfn> = std::iter::from_fn(|| frames.alloc(A, pair).ok()).collect();
        assert_eq!(all.len(), 512);
        for &head in &all {
            frames.free(A, head, Order::MAX).expect("ours");
        }
        let long = 513 * FRAMES_PER_BLOCK;
        let refused = frames.alloc_range(A, long, Order::BASE, AllocRequest::movable());
        assert_eq!(refused, Err(AllocError::Fragmented));
        assert_eq!(
            frames.alloc_at(A, Pfn::new(511 * BLOCK), 1024, AllocRequest::movable()),
            Err(AllocAtError::NoMemory)
        );
        let half = frames
            .alloc_range(
                A,
                512 * FRAMES_PER_BLOCK,
                Order::MAX,
                AllocRequest::movable(),
            )
            .expect("all of one side");
        frames
            .free_range(A, half, 512 * FRAMES_PER_BLOCK)
            .expect("ours");
    });
}

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
            .expect("the first stretch grew");
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

/// Blocks that follow each other in memory and not in the tables, and the other way round: nothing goes over the border.
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

/// What CPUs keep of a sum was bounded by what the zone was: a balloon and more memory do not make the bound smaller.
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
fn ranges_at_the_end_of_all_numbers() {
    let last = [Pfn::new(u64::MAX - 600)..Pfn::new(u64::MAX)];
    let zones = [zone(&last)];
    let config = Config {
        zones: &zones,
        ..Config::default()
    };
    with(&config, |frames| {
        let movable = AllocRequest::movable();
        let refused = frames.alloc_range(A, 560, Order::HUGE, movable);
        assert_eq!(refused, Err(AllocError::Fragmented));
        for count in [usize::MAX, 1 << 63, 1 << 40] {
            let refused = frames.alloc_range(A, count, Order::BASE, movable);
            assert_eq!(refused, Err(AllocError::BelowWatermark));
            let place = Pfn::new(u64::MAX - 100);
            assert!(frames.alloc_at(A, place, count, movable).is_err());
        }
        assert_eq!(
            frames.alloc_at(A, Pfn::new(u64::MAX - 9), 0, movable),
            Err(AllocAtError::NoMemory)
        );
        let all = frames
            .alloc_range(A, 600, Order::BASE, movable)
            .expect("over two blocks");
        frames.free_range(A, all, 600).expect("ours");
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
        // Every second block makes a stretch of its own.
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

/// The cost function decides which blocks compaction empties first, and what the reclaimer notes of a block counts at once.
#[test]
fn blocks_cost_what_the_configuration_says() {
    fn cost(ledger: Ledger, cold: u64) -> u32 {
        u32::from(ledger.movable()).saturating_sub(cold as u32)
    }
    let ranges = [blocks(0..3)];
    let zones = [zone(&ranges)];
    let config = Config {
        zones: &zones,
        cost: Some(cost),
        ..Config::default()
    };
    with(&config, |frames| {
        for (block, used) in [(0, 100), (1, 300), (2, 50)] {
            let start = Pfn::new(block * BLOCK);
            frames
                .alloc_at(A, start, used, AllocRequest::movable())
                .expect("free");
        }
        let cheapest = || {
            let mut found = [BlockId::new(9); 3];
            assert_eq!(frames.cheapest_blocks(None, &mut found), 3);
            found.map(BlockId::index)
        };
        assert_eq!(cheapest(), [2, 0, 1]);
        let large = BlockId::new(1);
        assert_eq!(
            (frames.block_tally(large), frames.evacuation_cost(large)),
            (0, 300)
        );
        frames.set_block_tally(large, 290);
        assert_eq!(
            (frames.block_tally(large), frames.evacuation_cost(large)),
            (290, 10)
        );
        frames.verify().expect("filed anew");
        assert_eq!(cheapest(), [1, 2, 0]);
        frames.set_block_tally(large, 0);
        assert_eq!(cheapest(), [2, 0, 1]);
    });
}
