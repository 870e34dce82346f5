//! How long allocations waited.

use serde::{Deserialize, Serialize};

/// Requests that their first attempt did not serve, from the end of that attempt to the end of the request, on the
/// guest's clock.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct StallReport {
    /// Requests for less than a huge page.
    pub base: StallFigures,
    /// Requests for huge pages: compaction is a part of their way.
    pub huge: StallFigures,
    /// Requests for one frame that failed although what compaction held aside would have served them. Anything but 0 is
    /// a fault of ours.
    pub min_failed: u64,
}

/// Figures of one kind of requests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct StallFigures {
    /// How many stalled.
    pub count: u64,
    /// How many of them failed.
    pub failed: u64,
    /// 999 of 1000 of them took no longer than this, rounded up by 3 % at most.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}
