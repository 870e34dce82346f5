//! Deadlines of tests that run for a time.

use dirigible_frames::Platform;

use crate::kernel::platform::GuestPlatform;

/// A millisecond, in the unit of [`Platform::now`].
pub(super) const MILLISECOND: u64 = 1_000_000;

/// Whether `deadline` has passed, by the machine's clock.
pub(super) fn is_over(platform: &GuestPlatform, deadline: u64) -> bool {
    platform.now() >= deadline
}
