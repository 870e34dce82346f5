//! Small machines, and blocks with given contents.

use std::ops::Range;

use dirigible_frames::{
    AllocRequest, BlockId, Config, CpuId, FRAMES_PER_BLOCK, Fallback, FrameAllocator, FrameClass,
    Order, Pfn, Placement, Watermarks, ZoneConfig,
};

pub const A: CpuId = CpuId::new(0);
pub const B: CpuId = CpuId::new(1);

pub struct Machine {
    pub zones: Vec<Vec<Range<Pfn>>>,
    pub reserved: Vec<Range<Pfn>>,
    pub marks: Watermarks,
    pub reserve: u32,
    pub cpus: u16,
    pub placement: Placement,
    pub fallback: Fallback,
}

pub fn range(start: u64, end: u64) -> Range<Pfn> {
    Pfn::new(start)..Pfn::new(end)
}

pub fn order(order: u8) -> Order {
    Order::new(order).expect("0 to 10")
}

impl Machine {
    /// One zone of whole blocks, from frame 1024 on.
    pub fn of_blocks(blocks: u64) -> Self {
        Self::of_zones(vec![vec![range(
            1024,
            1024 + blocks * FRAMES_PER_BLOCK as u64,
        )]])
    }

    pub fn of_zones(zones: Vec<Vec<Range<Pfn>>>) -> Self {
        Self {
            zones,
            reserved: Vec::new(),
            marks: Watermarks::default(),
            reserve: 0,
            cpus: 2,
            placement: Placement::FullestFirst,
            fallback: Fallback::Steal,
        }
    }

    /// Runs `test` on a new machine; all counts must fit at the end.
    pub fn run(&self, test: impl FnOnce(&FrameAllocator<'_>)) {
        let zones: Vec<ZoneConfig<'_>> = self
            .zones
            .iter()
            .map(|ranges| ZoneConfig {
                name: "zone",
                ranges,
                watermarks: self.marks,
                reserve_blocks: self.reserve,
            })
            .collect();
        let config = Config {
            zones: &zones,
            reserved: &self.reserved,
            cpus: self.cpus,
            placement: self.placement,
            fallback: self.fallback,
            ..Config::default()
        };
        let bytes = FrameAllocator::metadata_bytes(&config).expect("a sound configuration");
        let mut metadata = vec![0; bytes];
        let frames = FrameAllocator::new(&config, &mut metadata).expect("enough metadata memory");
        test(&frames);
        frames.verify().expect("all counts fit");
    }
}

pub fn block(number: u32) -> BlockId {
    BlockId::new(number)
}

/// Makes the next wholly free block one of `class` with `free` free frames, the upper ones; gives those that are held.
pub fn prepare(frames: &FrameAllocator<'_>, class: FrameClass, free: usize) -> Vec<Pfn> {
    let request = AllocRequest::new(Order::HUGE, class);
    let head = frames.alloc(A, request).expect("a wholly free block");
    frames.split_huge(head);
    let mut held: Vec<Pfn> = (0..FRAMES_PER_BLOCK as u64)
        .map(|at| head.plus(at))
        .collect();
    let rest = held.split_off(FRAMES_PER_BLOCK - free);
    frames.free_bulk(A, &rest).expect("our own frames");
    held
}

/// A small deterministic source of numbers (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
