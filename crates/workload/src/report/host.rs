//! What the machine measured on the host.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{Spread, Tenths};

/// What was measured on the host: not a function of the seed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct HostReport {
    /// The host itself.
    pub facts: HostFacts,
    /// Wall-clock time of the command, all columns together, in milliseconds.
    pub wall_ms: u64,
    /// Each column's own measurements, in the order of `columns`.
    pub columns: Vec<ColumnHost>,
}

/// The host itself.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct HostFacts {
    /// Operating system and kernel release.
    pub kernel: String,
    /// CPUs that the process may use.
    pub cpus: u64,
    /// Whether the host's kernel has `process_madvise` with `MADV_DONTNEED`.
    pub process_madvise: bool,
}

/// What was measured on the host while one column ran.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ColumnHost {
    /// The column.
    pub name: String,
    /// Wall-clock time of the column in milliseconds.
    pub wall_ms: u64,
    /// CPU time in user mode in milliseconds.
    pub user_ms: u64,
    /// CPU time in the kernel in milliseconds.
    pub system_ms: u64,
    /// Host calls that discarded memory.
    pub discard_calls: u64,
    /// Memory resident on the host around the balloon's largest size.
    pub residency: Residency,
    /// Host time of one attempt, for each pass.
    pub attempts: Vec<AttemptHost>,
}

/// Guest memory resident on the host, by `mincore`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Residency {
    /// Resident with the balloon empty and every guest frame touched.
    pub empty_balloon_mib: Tenths,
    /// Resident with the balloon at its fullest.
    pub full_balloon_mib: Tenths,
    /// What the balloon held at that moment.
    pub balloon_mib: Tenths,
}

/// Host time of the attempts of one pass.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AttemptHost {
    /// The pass.
    pub pass: String,
    /// Nanoseconds of the host's clock.
    pub ns: Spread,
}
