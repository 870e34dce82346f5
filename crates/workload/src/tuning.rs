//! The constants of the experiment, and the policies of the columns.
//!
//! Sizes are given for a guest of 4 GiB and scale with its memory; sizes of the load are also multiplied by the load
//! scale. Times are those of the profile `paper`; the profile `quick` divides the load's times by [`QUICK_PACE`].

use dirigible_frames::{BalloonPlacement, Fallback, Placement, Watermarks};

use crate::{
    params::{Column, Feature, InflatePlacement, Params},
    report::Policy,
};
use dirigible::schedule::time::{MILLISECOND, SECOND};

/// The guest that the sizes below are given for, in frames.
pub const REFERENCE_FRAMES: u64 = 1 << 20;
/// Frames in a MiB.
const MIB: u64 = 256;

// --- the machine ---

/// One frame in this many is reserved at boot for metadata and DMA: 32 MiB of 4 GiB.
pub const RESERVED_SHARE: u64 = 128;

// --- the probe ---

/// Per cent of MemTotal that a pass requests.
pub const PROBE_PERCENT: u64 = 95;
/// From the start of one attempt to the start of the next.
pub const PROBE_PERIOD: u64 = 125 * MILLISECOND;
/// `quick`: blocks that one write to the hugetlb pool requests.
pub const QUICK_WRITE_BLOCKS: u64 = 16;
/// `quick`: goal of both tests, in per cent of memory; as in the measurement of Linux, 90 % of 4,096 MiB.
pub const QUICK_GOAL_PERCENT: u64 = 90;
/// `quick`: a test ends after this many writes in a row without a gain.
pub const QUICK_WRITES_WITHOUT_GAIN: u64 = 60;
/// `quick`: a test ends after this time.
pub const QUICK_TEST_TIME: u64 = 30 * SECOND;
/// `quick`: pause after a write that got all blocks.
pub const QUICK_PAUSE_FULL: u64 = 20 * MILLISECOND;
/// `quick`: pause after a write that got fewer.
pub const QUICK_PAUSE_SHORT: u64 = 100 * MILLISECOND;
/// `quick`: ranges that the THP test touches between two pauses of [`QUICK_PAUSE_FULL`].
pub const QUICK_THP_GROUP: u64 = 8;

// --- the timeline ---

/// `paper`: before pass 1 (longer where the balloon's schedule `held` needs it).
pub const PAPER_WARM_UP: u64 = 300 * SECOND;
/// `paper`: between pass 1 and pass 2, and after pass 2.
pub const PAPER_GAP: u64 = 5 * SECOND;
/// `paper`: after that, before the load is killed.
pub const PAPER_SETTLE: u64 = 185 * SECOND;
/// `held`: memory fills for this long before the balloon moves for the first time.
pub const HELD_FILL: u64 = 60 * SECOND;
/// `quick`: memory fills for this long before the balloon moves for the first time.
pub const QUICK_FILL: u64 = 25 * SECOND;
/// `quick`: between the balloon's last step before pass 1 and pass 1.
pub const QUICK_SETTLE: u64 = 5 * SECOND;
/// `quick`: the slot of a test under load is its time limit and this margin, whenever the test ends. So the balloon's
/// steps fall at the same time into the tests of every column.
pub const QUICK_SLOT_MARGIN: u64 = SECOND;
/// After the load is killed: time for the balloon to empty and for pending requests to settle.
pub const REST_GAP: u64 = 10 * SECOND;
/// The min watermark at rest, in frames: `min_free_kbytes` of 1,024, as in mmtests.
pub const RESTED_MIN: u64 = 256;

// --- the load ---

/// By how much the times of the load are divided in `quick`.
pub const QUICK_PACE: u64 = 4;
/// A request that found no memory is repeated after this time.
pub const STALL: u64 = 100 * MILLISECOND;

// --- the load's programs: compiles, sizes in frames at the reference ---

/// Source trees in `paper`; in each of them one directory is compiled at a time.
pub const PAPER_TREES: u32 = 10;
/// The same in `quick`.
pub const QUICK_TREES: u32 = 8;
/// Three of four compiles grow to a size between these.
pub const COMPILE_SMALL: (u64, u64) = (8 * MIB, 64 * MIB);
/// The others grow to a size between these.
pub const COMPILE_LARGE: (u64, u64) = (96 * MIB, 192 * MIB);
/// Memory is mapped in pieces between these. They keep their size, unless a compile itself is not much larger.
pub const COMPILE_PIECE: (u64, u64) = (16, MIB);
/// From the first piece to the last.
pub const COMPILE_BUILD: (u64, u64) = (5 * SECOND, 30 * SECOND);
/// From the last piece to the end.
pub const COMPILE_STAY: (u64, u64) = (SECOND, 10 * SECOND);
/// From the end of a compile to the beginning of the next in the same tree.
pub const COMPILE_PAUSE: (u64, u64) = (100 * MILLISECOND, SECOND);
/// One compile in this many uses huge pages.
pub const COMPILE_HUGE: u64 = 6;
/// Such a compile uses them for one piece in this many.
pub const COMPILE_HUGE_PIECES: u64 = 8;

