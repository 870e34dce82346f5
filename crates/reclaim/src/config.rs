//! The constants of reclaim.

/// How much is done at a time, and when it is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReclaimConfig {
    /// Frames that are looked at together. Default 32.
    pub cluster: u64,
    /// Objects that a shrinker is offered at a time. Default 128.
    pub slab_batch: u64,
    /// Below this priority background reclaim is in trouble: it writes dirty frames itself. Default 10; the first
    /// priority is 12, the last 0.
    pub write_priority: u8,
    /// How dear a page of a file is to be read again, against a page of a program, as Linux has it: programs' pages are
    /// taken with this weight, files' with 200 less this. With 0 programs' pages are taken only in the last pass, with 200
    /// (or more) files' pages are. Default 60.
    pub swappiness: u8,
    /// The least time between two looks through all page tables for what was used, in nanoseconds. Default 20 ms: a
    /// request that finds nothing makes all frames older dozens of times, and a look costs a page-table entry for each
    /// page that programs have.
    pub harvest_ns: u64,
    /// The longest that a request waits for writes to end, in nanoseconds. Default 100 ms.
    pub throttle_ns: u64,
    /// How often such a request looks, at most: a virtual clock may stand still. Default 10,000.
    pub throttle_looks: u32,
}

impl Default for ReclaimConfig {
    fn default() -> Self {
        Self {
            cluster: 32,
            slab_batch: 128,
            write_priority: 10,
            swappiness: 60,
            harvest_ns: 20_000_000,
            throttle_ns: 100_000_000,
            throttle_looks: 10_000,
        }
    }
}

/// How background reclaim works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KswapdConfig {
    /// Time between two looks at free memory, in nanoseconds. Default 1 ms: a look is a few loads, and memory may go from
    /// the low to the min watermark in some milliseconds.
    pub tick_ns: u64,
    /// Frames that one step looks at. Default 256.
    pub piece: u64,
    /// The pause after a pass in trouble, in nanoseconds. Default 100 ms.
    pub pause_ns: u64,
    /// Rounds through all priorities without a frame freed after which it gives up. Default 16.
    pub rounds: u32,
    /// Frames that a pass or several must free for the next one to begin at the first priority again. Default 32.
    pub progress: u64,
}

impl Default for KswapdConfig {
    fn default() -> Self {
        Self {
            tick_ns: 1_000_000,
            piece: 256,
            pause_ns: 100_000_000,
            rounds: 16,
            progress: 32,
        }
    }
}
