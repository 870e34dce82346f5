//! Background compaction as a daemon.

use dirigible_frames::Platform;
use dirigible_mobility::Mobility;

use crate::daemon::{Daemon, Next};

/// How often background compaction looks, and how much it does at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KcompactdConfig {
    /// Time between two looks, in nanoseconds. Default 20 ms.
    pub tick_ns: u64,
    /// Blocks that it empties at most in one look. Default 4.
    pub blocks: usize,
}

impl Default for KcompactdConfig {
    fn default() -> Self {
        Self {
            tick_ns: 20_000_000,
            blocks: 4,
        }
    }
}

/// Looks at a steady pace whether background compaction has work, and lets it do a bounded piece.
pub struct Kcompactd<'m, 'a, P: Platform> {
    mobility: &'m Mobility<'a, P>,
    config: KcompactdConfig,
}

impl<'m, 'a, P: Platform> Kcompactd<'m, 'a, P> {
    /// The daemon of `mobility`'s background compaction.
    pub fn new(mobility: &'m Mobility<'a, P>, config: KcompactdConfig) -> Self {
        Self { mobility, config }
    }
}

impl<P: Platform> Daemon for Kcompactd<'_, '_, P> {
    fn step(&mut self, now: u64) -> Next {
        if self.mobility.wants_background() {
            let cpu = self.mobility.platform().cpu();
            self.mobility.compact_background(cpu, self.config.blocks);
        }
        Next::At(now.saturating_add(self.config.tick_ns))
    }
}
