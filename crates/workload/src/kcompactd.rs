//! The actor of background compaction.

use dirigible_frames::Platform;
use dirigible_mobility::Mobility;

use crate::tuning::{KCOMPACTD_BLOCKS, KCOMPACTD_TICK};
use dirigible::schedule::{Actor, Next};

/// At a steady pace takes the ends of late moves, and lets background compaction do a bounded piece of work if it has
/// any.
pub struct Kcompactd<'k, 'a, P: Platform> {
    mobility: &'k Mobility<'a, P>,
}

impl<'k, 'a, P: Platform> Kcompactd<'k, 'a, P> {
    /// The actor of `mobility`'s background compaction.
    pub fn new(mobility: &'k Mobility<'a, P>) -> Self {
        Self { mobility }
    }
}

impl<P: Platform> Actor for Kcompactd<'_, '_, P> {
    fn step(&mut self, now: u64) -> Next {
        self.mobility.drain_settled();
        if self.mobility.wants_background() {
            let cpu = self.mobility.platform().cpu();
            self.mobility.compact_background(cpu, KCOMPACTD_BLOCKS);
        }
        Next::At(now + KCOMPACTD_TICK)
    }
}
