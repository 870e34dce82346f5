//! What emptying blocks cost, beside the best choice.

use serde::{Deserialize, Serialize};

use super::TenThousandths;

/// Frames moved to empty blocks for huge pages, and what an oracle would have moved ([`Oracle`](crate::oracle::Oracle)).
/// All 0 where none was asked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct OracleReport {
    /// Blocks that compaction emptied, direct and background.
    pub blocks: u64,
    /// Frames that were moved for it, a balloon's among them.
    pub moved: u64,
    /// Frames that had to be moved in as many blocks with the fewest such.
    pub oracle: u64,
    /// `moved / oracle`; 0 if the latter is 0.
    pub ratio: TenThousandths,
}

impl OracleReport {
    /// Of these sums.
    pub fn new(blocks: u64, moved: u64, oracle: u64) -> Self {
        Self {
            blocks,
            moved,
            oracle,
            ratio: TenThousandths::ratio(moved, oracle),
        }
    }

    /// What has come since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self::new(
            self.blocks - before.blocks,
            self.moved - before.moved,
            self.oracle - before.oracle,
        )
    }
}
