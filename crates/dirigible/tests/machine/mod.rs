//! A machine with one processor, whose clock stands still.

use dirigible_frames::{CpuId, Platform};

pub struct Machine;

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CpuId::new(0)
    }
    fn now(&self) -> u64 {
        0
    }
    fn relax(&self) {}
}
