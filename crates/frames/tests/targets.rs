//! What compaction asks before it begins a block: is there room for its frames, and which blocks need little of it?
#![cfg(not(shuttle))]

use dirigible_frames::{
    AllocRequest, BlockId, Config, CpuId, FRAMES_PER_BLOCK, Fallback, FrameAllocator, Order, Pfn,
    Placement, Watermark, Watermarks, ZoneConfig,
};

const CPU: CpuId = CpuId::new(0);

/// Runs `test` on an allocator of `blocks` blocks in which block n keeps `used[n]` movable frames.
fn with_blocks(used: &[usize], test: impl FnOnce(&FrameAllocator<'_>)) {
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
        fallback: Fallback::Evacuate,
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
fn targets_are_counted_outside_the_block_and_never_in_whole_ones() {
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
