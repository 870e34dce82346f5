//! What the load did.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// What the load did over the run.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct LoadReport {
    /// Times that a program had to wait for memory.
    pub waits: u64,
    /// Time that programs spent waiting, together, in milliseconds of the guest's clock.
    pub waited_ms: u64,
    /// Files compiled in each phase under load, in the order of the phases.
    pub compiled: Vec<Compiled>,
}

/// What was compiled in one phase.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Compiled {
    /// `warm-up`, `pass1`, `gap`, …
    pub phase: String,
    /// Files.
    pub files: u64,
    /// Length of the phase in milliseconds of the guest's clock.
    pub ms: u64,
}

impl LoadReport {
    /// Files compiled, and the milliseconds that took, in all phases under load.
    pub fn compiled_in_all(&self) -> (u64, u64) {
        let add = |(files, ms), phase: &Compiled| (files + phase.files, ms + phase.ms);
        self.compiled.iter().fold((0, 0), add)
    }
}
