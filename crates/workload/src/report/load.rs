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
    /// Programs that gave up after a failure of a request, by program and failure. Those that were killed are not among
    /// them.
    pub failures: Vec<ProgramFailure>,
    /// Files compiled in each phase under load, in the order of the phases.
    pub compiled: Vec<Compiled>,
}

/// Programs of one kind that gave up for one reason.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ProgramFailure {
    /// `copy`, `compile`, …
    pub program: String,
    /// The failure in words.
    pub failure: String,
    /// How many.
    pub times: u64,
}

/// What went wrong at the disk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DiskReport {
    /// Blocks that could not be read, each time counted.
    pub read_errors: u64,
    /// Blocks that could not be written, each time counted.
    pub write_errors: u64,
    /// Frames that are lost, because a device that cannot be stopped may still use them.
    pub abandoned_frames: u64,
    /// Blocks of the store that a failed operation could not give back.
    pub lost_blocks: u64,
    /// Inodes of the store that a failed operation could not give back.
    pub lost_inodes: u64,
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
