//! Memory by whole blocks, for tests of where it lies.

use std::ops::Range;

use dirigible_frames::{
    Config, CpuId, FRAMES_PER_BLOCK, FrameAllocator, Pfn, Watermarks, ZoneConfig,
};

pub const A: CpuId = CpuId::new(0);
pub const B: CpuId = CpuId::new(1);
pub const BLOCK: u64 = FRAMES_PER_BLOCK as u64;

pub fn blocks(blocks: Range<u64>) -> Range<Pfn> {
    Pfn::new(blocks.start * BLOCK)..Pfn::new(blocks.end * BLOCK)
}

pub fn zone<'a>(ranges: &'a [Range<Pfn>]) -> ZoneConfig<'a> {
    ZoneConfig {
        name: "Normal",
        ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    }
}

pub fn with<R>(config: &Config<'_>, test: impl FnOnce(&FrameAllocator<'_>) -> R) -> R {
    let bytes = FrameAllocator::metadata_bytes(config).expect("a sound configuration");
    let mut metadata = vec![0xa5; bytes];
    let frames = FrameAllocator::new(config, &mut metadata).expect("enough metadata memory");
    let result = test(&frames);
    frames.verify().expect("all counts fit");
    result
}
