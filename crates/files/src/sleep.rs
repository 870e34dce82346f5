//! A lock that is waited for by letting others run, for operations that wait for pages while they hold it.

use dirigible_frames::{
    Platform,
    sync::{AtomicBool, Ordering},
};

/// The lock.
pub(crate) struct SleepLock(AtomicBool);

/// Held until dropped.
pub(crate) struct Sleeping<'a>(&'a AtomicBool);

impl SleepLock {
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Waits for the lock. The caller holds no lock that others spin on.
    pub fn lock(&self, platform: &impl Platform) -> Sleeping<'_> {
        // Acquire: pairs with the release of the holder before.
        let take = || {
            let (free, held) = (Ordering::Acquire, Ordering::Relaxed);
            self.0.compare_exchange(false, true, free, held)
        };
        while take().is_err() {
            platform.relax();
        }
        Sleeping(&self.0)
    }
}

impl Drop for Sleeping<'_> {
    fn drop(&mut self) {
        // Release: pairs with the acquire of the next holder.
        self.0.store(false, Ordering::Release);
    }
}
