//! What compaction checks before it begins a block: is there room for its frames, and which blocks need little of it?
#![cfg(not(shuttle))]

use dirigible_frames::{
    AllocRequest, BalloonPlacement, BlockId, Config, CpuId, FRAMES_PER_BLOCK, Fallback,
    FrameAllocator, FrameClass, FrameFlags, FreeError, IsolateError, IsolatedBlock, Order, Pfn,
    Placement, Watermark, Watermarks, ZoneConfig, ZoneId,
};

const CPU: CpuId = CpuId::new(0);

/// Runs `test` on an allocator of `blocks` blocks in which block n keeps `used[n]` movable frames.
fn with_blocks(used: &[usize], test: impl FnOnce(&FrameAllocator<'_>)) {
    with_blocks_under(Fallback::Evacuate, used, test);
}

fn with_blocks_under(fallback: Fallback, used: &[usize], test: impl FnOnce(&FrameAllocator<'_>)) {
    let ranges = [Pfn::new(0)..Pfn::new((used.len() * FRAMES_PER_BLOCK) as u64)];
    let zone = ZoneConfig {
        name: "Normal",
        ranges: &ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    };
    let config = Config {
        zones: &[zone],
        reserved: &[],
        cpus: 1,
        placement: Placement::FullestFirst,
        fallback,
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
    while let Ok(frame) = frames.alloc(CPU, AllocRequest::movable()) {
        let _ = frame;
    }
    for (block, used) in used.iter().enumerate() {
        for offset in *used..FRAMES_PER_BLOCK {
            let frame = Pfn::new((block * FRAMES_PER_BLOCK + offset) as u64);
            frames.free(CPU, frame, Order::BASE).unwrap();
        }
    }
    frames.drain_cpu_caches();
    test(&frames);
    frames.verify().unwrap();
}

#[test]
fn targets_are_counted_in_partly_used_blocks_and_taken_outside_one() {
    with_blocks(&[100, 500, 508, 0], |frames| {
        let first = BlockId::new(0);
        assert_eq!(frames.target_frames(0), 0);
        assert_eq!(frames.target_frames(400), 400, "enough is enough");
        let all = frames.target_frames(usize::MAX);
        assert_eq!(all, 412 + 12 + 4, "the whole block does not count");
        // Without the block's own room.
        let mut targets = [Pfn::default(); 17];
        assert_eq!(
            frames.take_targets(first, Watermark::None, &mut targets),
            16
        );
        for target in &targets[..16] {
            frames.free(CPU, *target, Order::BASE).unwrap();
        }
        frames.drain_cpu_caches();
    });
}

#[test]
fn the_emptiest_come_first_and_whole_or_full_ones_not_at_all() {
    with_blocks(&[512, 0, 400, 3, 250, 511], |frames| {
        let mut found = [BlockId::new(0); 6];
        let count = frames.emptiest_blocks(None, &mut found);
        let found: Vec<usize> = found[..count].iter().map(|block| block.index()).collect();
        assert_eq!(found, [3, 4, 2, 5]);
    });
}

#[test]
fn what_compaction_sets_aside_leaves_the_watermark() {
    with_blocks(&[100, 300, 508, 512], |frames| {
        let zone = ZoneId::new(0);
        let free = frames.zone_free_frames(zone);
        assert_eq!(free, 412 + 212 + 4);
        let marks = |min| Watermarks {
            min,
            low: min,
            high: min,
        };
        // The free frames of the block itself are set aside first …
        frames.set_watermarks(zone, marks(free - 411));
        let isolate = |each: &mut dyn FnMut(Result<IsolatedBlock, IsolateError>)| {
            let first = [BlockId::new(0)];
            frames.isolate_blocks(&first, Watermark::Min, |_, result| each(result));
        };
        isolate(&mut |result| assert_eq!(result, Err(IsolateError::BelowWatermark)));
        assert_eq!(frames.zone_free_frames(zone), free, "nothing was changed");
        frames.set_watermarks(zone, marks(free - 412 - 50));
        let mut token = None;
        isolate(&mut |result| token = Some(result.unwrap()));
        assert_eq!(frames.zone_free_frames(zone), free - 412);
        // … and then targets, as far as the mark allows.
        let mut targets = [Pfn::default(); 100];
        let got = frames.take_targets(BlockId::new(0), Watermark::Min, &mut targets);
        assert_eq!((got, frames.zone_free_frames(zone)), (50, free - 462));
        let request = AllocRequest::movable().with_watermark(Watermark::Min);
        assert!(frames.alloc(CPU, request).is_err(), "at the mark");
        for target in &targets[..got] {
            frames.free(CPU, *target, Order::BASE).unwrap();
        }
        frames.unisolate_block(token.unwrap());
        frames.drain_cpu_caches();
        assert_eq!(frames.zone_free_frames(zone), free);
    });
}

#[test]
fn blocks_are_isolated_together_and_answered_one_by_one() {
    with_blocks(&[100, 0, 300, 508], |frames| {
        let huge = frames.alloc(CPU, AllocRequest::huge()).unwrap();
        let named = [2, 1, 2, 0, 9].map(BlockId::new);
        // A frame of the first lies in a cache.
        let cached = Pfn::new(3);
        frames.free(CPU, cached, Order::BASE).unwrap();
        assert_eq!(frames.cached_frames(), 1);
        let mut results = Vec::new();
        let mut tokens = Vec::new();
        frames.isolate_blocks(&named, Watermark::None, |block, result| {
            assert_eq!(
                frames.cached_frames(),
                0,
                "the caches are empty of all of them"
            );
            results.push((block.index(), result.as_ref().err().copied()));
            tokens.extend(result);
        });
        assert_eq!(
            results,
            [
                (2, None),
                (1, Some(IsolateError::Huge)),
                (2, Some(IsolateError::Isolated)),
                (0, None),
                (9, Some(IsolateError::Unknown)),
            ]
        );
        assert_eq!(frames.ledger(BlockId::new(0)).free(), 413);
        tokens
            .into_iter()
            .for_each(|token| frames.unisolate_block(token));
        frames.free(CPU, huge, Order::HUGE).unwrap();
    });
}

#[test]
fn a_balloon_of_whole_blocks_finishes_each_before_it_begins_the_next() {
    with_blocks(&[0; 40], |frames| {
        let mut held = Vec::new();
        let inflate = |held: &mut Vec<Pfn>, count: usize| {
            let mut out = vec![Pfn::default(); count];
            let how = BalloonPlacement::WholeBlocks;
            assert_eq!(
                frames.alloc_balloon(CPU, how, Watermark::None, &mut out),
                count
            );
            held.extend(out);
        };
        for _ in 0..150 {
            inflate(&mut held, 100);
            assert!(frames.free_blocks() as usize >= 40 - held.len().div_ceil(512));
        }
        // Two frames of a full block come back: the hole is filled before the block that was begun last goes on, or
        // after; never is a whole block broken for it.
        let whole = frames.free_blocks();
        for frame in [Pfn::new(700), Pfn::new(3000)] {
            held.retain(|other| *other != frame);
            frames.free(CPU, frame, Order::BASE).unwrap();
        }
        let room = 40 * 512 - held.len() - whole as usize * 512;
        inflate(&mut held, room);
        assert_eq!(frames.free_blocks(), whole);
        let full = frames
            .blocks()
            .filter(|&b| frames.ledger(b).balloon() == 512);
        assert_eq!(full.count() as u64, 40 - whole);
        frames.free_bulk(CPU, &held).unwrap();
    });
}

#[test]
fn a_pinned_frame_takes_its_block_out_of_the_candidates() {
    with_blocks(&[100, 300, 508, 0], |frames| {
        let candidates = || {
            let mut found = [BlockId::new(0); 4];
            let count = frames.cheapest_blocks(None, &mut found);
            found[..count].iter().map(|b| b.index()).collect::<Vec<_>>()
        };
        assert_eq!(candidates(), [0, 1, 2]);
        let pinned = Pfn::new(513);
        frames.set_flags(pinned, FrameFlags::PINNED);
        frames.set_flags(pinned, FrameFlags::PINNED.union(FrameFlags::DIRTY));
        assert_eq!(candidates(), [0, 2]);
        assert!(frames.is_hybrid(BlockId::new(1)));
        // In another class it is counted the same; without the pin it counts as what it is.
        frames.reclass(pinned, FrameClass::Balloon);
        assert_eq!(frames.ledger(BlockId::new(1)).unmovable(), 1);
        assert_eq!(
            frames.free(CPU, pinned, Order::BASE),
            Err(FreeError::Pinned(pinned))
        );
        frames.clear_flags(pinned, FrameFlags::PINNED);
        assert_eq!(frames.ledger(BlockId::new(1)).balloon(), 1);
        frames.reclass(pinned, FrameClass::Movable);
        assert_eq!(candidates(), [0, 1, 2]);
        // A huge page is pinned whole.
        let huge = frames.alloc(CPU, AllocRequest::huge()).unwrap();
        frames.set_flags(huge, FrameFlags::PINNED);
        assert_eq!(frames.ledger(BlockId::new(3)).unmovable(), 512);
        frames.clear_flags(huge, FrameFlags::PINNED);
        frames.free(CPU, huge, Order::HUGE).unwrap();
        // A frame that nobody holds cannot be pinned.
        frames.set_flags(huge, FrameFlags::PINNED);
        assert_eq!(frames.flags(huge), FrameFlags::EMPTY);
    });
}

/// What a huge page leaves is what small movable requests can take: free frames in blocks of kernel memory do not count,
/// however many there are.
#[test]
fn a_huge_page_leaves_its_watermark_apart_from_what_is_stranded() {
    for fallback in [Fallback::Evacuate, Fallback::Steal] {
        with_blocks_under(fallback, &[500, 512, 0, 0, 0], |frames| {
            let zone = ZoneId::new(0);
            let kernel = frames.alloc(CPU, AllocRequest::unmovable()).unwrap();
            frames.drain_cpu_caches();
            let stranded = if fallback == Fallback::Evacuate {
                511
            } else {
                0
            };
            assert_eq!(frames.stranded_frames(zone), stranded);
            // Two blocks are whole, and 12 + 511 frames are free beside them.
            let marks = |min| Watermarks {
                min,
                low: min,
                high: min,
            };
            let usable = 2 * 512 + 12 + 511 - stranded;
            for (min, gets) in [(usable - 512, 1), (usable - 511, 0), (0, 2)] {
                frames.set_watermarks(zone, marks(min));
                let huge: Vec<Pfn> =
                    core::iter::from_fn(|| frames.alloc(CPU, AllocRequest::huge()).ok()).collect();
                assert_eq!(huge.len(), gets, "{fallback:?}, {min}");
                for frame in huge {
                    frames.free(CPU, frame, Order::HUGE).unwrap();
                }
                frames.drain_cpu_caches();
            }
            // Small requests leave the mark as they always did, and kernel memory takes what is stranded.
            frames.set_watermarks(zone, marks(2 * 512 + 12 + 500));
            assert!(frames.alloc(CPU, AllocRequest::movable()).is_ok());
            frames.set_watermarks(zone, marks(0));
            frames.free(CPU, kernel, Order::BASE).unwrap();
            frames.drain_cpu_caches();
            assert_eq!(frames.stranded_frames(zone), 0);
        });
    }
}
