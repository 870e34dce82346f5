//! The clock of evictions, by which contents that come back are judged.

use dirigible_frames::sync::{AtomicU32, Ordering};

/// When a frame was reclaimed, on the clock of evictions; 30 bits, wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp(u32);

impl Stamp {
    const MASK: u32 = (1 << 30) - 1;

    /// The 30 bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The stamp with these bits; the lowest 30 count.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::MASK)
    }

    /// How many frames were reclaimed from `earlier` until this moment.
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0) & Self::MASK
    }
}

/// Counts evictions.
#[derive(Debug, Default)]
pub(crate) struct EvictionClock(AtomicU32);

impl EvictionClock {
    pub fn now(&self) -> Stamp {
        // Relaxed, here and below: a number on its own.
        Stamp::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub fn advance(&self, evictions: u32) {
        // It wraps at 2^32, a multiple of 2^30.
        self.0.fetch_add(evictions, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn distances_go_over_the_wrap() {
        let late = Stamp::from_bits((1 << 30) - 2);
        assert_eq!(Stamp::from_bits(5).since(late), 7);
        assert_eq!(Stamp::from_bits(1 << 30), Stamp::default());
        let clock = EvictionClock::default();
        clock.advance(u32::MAX);
        assert_eq!(clock.now().bits(), (1 << 30) - 1);
        clock.advance(2);
        assert_eq!(clock.now().bits(), 1);
    }
}
