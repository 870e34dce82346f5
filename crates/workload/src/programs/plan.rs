//! The load in numbers.

use serde::{Deserialize, Serialize};

use crate::{
    params::{Params, Profile},
    tuning::{
        COMPILE_BUILD, COMPILE_HUGE, COMPILE_HUGE_PIECES, COMPILE_LARGE, COMPILE_PAUSE,
        COMPILE_PIECE, COMPILE_SMALL, COMPILE_STAY, PAPER_TREES, QUICK_PACE, QUICK_TREES,
        REFERENCE_FRAMES, STALL, TREE_COPIES, TREE_COPY_TIME, TREE_DIRECTORIES, TREE_HEADERS,
        TREE_IMAGE, TREE_INCLUDED, TREE_LINKED, TREE_SOURCES, WALK_PAUSE,
    },
};

/// What the programs of a run do, in numbers: times in nanoseconds, sizes in pages of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadPlan {
    /// The seed.
    pub seed: u64,
    /// Source trees, the primary one included. In each of them one directory is compiled at a time.
    pub trees: u32,
    /// Trees that are copied at the same time, at most.
    pub copies: u32,
    /// A source tree.
    pub tree: TreePlan,
    /// Compiles.
    pub compile: CompilePlan,
    /// Links.
    pub link: LinkPlan,
    /// From one directory that is listed to the next.
    pub walk_pause: u64,
    /// A request that found no memory, and a program that failed, is repeated after this time.
    pub stall: u64,
}

/// A source tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreePlan {
    /// Directories with sources.
    pub directories: u32,
    /// Sources in each of them.
    pub sources: u32,
    /// Headers, which all of them share.
    pub headers: u32,
    /// How many of the headers a directory includes.
    pub included: u32,
    /// The time in which the tree is unpacked or copied.
    pub copy: u64,
}

/// A compile of one directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompilePlan {
    /// Three of four grow to a size between these.
    pub small: (u64, u64),
    /// The others grow to a size between these.
    pub large: (u64, u64),
    /// Memory is mapped in pieces between these.
    pub piece: (u64, u64),
    /// From the first piece to the last.
    pub build: (u64, u64),
    /// From the last piece to the end.
    pub stay: (u64, u64),
    /// From the end of one to the beginning of the next in the same tree.
    pub pause: (u64, u64),
    /// One in this many advises huge pages.
    pub huge_programs: u64,
    /// Such a one does so for one piece in this many.
    pub huge_pieces: u64,
}

/// A link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkPlan {
    /// The directories whose objects it reads.
    pub units: u32,
    /// The memory that it uses.
    pub memory: (u64, u64),
    /// The pages of the file that it writes.
    pub image: u64,
    /// The time that it takes to read the objects.
    pub build: (u64, u64),
}

impl LoadPlan {
    /// The load for `params`.
    pub fn new(params: &Params) -> Self {
        let scaled = |count: u64| {
            let scale = params.memory_frames() as u128 * u128::from(params.load_scale);
            let reference = u128::from(REFERENCE_FRAMES) * 1000;
            ((u128::from(count) * scale + reference / 2) / reference) as u64
        };
        let (pace, trees) = match params.profile {
            Profile::Paper => (1, PAPER_TREES),
            Profile::Quick => (QUICK_PACE, QUICK_TREES),
        };
        let at_least = |frames: u64| scaled(frames).max(1);
        let size = |(low, high): (u64, u64)| (at_least(low), at_least(high));
        let time = |(low, high): (u64, u64)| (low / pace, high / pace);
        let (small, large) = (size(COMPILE_SMALL), size(COMPILE_LARGE));
        let (least, most) = COMPILE_PIECE;
        let piece = (
            least.min(at_least(most)),
            most.min(at_least(COMPILE_SMALL.0)),
        );
        let build = time(COMPILE_BUILD);
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        // Directories shrink with memory, as the memory of their compiles does; their number only when each is at its
        // smallest.
        let sources = scaled(TREE_SOURCES).max(2);
        let all_sources = scaled(TREE_SOURCES * TREE_DIRECTORIES);
        let directories = (all_sources / sources).clamp(4, TREE_DIRECTORIES);
        let headers = scaled(TREE_HEADERS).max(2);
        let half = |(low, high): (u64, u64)| ((low / 2).max(1), (high / 2).max(1));
        Self {
            seed: params.seed,
            trees,
            copies: TREE_COPIES,
            tree: TreePlan {
                directories: count(directories),
                sources: count(sources),
                headers: count(headers),
                included: count(scaled(TREE_INCLUDED).clamp(1, headers)),
                copy: TREE_COPY_TIME / pace,
            },
            compile: CompilePlan {
                small,
                large,
                piece,
                build,
                stay: time(COMPILE_STAY),
                pause: time(COMPILE_PAUSE),
                huge_programs: COMPILE_HUGE,
                huge_pieces: COMPILE_HUGE_PIECES,
            },
            link: LinkPlan {
                units: TREE_LINKED,
                memory: half(large),
                image: scaled(TREE_IMAGE).max(1),
                build,
            },
            walk_pause: WALK_PAUSE / pace,
            stall: STALL,
        }
    }

    /// The same with all times divided by `by`, but the one after which a request is repeated.
    pub fn hastened(mut self, by: u64) -> Self {
        let by = by.max(1);
        let compile = &mut self.compile;
        for (low, high) in [
            &mut compile.build,
            &mut compile.stay,
            &mut compile.pause,
            &mut self.link.build,
        ] {
            *low /= by;
            *high /= by;
        }
        self.tree.copy /= by;
        self.walk_pause /= by;
        self
    }

    /// Parts of a tree that are linked on their own.
    pub const fn parts(&self) -> u32 {
        self.tree.directories.div_ceil(self.units_in_part())
    }

    /// The directories of a part.
    pub const fn units_of(&self, part: u32) -> core::ops::Range<u32> {
        let first = part.saturating_mul(self.units_in_part());
        let end = first.saturating_add(self.units_in_part());
        let all = self.tree.directories;
        let end = if end < all { end } else { all };
        first..end
    }

    const fn units_in_part(&self) -> u32 {
        if self.link.units == 0 {
            1
        } else {
            self.link.units
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_scales_with_memory() {
        let params = Params::new(Profile::Paper);
        let large = LoadPlan::new(&params);
        let small = LoadPlan::new(&Params {
            memory: 256 << 20,
            ..params
        });
        assert_eq!(large.compile.small, (2048, 16384));
        assert_eq!(small.compile.small, (128, 1024));
        assert_eq!(large.compile.piece, (16, 256));
        assert_eq!(large.trees, 10);
    }
}
