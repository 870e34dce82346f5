//! What emptying blocks cost, beside the best choice.

use serde::{Deserialize, Serialize};

use super::TenThousandths;

/// Frames copied to empty blocks for huge pages, and what an oracle would have copied ([`Oracle`](crate::oracle::Oracle)).
/// All 0 where none was asked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct OracleReport {
    /// Blocks that compaction emptied, direct and background.
    pub blocks: u64,
    /// Frames with contents that were copied for it.
    pub copied: u64,
    /// Frames that had to be copied in as many blocks with the fewest such.
    pub oracle: u64,
    /// `copied / oracle`; 0 if the latter is 0.
    pub ratio: TenThousandths,
}

impl OracleReport {
    /// Of these sums.
    pub fn new(blocks: u64, copied: u64, oracle: u64) -> Self {
        Self {
            blocks,
            copied,
            oracle,
            ratio: TenThousandths::ratio(copied, oracle),
        }
    }

    /// What has come since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self::new(
            self.blocks - before.blocks,
            self.copied - before.copied,
            self.oracle - before.oracle,
        )
    }
}
