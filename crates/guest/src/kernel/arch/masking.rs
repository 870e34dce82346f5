//! Masks the calling CPU's interrupts for the frame allocator, so that handlers may allocate and free.

use dirigible_frames::Interrupts;
use x86_64::instructions::interrupts as flag;

/// Masks interrupts by the interrupt flag.
#[derive(Debug)]
pub struct Masking;

impl Interrupts for Masking {
    #[inline]
    fn mask(&self) -> bool {
        // An interrupt between the two calls leaves the flag as it was.
        let before = flag::are_enabled();
        flag::disable();
        before
    }

    #[inline]
    fn restore(&self, before: bool) {
        // In a handler, or if they were masked before, interrupts stay off.
        if before {
            flag::enable();
        }
    }
}
