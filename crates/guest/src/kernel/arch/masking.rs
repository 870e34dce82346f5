//! Masking the calling CPU's interrupts, for the frame allocator: handlers may then allocate and free.

use dirigible_frames::Interrupts;
use x86_64::instructions::interrupts as flag;

/// By the interrupt flag.
#[derive(Debug)]
pub struct Masking;

impl Interrupts for Masking {
    #[inline]
    fn mask(&self) -> bool {
        // An interrupt between the two leaves the flag as it was.
        let before = flag::are_enabled();
        flag::disable();
        before
    }

    #[inline]
    fn restore(&self, before: bool) {
        // In a handler, and inside of another masking, they stay off.
        if before {
            flag::enable();
        }
    }
}
