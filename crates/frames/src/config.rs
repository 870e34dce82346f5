//! What an allocator is made of: zones, watermarks, reserved ranges, policies.

use core::ops::Range;

use crate::{FRAMES_PER_BLOCK, Pfn};

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
    /// Whole free blocks that movable order-0 requests leave alone; 0 turns the rule off.
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
    /// Fail with [`AllocError::Fragmented`](crate::AllocError::Fragmented); the caller evacuates a block and asks again.
    Evacuate,
}

/// Everything that makes an allocator.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// One to [`MAX_ZONES`] zones. Requests try the last one first.
    pub zones: &'a [ZoneConfig<'a>],
    /// Frames inside the zones that are never handed out.
    pub reserved: &'a [Range<Pfn>],
    /// Processors, numbered from 0.
    pub cpus: u16,
    /// Where movable requests go.
    pub placement: Placement,
    /// What requests for immovable memory do in need.
    pub fallback: Fallback,
}

/// The most zones that an allocator can have.
pub const MAX_ZONES: usize = 4;
/// The most pageblocks that an allocator can span (a block less than 16 TiB).
pub const MAX_BLOCKS: u64 = (1 << 23) - 1;
// Frames are counted in 32 bits, the end of the last block included.
const _: () = assert!(MAX_BLOCKS * FRAMES_PER_BLOCK as u64 <= u32::MAX as u64);

/// A zone of one allocator, in the order of [`Config::zones`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ZoneId(u8);

impl ZoneId {
    /// Zone number `index`.
    pub const fn new(index: u8) -> Self {
        Self(index)
    }

    /// The position in [`Config::zones`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A configuration that no allocator can be made of. All of them are the caller's to mend.
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
    /// From the lowest frame to the highest there are more than [`MAX_BLOCKS`] pageblocks.
    #[error("the ranges span {0} pageblocks, more than {MAX_BLOCKS}")]
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

impl Config<'_> {
    /// The base frame (block-aligned) and the number of blocks, after all checks.
    pub(crate) fn span(&self) -> Result<(Pfn, usize), ConfigError> {
        if self.zones.is_empty() || self.zones.len() > MAX_ZONES {
            return Err(ConfigError::ZoneCount(self.zones.len()));
        }
        if self.cpus == 0 {
            return Err(ConfigError::NoCpu);
        }
        let (mut low, mut high) = (u64::MAX, 0);
        for (number, zone) in self.zones.iter().enumerate() {
            let marks = zone.watermarks;
            if marks.min > marks.low || marks.low > marks.high {
                return Err(ConfigError::Watermarks(number));
            }
            if zone.ranges.is_empty() {
                return Err(ConfigError::EmptyRange(number));
            }
            for range in zone.ranges {
                if range.start >= range.end {
                    return Err(ConfigError::EmptyRange(number));
                }
                low = low.min(range.start.get());
                high = high.max(range.end.get());
            }
        }
        self.check_overlap()?;
        let base = Pfn::new(low).block_base();
        let blocks = (high - base.get()).div_ceil(FRAMES_PER_BLOCK as u64);
        if blocks > MAX_BLOCKS {
            return Err(ConfigError::TooLarge(blocks));
        }
        Ok((base, blocks as usize))
    }

    /// Ranges are few, so every pair is compared.
    fn check_overlap(&self) -> Result<(), ConfigError> {
        let all = || {
            self.zones.iter().enumerate().flat_map(|(z, zone)| {
                zone.ranges
                    .iter()
                    .enumerate()
                    .map(move |(r, range)| ((z, r), range))
            })
        };
        for (a, one) in all() {
            for (b, two) in all().filter(|(b, _)| *b > a) {
                if one.start < two.end && two.start < one.end {
                    return Err(ConfigError::Overlap(one.start.max(two.start)));
                }
                let blocks = |range: &Range<Pfn>| {
                    let last = Pfn::new(range.end.get() - 1);
                    (range.start.block_base(), last.block_base())
                };
                let ((one_first, one_last), (two_first, two_last)) = (blocks(one), blocks(two));
                if a.0 != b.0 && one_first <= two_last && two_first <= one_last {
                    return Err(ConfigError::SharedBlock(a.0, b.0));
                }
            }
        }
        Ok(())
    }
}
