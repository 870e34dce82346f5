//! What the tally word of a block says: how many of its frames are in each generation, and how many are dirty.

use crate::generations::generation;

/// The tally of a block, as reclaim keeps it in
/// [`FrameAllocator::block_tally`](dirigible_frames::FrameAllocator::block_tally): for a cost function
/// (`Config::cost`).
///
/// Which generation is the oldest is the epoch of all tallies
/// ([`tally_epoch`](dirigible_frames::FrameAllocator::tally_epoch)): the low bits of the oldest sequence. A block is not filed
/// anew with each change of its tally or of the epoch, but when the clock hand has gone through it, when its ledger
/// changes, and when compaction looks at it.
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

    /// Frames in the two oldest generations, where `epoch` says which is the oldest.
    pub const fn old(self, epoch: u32) -> u32 {
        self.generation(generation(epoch)) + self.generation(generation(epoch.wrapping_add(1)))
    }

    /// Frames that reclaim would take next: those of the two oldest generations but the dirty ones. An estimate: of what
    /// age these are the tally does not say, so they are taken to be as old as all.
    pub const fn droppable(self, epoch: u32) -> u32 {
        match self.all() {
            0 => 0,
            all => self.old(epoch) * all.saturating_sub(self.dirty()) / all,
        }
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
    fn what_is_old_turns_with_the_epoch() {
        let mut bits = 0u64;
        for (generation, frames) in [(1, 100), (2, 40), (3, 20), (4, 10)] {
            bits = bits.wrapping_add(Tally::change(0, generation) * frames);
        }
        let tally = Tally::from_bits(bits);
        // In epoch 0 generation 1 is the oldest.
        assert_eq!(
            [0, 1, 2, 3].map(|epoch| tally.old(epoch)),
            [140, 60, 30, 110]
        );
        assert_eq!(tally.old(4), tally.old(0));
        assert_eq!(tally.droppable(0), 140);
        let dirty = Tally::from_bits(bits.wrapping_add(17 * Tally::dirtied(true)));
        assert_eq!(dirty.droppable(0), 126, "one in ten is dirty");
        assert_eq!(Tally::default().droppable(0), 0);
    }

    #[test]
    fn too_few_dirty_frames_touch_no_generation() {
        let bits = Tally::change(0, 4).wrapping_add(Tally::dirtied(false));
        let tally = Tally::from_bits(bits);
        assert_eq!((tally.generation(4), tally.dirty()), (1, 0));
    }
}
