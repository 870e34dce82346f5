//! Background reclaim as a daemon.

use dirigible_frames::Platform;
pub use dirigible_reclaim::KswapdConfig;
use dirigible_reclaim::Reclaimer;

use crate::daemon::{Daemon, Next};

/// Looks at a steady pace whether a zone is short of free memory, and reclaims a bounded piece at a time. It never waits:
/// what is being written is looked at again later.
pub struct Kswapd<'r, 'a, P: Platform>(dirigible_reclaim::Kswapd<'r, 'a, P>);

impl<'r, 'a, P: Platform> Kswapd<'r, 'a, P> {
    /// The daemon of `reclaimer`'s background reclaim.
    pub fn new(reclaimer: &'r Reclaimer<'a, P>, config: KswapdConfig) -> Self {
        Self(dirigible_reclaim::Kswapd::new(reclaimer, config))
    }

    /// Background reclaim as it stands.
    pub fn inner(&self) -> &dirigible_reclaim::Kswapd<'r, 'a, P> {
        &self.0
    }
}

impl<P: Platform> Daemon for Kswapd<'_, '_, P> {
    fn step(&mut self, now: u64) -> Next {
        Next::At(self.0.step(now))
    }
}
