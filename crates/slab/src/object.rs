//! Handles of objects.

use core::{fmt, num::NonZeroU64};

use dirigible_frames::Pfn;

/// log2 of the most objects that a slab can have.
const SLOT_BITS: u32 = 6;
/// The most objects that a slab can have: the bits of its frame's owner word.
pub(crate) const MAX_SLOTS: usize = 1 << SLOT_BITS;

/// An object of a [`SlabCache`](crate::SlabCache): its frame and its slot.
///
/// Holding one proves nothing: the object may have been freed since.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Object(NonZeroU64);

impl Object {
    /// The object in `slot` of the slab in `frame`. Frame numbers are below 2^57, so that the number fits.
    pub(crate) fn new(frame: Pfn, slot: usize) -> Self {
        debug_assert!(slot < MAX_SLOTS);
        let place = frame.get() << SLOT_BITS | slot as u64;
        Self(NonZeroU64::MIN.saturating_add(place))
    }

    /// The handle as a number, never 0.
    pub const fn bits(self) -> u64 {
        self.0.get()
    }

    /// The handle with these bits; `None` for 0. The bits came from [`bits`](Self::bits).
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match NonZeroU64::new(bits) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }

    /// The frame that it lies in.
    pub const fn frame(self) -> Pfn {
        Pfn::new((self.0.get() - 1) >> SLOT_BITS)
    }

    /// Its place in the frame.
    pub(crate) const fn slot(self) -> usize {
        ((self.0.get() - 1) & (MAX_SLOTS as u64 - 1)) as usize
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object:{}.{}", self.frame(), self.slot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_never_zero_and_comes_back_from_its_bits() {
        for frame in [0, 1, 77, 1 << 40] {
            for slot in [0, 1, 63] {
                let object = Object::new(Pfn::new(frame), slot);
                assert_ne!(object.bits(), 0);
                let back = Object::from_bits(object.bits()).unwrap();
                assert_eq!((back.frame().get(), back.slot()), (frame, slot));
            }
        }
        assert_eq!(Object::from_bits(0), None);
        assert_eq!(size_of::<Option<Object>>(), 8);
    }
}
