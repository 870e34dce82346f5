//! Many schedules of one test, each with a new allocator that is verified at the end.

use dirigible_frames::{
    Config, CostFn, FRAMES_PER_BLOCK, FrameAllocator, Ledger, Pfn, Watermarks, ZoneConfig,
};
use shuttle::{
    Runner,
    scheduler::{PctScheduler, RandomScheduler},
};

/// What is tried, and how often.
#[derive(Clone, Copy)]
pub struct Explore {
    /// Free pageblocks at the beginning.
    pub blocks: u64,
    /// The mark of all three watermarks, in frames.
    pub mark: u64,
    /// Blocks by which the zone may grow.
    pub later: u32,
    /// Whether what a block costs depends on its tally.
    pub by_tally: bool,
    /// Blocks that movable frames leave whole.
    pub reserve_blocks: u32,
    /// Schedules tried at random, and as many again with few switches at unlucky places.
    pub schedules: usize,
}

impl Explore {
    pub const fn blocks(blocks: u64) -> Self {
        Self {
            blocks,
            mark: 0,
            later: 0,
            by_tally: false,
            reserve_blocks: 0,
            // Model-checked tables are leaked, so large ones are tried less often.
            schedules: 1000 / blocks as usize,
        }
    }

    pub fn run(self, test: fn(&FrameAllocator<'_>)) {
        let body = move || {
            let start = Pfn::new(2 * FRAMES_PER_BLOCK as u64);
            let ranges = [start..start.plus(self.blocks * FRAMES_PER_BLOCK as u64)];
            let zones = [ZoneConfig {
                name: "Normal",
                ranges: &ranges,
                watermarks: Watermarks {
                    min: self.mark,
                    low: self.mark,
                    high: self.mark,
                },
                reserve_blocks: self.reserve_blocks,
            }];
            let config = Config {
                zones: &zones,
                cpus: 2,
                later: &[self.later],
                cost: self.by_tally.then_some(
                    (|ledger: Ledger, cold, epoch| {
                        u32::from(ledger.movable()).saturating_sub(cold as u32 + epoch)
                    }) as CostFn,
                ),
                ..Config::default()
            };
            let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
            let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
            test(&frames);
            frames.verify().expect("all counts fit");
        };
        let mut config = shuttle::Config::new();
        // Model-checked atomics are large, and the per-CPU tables are made on the stack.
        config.stack_size = 1 << 20;
        Runner::new(RandomScheduler::new(self.schedules), config.clone()).run(body);
        Runner::new(PctScheduler::new(3, self.schedules), config).run(body);
    }
}
