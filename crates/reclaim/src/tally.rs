//! What the tally word of a block says: how many of its frames are in each generation, and how many are dirty.

/// The tally of a block, as reclaim keeps it in
/// [`FrameAllocator::block_tally`](dirigible_frames::FrameAllocator::block_tally): for a cost function
/// (`Config::cost`).
///
/// A block is not filed anew with each change of its tally, but only when the clock hand has gone through it. A cost
/// function that uses the tally wants blocks filed by it: where it is set, somebody calls `FrameAllocator::refile_block`
/// for the blocks before their order is relied on.
///
/// | bits | what |
/// |---|---|
/// | 0 to 39 | frames in generations 1 to 4, ten bits each |
/// | 40 to 63 | dirty frames, signed |
///
/// It is only added to, so it is exact when nothing is under way. In between one field may show one too few and borrow
/// from the field above it for a moment: a hint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally(u64);

const FIELD: u32 = 10;
const FIELD_MASK: u64 = (1 << FIELD) - 1;
const DIRTY: u32 = 4 * FIELD;

impl Tally {
    /// The tally with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Frames in generation `generation`, 1 to 4; 0 for any other number.
    pub const fn generation(self, generation: u8) -> u32 {
        if generation == 0 || generation > 4 {
            return 0;
        }
        (self.0 >> (FIELD * (generation as u32 - 1)) & FIELD_MASK) as u32
    }

    /// Frames in all generations.
    pub const fn all(self) -> u32 {
        self.generation(1) + self.generation(2) + self.generation(3) + self.generation(4)
    }

    /// Dirty frames.
    pub const fn dirty(self) -> u32 {
        let dirty = self.0 as i64 >> DIRTY;
        // A frame may be counted clean before it is counted dirty.
        if dirty < 0 { 0 } else { dirty as u32 }
    }

    /// What is added for a frame that goes from generation `from` to `to`; 0 is none.
    pub(crate) const fn change(from: u8, to: u8) -> u64 {
        Self::one(to).wrapping_sub(Self::one(from))
    }

    /// What is added for a frame that becomes dirty, or clean.
    pub(crate) const fn dirtied(dirty: bool) -> u64 {
        if dirty {
            1 << DIRTY
        } else {
            (1u64 << DIRTY).wrapping_neg()
        }
    }

    const fn one(generation: u8) -> u64 {
        if generation == 0 || generation > 4 {
            return 0;
        }
        1 << (FIELD * (generation as u32 - 1))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn full_fields_keep_apart() {
        let mut bits = 0u64;
        for generation in 1..=4 {
            for _ in 0..512 {
                bits = bits.wrapping_add(Tally::change(0, generation));
            }
        }
        for _ in 0..512 {
            bits = bits.wrapping_add(Tally::dirtied(true));
        }
        let tally = Tally::from_bits(bits);
        assert!((1..=4).all(|generation| tally.generation(generation) == 512));
        assert_eq!((tally.all(), tally.dirty()), (2048, 512));
        assert_eq!((tally.generation(0), tally.generation(5)), (0, 0));
    }

    #[test]
    fn changes_in_any_order_end_at_the_same_tally() {
        // The frame is counted out of 1 before it was counted in.
        let late = Tally::change(1, 4);
        assert_eq!(Tally::from_bits(late).generation(4), 0, "borrowed from");
        let both = late.wrapping_add(Tally::change(0, 1));
        assert_eq!(both, Tally::change(0, 4));
        assert_eq!(Tally::from_bits(both).generation(4), 1);
    }

    #[test]
    fn too_few_dirty_frames_touch_no_generation() {
        let bits = Tally::change(0, 4).wrapping_add(Tally::dirtied(false));
        let tally = Tally::from_bits(bits);
        assert_eq!((tally.generation(4), tally.dirty()), (1, 0));
    }
}
