//! What the table of blocks says of one.

use dirigible_frames::Pfn;
use dirigible_reclaim::Stamp;

/// One block's entry: a frame, the stamp of the frame that reclaim took, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot(u32);

impl Slot {
    const PRESENT: u32 = 1 << 31;
    const SHADOW: u32 = 1 << 30;
    const FRAME: u32 = (1 << 28) - 1;

    /// Nothing.
    pub const ABSENT: Self = Self(0);
    /// Nothing: the last read of it failed, in one request with others.
    pub const FAILED: Self = Self(1);
    /// Nothing: the last read of it failed, alone.
    pub const FAILED_ALONE: Self = Self(2);

    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u32 {
        self.0
    }

    /// In `frame`; `None` if its number has more than 28 bits.
    pub const fn present(frame: Pfn) -> Option<Self> {
        if frame.get() > Self::FRAME as u64 {
            return None;
        }
        Some(Self(Self::PRESENT | frame.get() as u32))
    }

    /// Reclaim took its frame at `stamp`.
    pub const fn shadow(stamp: Stamp) -> Self {
        Self(Self::SHADOW | stamp.bits())
    }

    pub const fn frame(self) -> Option<Pfn> {
        if self.0 & Self::PRESENT == 0 {
            return None;
        }
        Some(Pfn::new((self.0 & Self::FRAME) as u64))
    }

    pub const fn stamp(self) -> Option<Stamp> {
        if self.0 & (Self::PRESENT | Self::SHADOW) != Self::SHADOW {
            return None;
        }
        Some(Stamp::from_bits(self.0))
    }

    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_one_of_its_kinds() {
        for number in [0, 1, 2, 77, (1 << 28) - 1] {
            let slot = Slot::present(Pfn::new(number)).unwrap();
            assert_eq!((slot.frame(), slot.stamp()), (Some(Pfn::new(number)), None));
        }
        assert_eq!(Slot::present(Pfn::new(1 << 28)), None);
        for bits in [0, 1, 2, (1 << 30) - 1, 1 << 29] {
            let slot = Slot::shadow(Stamp::from_bits(bits));
            assert_eq!(slot.stamp().map(Stamp::bits), Some(bits));
            assert_eq!(slot.frame(), None);
        }
        for slot in [Slot::ABSENT, Slot::FAILED, Slot::FAILED_ALONE] {
            assert_eq!((slot.frame(), slot.stamp()), (None, None));
        }
    }
}