// --- the load's programs: source trees, sizes at the reference ---

/// Directories with sources in a tree.
pub const TREE_DIRECTORIES: u64 = 60;
/// Sources in a directory. A file has 1 to 64 pages, 22 on average: all ten trees are 2.5 GiB.
pub const TREE_SOURCES: u64 = 46;
/// Headers of a tree.
pub const TREE_HEADERS: u64 = 200;
/// Headers that a directory includes.
pub const TREE_INCLUDED: u64 = 28;
/// Directories whose objects are linked together: each tree is linked every three minutes or so.
pub const TREE_LINKED: u32 = 8;
/// Pages of the file that a link writes.
pub const TREE_IMAGE: u64 = 3 * MIB;
/// Time in which a tree is unpacked or copied: 16 MiB a second.
pub const TREE_COPY_TIME: u64 = 16 * SECOND;
/// Trees that are copied at the same time, at most.
pub const TREE_COPIES: u32 = 2;
/// From one directory that is listed to the next.
pub const WALK_PAUSE: u64 = 100 * MILLISECOND;

// --- the balloon ---

/// Interval of the balloon's worker.
pub const BALLOON_TICK: u64 = 10 * MILLISECOND;
/// Messages that it sends in one tick, at most: 256 MiB take 256 messages, 0.64 s.
pub const BALLOON_MESSAGES: usize = 4;

/// Interval at which the mover checks whether the balloon is full for the first time.
pub const MOVER_LOOK: u64 = 10 * MILLISECOND;
/// Interval between two steps of the mover, once the balloon has been full.
pub const MOVER_TICK: u64 = MILLISECOND;
/// Batches that the mover moves in one step, at most.
pub const MOVER_BATCHES: usize = 8;

// --- background compaction ---

/// Interval of kcompactd.
pub const KCOMPACTD_TICK: u64 = 20 * MILLISECOND;
/// Blocks that it empties in one tick, at most.
pub const KCOMPACTD_BLOCKS: usize = 4;

/// Watermarks of the guest: 8, 10 and 12 MiB of 4 GiB.
pub fn watermarks(params: &Params) -> Watermarks {
    let scaled = |at_reference: u64| {
        let frames = at_reference as u128 * params.memory_frames() as u128;
        (frames * params.watermark_scale as u128 / (REFERENCE_FRAMES as u128 * 1000)) as u64
    };
    Watermarks {
        min: scaled(2048),
        low: scaled(2560),
        high: scaled(3072),
    }
}

/// The watermarks at rest: min falls to [`RESTED_MIN`], the distances between them stay.
pub fn rested_watermarks(params: &Params) -> Watermarks {
    let loaded = watermarks(params);
    let min = RESTED_MIN.min(loaded.min);
    Watermarks {
        min,
        low: min + (loaded.low - loaded.min),
        high: min + (loaded.high - loaded.min),
    }
}

/// The policies of a column: settings of the same system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ColumnPolicy {
    /// Whether the balloon's frames can be moved.
    pub balloon_movable: bool,
    /// What an unmovable or reclaimable request does when no block of its own has room.
    pub fallback: Fallback,
    /// From which blocks movable requests are served.
    pub placement: Placement,
    /// Where the balloon takes its frames.
    pub inflate: BalloonPlacement,
    /// Whether the balloon first deflates the frames whose return heals a block; otherwise the newest ones.
    pub heal: bool,
    /// Frames that one exchange moves, at most.
    pub exchange_batch: usize,
    /// Whole free blocks kept from movable order-0 requests. Background compaction begins below this number.
    pub reserve_low: u32,
    /// Background compaction goes on up to this number of whole free blocks.
    pub reserve_high: u32,
    /// Whether the balloon deflates before a request of the guest fails.
    pub deflate_on_oom: bool,
    /// Whether compaction drops pages that reclaim would take next instead of moving them.
    pub drops_cold: bool,
}

/// Whole free blocks that `steered` keeps, at the reference size.
const STEERED_RESERVE: (u64, u64) = (4, 8);

