//! What an allocator is made of: zones, watermarks, reserved ranges, policies.

use core::ops::Range;

use crate::{FRAMES_PER_BLOCK, Interrupts, Ledger, Pfn, metadata::Sizes};

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

/// What emptying a block costs, in copied frames (0 to 512): from its ledger and its
/// [tally](crate::FrameAllocator::block_tally), and from nothing else. Called at each change of a ledger.
pub type CostFn = fn(Ledger, u64) -> u32;

/// Everything that makes an allocator.
///
/// ```
/// use dirigible_frames::{Config, Fallback};
///
/// let config = Config { cpus: 4, fallback: Fallback::Steal, ..Config::default() };
/// assert!(config.zones.is_empty(), "zones are the least that is still to be said");
/// ```
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
    /// Whole pageblocks by which each zone may grow later, in the order of the zones; none for those that are not named. See
    /// [`add_range`](crate::FrameAllocator::add_range).
    pub later: &'a [u32],
    /// Who masks interrupts while a CPU's own tables are in use; needed where handlers allocate or free.
    pub interrupts: Option<&'static dyn Interrupts>,
    /// What emptying a block costs; `None`: a movable frame one, a balloon frame an eighth.
    pub cost: Option<CostFn>,
}

impl Default for Config<'_> {
    /// No zone yet; one CPU, [`Placement::FullestFirst`], [`Fallback::Evacuate`].
    fn default() -> Self {
        Self {
            zones: &[],
            reserved: &[],
            cpus: 1,
            placement: Placement::FullestFirst,
            fallback: Fallback::Evacuate,
            later: &[],
            interrupts: None,
            cost: None,
        }
    }
}

/// The most segments that added memory can make beside those of the beginning.
const LATER_SEGMENTS: usize = 64;

/// The most zones that an allocator can have.
pub const MAX_ZONES: usize = 4;
/// The most pageblocks that an allocator can have (a block less than 16 TiB).
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

impl Config<'_> {
    /// How large the tables are, after all checks.
    pub(crate) fn sizes(&self) -> Result<Sizes, ConfigError> {
        if self.zones.is_empty() || self.zones.len() > MAX_ZONES {
            return Err(ConfigError::ZoneCount(self.zones.len()));
        }
        if self.cpus == 0 {
            return Err(ConfigError::NoCpu);
        }
        for (number, zone) in self.zones.iter().enumerate() {
            let marks = zone.watermarks;
            if marks.min > marks.low || marks.low > marks.high {
                return Err(ConfigError::Watermarks(number));
            }
            if zone.ranges.is_empty() || zone.ranges.iter().any(|r| r.start >= r.end) {
                return Err(ConfigError::EmptyRange(number));
            }
        }
        self.check_overlap()?;
        let mut zones = [(0, 0); MAX_ZONES];
        let (mut all, mut segments) = (0u64, 0);
        for (number, sizes) in zones.iter_mut().enumerate().take(self.zones.len()) {
            let mut now = 0;
            self.for_each_stretch(number, &mut |_, blocks| {
                segments += 1;
                now += blocks;
            });
            let later = self.later.get(number).copied().unwrap_or(0);
            segments += LATER_SEGMENTS.min(later as usize);
            all = all.saturating_add(now).saturating_add(u64::from(later));
            if all > MAX_BLOCKS {
                return Err(ConfigError::TooLarge(all));
            }
            *sizes = (now as u32, later);
        }
        Ok(Sizes {
            cpus: self.cpus as usize,
            segments,
            zones,
        })
    }

    /// Calls `each` with the stretches of a zone that have no hole of a whole block, ascending: the first frame, aligned to a
    /// block, and the number of blocks. Ranges need not be sorted; they are few.
    pub(crate) fn for_each_stretch(&self, zone: usize, each: &mut dyn FnMut(Pfn, u64)) {
        const BLOCK: u64 = FRAMES_PER_BLOCK as u64;
        let blocks = |range: &Range<Pfn>| {
            let (start, end) = (range.start.get() / BLOCK, range.end.get().div_ceil(BLOCK));
            (start, end)
        };
        let mut done = 0;
        loop {
            let rest = self.zones[zone].ranges.iter().map(blocks);
            let next = rest.filter(|(_, end)| *end > done).min();
            let Some((start, mut end)) = next else { return };
            // Ranges that begin inside or right behind are part of it.
            let touching = |end: u64| {
                let ranges = self.zones[zone].ranges.iter().map(blocks);
                ranges
                    .filter(|(other, stop)| *other <= end && *stop > end)
                    .map(|(_, stop)| stop)
                    .max()
            };
            while let Some(further) = touching(end) {
                end = further;
            }
            each(Pfn::new(start.max(done) * BLOCK), end - start.max(done));
            done = end;
        }
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
