//! Large memory, and memory with holes.
#![cfg(not(shuttle))]

mod layout;

use std::{collections::BTreeSet, ops::Range};

use dirigible_frames::{
    AllocAtError, AllocError, AllocRequest, BlockId, BlockState, Config, FRAMES_PER_BLOCK,
    FrameAllocator, FrameClass, FrameState, Ledger, Order, Pfn,
};
use layout::{A, B, BLOCK, blocks, with, zone};

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
        // They count as free, and their frames are free.
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
        // Isolation makes the CPU give one back, and so does an allocation at its place.
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

/// The CPU's own part of the zone is the upper half, where no block is whole.
#[test]
fn a_cpu_keeps_spare_blocks_of_another_part_if_its_own_has_none() {
    let ranges = [blocks(0..128)];
    let zones = [zone(&ranges)];
    let config = Config {
        zones: &zones,
        cpus: 2,
        ..Config::default()
    };
    with(&config, |frames| {
        let upper = Pfn::new(64 * BLOCK);
        frames
            .alloc_at(A, upper, 64 * FRAMES_PER_BLOCK, AllocRequest::movable())
            .expect("free memory");
        let huge = frames.alloc(B, AllocRequest::huge()).expect("64 are whole");
        assert_eq!(huge, Pfn::new(0));
        let spare = |block: &BlockId| frames.ledger(*block).state() == BlockState::Spare;
        assert!(frames.blocks().any(|block| spare(&block)));
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
        // Blocks that are neighbours in the tables, and not in memory.
        let last = frames.block_of(Pfn::new(511 * BLOCK)).expect("memory");
        let first = frames.block_of(Pfn::new(TIB)).expect("memory");
        assert_eq!(first.index(), last.index() + 1);
        assert_eq!(
            (frames.block_above(last), frames.block_below(first)),
            (None, None)
        );
        // No allocation crosses the hole.
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

/// The cost function decides which blocks compaction empties first, and a new tally counts at once.
#[test]
fn blocks_cost_what_the_configuration_says() {
    fn cost(ledger: Ledger, cold: u64, _: u32) -> u32 {
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

/// What a tally means changes with the epoch; blocks are filed by what it meant until somebody looks at them.
#[test]
fn blocks_are_found_by_an_old_epoch_until_they_are_filed() {
    fn cost(ledger: Ledger, cold: u64, epoch: u32) -> u32 {
        u32::from(ledger.movable()).saturating_sub(cold as u32 * (epoch % 2))
    }
    let ranges = [blocks(0..3)];
    let zones = [zone(&ranges)];
    let config = Config {
        zones: &zones,
        cost: Some(cost),
        ..Config::default()
    };
    with(&config, |frames| {
        for (block, used) in [(0, 100), (1, 300), (2, 200)] {
            let start = Pfn::new(block * BLOCK);
            frames
                .alloc_at(A, start, used, AllocRequest::movable())
                .expect("free");
        }
        let cheapest = || {
            let mut found = [BlockId::new(9); 1];
            assert_eq!(frames.cheapest_blocks(None, &mut found), 1);
            found[0].index()
        };
        let [_, large, other] = [0, 1, 2].map(BlockId::new);
        frames.add_to_block_tally(large, 290);
        frames.add_to_block_tally(other, 190);
        frames.set_tally_epoch(1);
        assert_eq!(frames.tally_epoch(), 1);
        assert_eq!(frames.evacuation_cost(large), 10);
        frames.verify().expect("filed where they were");
        assert_eq!(cheapest(), 0);
        frames.refile_block(large);
        assert_eq!(cheapest(), 1);
        // A change of its ledger brings a block up to date as well.
        let start = frames.block_start(other);
        frames.free_range(A, start, 20).expect("ours");
        frames.drain_cpu_caches();
        assert_eq!(frames.evacuation_cost(other), 0);
        frames.verify().expect("filed anew");
        let mut found = [BlockId::new(9); 2];
        assert_eq!(frames.cheapest_blocks(None, &mut found), 2);
        assert_eq!(found, [other, large]);
        // The next epoch makes them dear: who finds them at their old place files them.
        frames.set_tally_epoch(2);
        assert_eq!((cheapest(), cheapest()), (1, 2));
        assert_eq!(cheapest(), 0);
        frames.verify().expect("filed anew");
    });
}
