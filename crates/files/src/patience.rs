//! Trying again when memory is short: for what must be done, as the giving back of blocks, and could be done later.

use dirigible_frames::Platform;

use crate::error::Error;

/// Nanoseconds from the first attempt to the second; then twice as long each time.
const FIRST_NAP: u64 = 10_000_000;
/// The longest time between two attempts, in nanoseconds.
const LONGEST_NAP: u64 = 1_000_000_000;
/// Nanoseconds after which it is given up, and blocks are lost: ten minutes. Somebody may hold all memory for minutes, as
/// the operator's attempts at huge pages do.
const LIMIT: u64 = 600_000_000_000;

/// How long one operation waits for memory in all.
pub(crate) struct Patience<'a, P> {
    platform: &'a P,
    /// When it ends; it begins with the first attempt that fails.
    until: Option<u64>,
    /// How long it sleeps next.
    nap: u64,
}

impl<'a, P: Platform> Patience<'a, P> {
    pub fn new(platform: &'a P) -> Self {
        Self {
            platform,
            until: None,
            nap: FIRST_NAP,
        }
    }

    /// Whether what failed for `error` is to be tried again. Sleeps a while first: the caller holds no lock that others
    /// spin on, and no lock of a bitmap.
    pub fn again(&mut self, error: Error) -> bool {
        if error != Error::NoMemory {
            return false;
        }
        let now = self.platform.now();
        if now >= *self.until.get_or_insert(now.saturating_add(LIMIT)) {
            return false;
        }
        let next = now.saturating_add(self.nap);
        self.nap = (self.nap * 2).min(LONGEST_NAP);
        self.platform.sleep_until(next);
        // At the end of a run sleepers are woken early: an attempt costs others too much to be made at each look.
        while self.platform.now() < next {
            self.platform.relax();
        }
        true
    }

    /// What `attempt` gives, which has changed nothing if there was no memory for it: it is made again then.
    pub fn insist<R>(&mut self, mut attempt: impl FnMut() -> Result<R, Error>) -> Result<R, Error> {
        loop {
            match attempt() {
                Err(error) if self.again(error) => {}
                result => return result,
            }
        }
    }
}
