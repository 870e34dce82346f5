//! The configuration of an allocator: zones, watermarks, reserved ranges, policies.

use core::ops::Range;

use crate::{FRAMES_PER_BLOCK, Interrupts, Ledger, Pfn};

/// Free-memory marks of a zone, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// Ordinary requests leave this much.
    pub min: u64,
    /// Background reclaim and compaction wake below this.
    pub low: u64,
    /// They stop above this.
    pub high: u64,
}

/// One zone: a set of ranges with marks of its own.
#[derive(Clone, Copy, Debug)]
pub struct ZoneConfig<'a> {
    /// For reports.
    pub name: &'static str,
    /// Frames of the zone; need not be aligned, may leave holes, may interleave with other zones' by whole pageblocks.
    pub ranges: &'a [Range<Pfn>],
    /// Marks in frames.
    pub watermarks: Watermarks,
    /// Whole free blocks that movable order-0 requests leave (the whole-block reserve); 0 turns it off.
    pub reserve_blocks: u32,
}

/// Where movable requests go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// The lowest-numbered block of the type that has room.
    LowestFirst,
    /// The fullest block of the type that has room, so that emptier blocks drain by themselves.
    FullestFirst,
}

/// What an unmovable or reclaimable request does when no block of its own has room and none is wholly free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallback {
    /// Take frames from the movable block with most of them free (Linux's way).
    Steal,
    /// Fail with [`AllocError::Fragmented`](crate::AllocError::Fragmented); the caller evacuates a block and asks
    /// again.
    Evacuate,
}

/// What emptying a block costs, in copied frames (0 to 512): from its ledger, its
/// [tally](crate::FrameAllocator::block_tally) and the [epoch](crate::FrameAllocator::set_tally_epoch) of the tally, and
/// from nothing else. Called several times at each change of a ledger.
pub type CostFn = fn(Ledger, u64, u32) -> u32;

/// The configuration of an allocator.
///
/// ```
/// use dirigible_frames::{Config, Fallback};
///
/// let config = Config { cpus: 4, fallback: Fallback::Steal, ..Config::default() };
/// assert!(config.zones.is_empty(), "zones have no default");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// One to [`MAX_ZONES`] zones. Requests try the last one first.
    pub zones: &'a [ZoneConfig<'a>],
    /// Frames inside the zones that are never handed out.
    pub reserved: &'a [Range<Pfn>],
    /// Frames inside the zones that are in use already, as a boot loader left them: single unmovable frames in state
    /// *Allocated*, which [`free_range`](crate::FrameAllocator::free_range) gives back. What is reserved too is reserved.
    pub in_use: &'a [Range<Pfn>],
    /// Processors, numbered from 0.
    pub cpus: u16,
    /// Where movable requests go.
    pub placement: Placement,
    /// What requests for immovable memory do when their own blocks are full.
    pub fallback: Fallback,
    /// Whole pageblocks by which each zone may grow later, in the order of the zones; zones that are not listed cannot
    /// grow. See [`add_range`](crate::FrameAllocator::add_range).
    pub later: &'a [u32],
    /// How to mask interrupts while a CPU's own tables are in use; needed where interrupt handlers allocate or free.
    pub interrupts: Option<&'static dyn Interrupts>,
    /// What emptying a block costs. By default a movable frame costs 1, a balloon frame an eighth.
    pub cost: Option<CostFn>,
}

impl Default for Config<'_> {
    /// No zone yet; one CPU, [`Placement::FullestFirst`], [`Fallback::Evacuate`].
    fn default() -> Self {
        Self {
            zones: &[],
            reserved: &[],
            in_use: &[],
            cpus: 1,
            placement: Placement::FullestFirst,
            fallback: Fallback::Evacuate,
            later: &[],
            interrupts: None,
            cost: None,
        }
    }
}

/// The most zones that an allocator can have.
pub const MAX_ZONES: usize = 4;
/// The most pageblocks that an allocator can have (a block less than 16 TiB).
pub const MAX_BLOCKS: u64 = (1 << 23) - 1;
// Frames are counted in 32 bits, the end of the last block included.
const _: () = assert!(MAX_BLOCKS * FRAMES_PER_BLOCK as u64 <= u32::MAX as u64);

/// What is wrong with a configuration. All of it is an error of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no zone, or more than [`MAX_ZONES`].
    #[error("an allocator needs 1 to {MAX_ZONES} zones, not {0}")]
    ZoneCount(usize),
    /// A zone without a frame, or a range that ends before it begins.
    #[error("zone {0} has an empty range")]
    EmptyRange(usize),
    /// Two ranges hold the same frame.
    #[error("two ranges overlap at frame {0}")]
    Overlap(Pfn),
    /// Two zones have frames in the same pageblock.
    #[error(
        "zones {0} and {1} share a pageblock; move their border to a multiple of {FRAMES_PER_BLOCK} frames"
    )]
    SharedBlock(usize, usize),
    /// Not `min <= low <= high`.
    #[error("the watermarks of zone {0} are not in the order min, low, high")]
    Watermarks(usize),
    /// No processor.
    #[error("an allocator needs at least one processor")]
    NoCpu,
    /// The ranges and what may be added to them have more than [`MAX_BLOCKS`] pageblocks.
    #[error("the ranges have {0} pageblocks, more than {MAX_BLOCKS}")]
    TooLarge(u64),
    /// The metadata memory is smaller than [`metadata_bytes`](crate::FrameAllocator::metadata_bytes).
    #[error("{given} bytes of metadata memory given, {needed} needed")]
    Metadata {
        /// Bytes handed in.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
}
