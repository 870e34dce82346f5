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
    /// Time between two looks while the host has frames of a piece of work, in nanoseconds: an answer may arrive before
    /// the daemon is notified. Default 1 ms.
    pub poll_ns: u64,
}

impl Default for KcompactdConfig {
    fn default() -> Self {
        Self {
            tick_ns: 20_000_000,
            blocks: 4,
            poll_ns: 1_000_000,
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
        self.mobility.poll_pending();
        if self.mobility.background_is_open() || self.mobility.wants_background() {
            let cpu = self.mobility.platform().cpu();
            self.mobility.background_step(cpu, self.config.blocks);
        }
        if self.mobility.background_is_open() {
            let latest = now.saturating_add(self.config.poll_ns);
            return Next::Event { latest };
        }
        Next::At(now.saturating_add(self.config.tick_ns))
    }
}
