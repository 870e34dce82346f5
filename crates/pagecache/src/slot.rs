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
    /// Nothing: it cannot be read.
    pub const UNREADABLE: Self = Self(1);

    /// Nothing: the last read of it failed, and may do better when it is tried again, alone; `attempts` have failed alone
    /// so far.
    pub const fn failed(attempts: u8) -> Self {
        Self(2 + attempts as u32)
    }

    /// The attempts, if the last read failed and may do better.
    pub const fn attempts(self) -> Option<u8> {
        match self.0 {
            2..=257 => Some((self.0 - 2) as u8),
            _ => None,
        }
    }

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
            assert_eq!(slot.attempts(), None);
        }
        assert_eq!(Slot::present(Pfn::new(1 << 28)), None);
        for bits in [0, 1, 2, (1 << 30) - 1, 1 << 29] {
            let slot = Slot::shadow(Stamp::from_bits(bits));
            assert_eq!(slot.stamp().map(Stamp::bits), Some(bits));
            assert_eq!(slot.frame(), None);
        }
        for slot in [Slot::ABSENT, Slot::UNREADABLE] {
            assert_eq!((slot.frame(), slot.stamp()), (None, None));
            assert_eq!(slot.attempts(), None);
        }
        for attempts in [0, 1, 255] {
            let slot = Slot::failed(attempts);
            assert_eq!((slot.frame(), slot.stamp()), (None, None));
            assert_eq!(slot.attempts(), Some(attempts));
        }
    }
}