impl ColumnPolicy {
    /// The policies of `column` in the run `params`.
    pub fn new(column: Column, params: &Params) -> Self {
        let off = Self {
            balloon_movable: true,
            fallback: Fallback::Steal,
            placement: Placement::LowestFirst,
            inflate: BalloonPlacement::Ordinary,
            heal: false,
            exchange_batch: 1,
            reserve_low: 0,
            reserve_high: 0,
            deflate_on_oom: params.deflate_on_oom,
            drops_cold: false,
        };
        match column {
            Column::Pinned => Self {
                balloon_movable: false,
                inflate: BalloonPlacement::Unmovable,
                ..off
            },
            Column::Movable => off,
            // All sizes are those of the full guest, in `smaller` too.
            Column::Steered | Column::Smaller => {
                let scaled = |blocks: u64| {
                    (blocks * params.memory_frames())
                        .div_ceil(REFERENCE_FRAMES)
                        .max(1) as u32
                };
                let full = Self {
                    balloon_movable: true,
                    fallback: Fallback::Evacuate,
                    placement: Placement::FullestFirst,
                    inflate: match params.inflate {
                        InflatePlacement::FillHoles => BalloonPlacement::FillHoles,
                        InflatePlacement::WholeBlocks => BalloonPlacement::WholeBlocks,
                    },
                    heal: true,
                    exchange_batch: 256,
                    reserve_low: scaled(STEERED_RESERVE.0),
                    reserve_high: scaled(STEERED_RESERVE.1),
                    deflate_on_oom: off.deflate_on_oom,
                    drops_cold: true,
                };
                params.without.iter().fold(full, Self::without)
            }
        }
    }

    /// The same without one of the features, which is then as in column `movable`.
    fn without(self, feature: &Feature) -> Self {
        match feature {
            Feature::Joint => Self {
                drops_cold: false,
                ..self
            },
            Feature::Placement => Self {
                placement: Placement::LowestFirst,
                inflate: BalloonPlacement::Ordinary,
                ..self
            },
            Feature::Reserve => Self {
                reserve_low: 0,
                reserve_high: 0,
                ..self
            },
        }
    }

    /// The policies under their names in the report.
    pub fn report(&self) -> Policy {
        let name = |text: &str| alloc::string::String::from(text);
        Policy {
            balloon_movable: self.balloon_movable,
            fallback: name(match self.fallback {
                Fallback::Steal => "steal",
                Fallback::Evacuate => "evacuate",
            }),
            placement: name(match self.placement {
                Placement::LowestFirst => "lowest-first",
                Placement::FullestFirst => "fullest-first",
            }),
            inflate: name(match self.inflate {
                BalloonPlacement::Ordinary => "ordinary",
                BalloonPlacement::Unmovable => "unmovable",
                BalloonPlacement::FillHoles => "fill-holes",
                BalloonPlacement::WholeBlocks => "whole-blocks",
            }),
            deflate: name(if self.heal { "heal" } else { "newest-first" }),
            exchange_batch: self.exchange_batch as u64,
            reserve_blocks: u64::from(self.reserve_low),
            drops_cold: self.drops_cold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Profile;

    #[test]
    fn pinned_and_movable_differ_in_the_balloons_mobility_alone() {
        let of = |column| ColumnPolicy::new(column, &Params::new(Profile::Paper));
        let (pinned, movable) = (of(Column::Pinned), of(Column::Movable));
        // The placement of the balloon's frames follows from whether they are movable.
        let made_movable = ColumnPolicy {
            balloon_movable: true,
            inflate: BalloonPlacement::Ordinary,
            ..pinned
        };
        assert_eq!(made_movable, movable);
        assert_ne!(pinned, movable);
    }

    #[test]
    fn steered_without_its_features_is_nearly_movable() {
        let full = Params::new(Profile::Paper);
        let of = |without: &[Feature]| {
            let without = without.to_vec();
            ColumnPolicy::new(
                Column::Steered,
                &Params {
                    without,
                    ..full.clone()
                },
            )
        };
        let steered = ColumnPolicy::new(Column::Steered, &full);
        let movable = ColumnPolicy::new(Column::Movable, &full);
        let left = ColumnPolicy {
            fallback: steered.fallback,
            heal: steered.heal,
            exchange_batch: steered.exchange_batch,
            ..movable
        };
        assert_eq!(of(&Feature::ALL), left);
        assert_eq!(of(&[]), steered);
        let joint = of(&[Feature::Joint]);
        assert!(!joint.drops_cold && joint.boot(&full, 1).cost.is_none());
        assert!(steered.boot(&full, 1).cost.is_some());
        let other = Params {
            without: Feature::ALL.to_vec(),
            ..full.clone()
        };
        assert_eq!(ColumnPolicy::new(Column::Movable, &other), movable);
    }

    #[test]
    fn smaller_is_steered_in_another_guest() {
        let params = Params::new(Profile::Paper);
        let of = |column| ColumnPolicy::new(column, &params);
        assert_eq!(of(Column::Smaller), of(Column::Steered));
    }

    #[test]
    fn watermarks_of_the_reference_guest() {
        let params = Params::new(Profile::Paper);
        let Watermarks { min, low, high } = watermarks(&params);
        assert_eq!((min, low, high), (2048, 2560, 3072));
        let Watermarks { min, low, high } = rested_watermarks(&params);
        assert_eq!((min, low, high), (256, 768, 1280));
        let fourfold = Params {
            watermark_scale: 4000,
            ..params
        };
        assert_eq!(watermarks(&fourfold).min, 8192);
    }
}
