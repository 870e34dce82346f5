//! The ledger: one atomic word for each pageblock.

use bitfield_struct::bitfield;

use crate::{FRAMES_PER_BLOCK, FrameClass, Migratetype};

/// The bits of a version.
#[cfg(test)]
const VERSION_MASK: u32 = (1 << 17) - 1;
/// The shift of the version.
const VERSION_SHIFT: u32 = 47;

/// What may be done with a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum BlockState {
    /// Frames are taken from it and freed into it.
    Open = 0,
    /// Frames are freed into it; none is taken. Somebody is emptying it.
    Isolated = 1,
    /// One allocation holds all of it.
    Huge = 2,
    /// Wholly free, and kept by a CPU for its next huge page. It counts as free; isolation, and a request that finds no
    /// whole block elsewhere, make the CPU give it back.
    Spare = 3,
}

impl BlockState {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Open,
            1 => Self::Isolated,
            3 => Self::Spare,
            // The others are not in use yet: nothing is taken from such a block.
            _ => Self::Huge,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// Whether compaction failed to empty a block, and why it leaves the block alone for a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// No attempt has failed.
    None = 0,
    /// A frame was between two owners, or an answer was late: worth another try soon.
    Momentary = 1,
    /// An owner does not give a frame up: not worth a try before something changes.
    Lasting = 2,
    /// The time of a refusal is over: worth a try, but after blocks without a refusal.
    Expired = 3,
}

impl Refusal {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::None,
            1 => Self::Momentary,
            2 => Self::Lasting,
            _ => Self::Expired,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// A value of the ledger word. The four counts always sum to 512.
///
/// Reserved frames, holes and pinned frames count as unmovable; cached and isolated frames keep their class. The
/// version counts the changes of the word (it wraps after 131,072).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ledger {
    /// Frames that can be taken.
    #[bits(10)]
    pub free: u16,
    /// Frames with contents that can be moved.
    #[bits(10)]
    pub movable: u16,
    /// Frames that a balloon holds and that can be moved.
    #[bits(10)]
    pub balloon: u16,
    /// All others.
    #[bits(10)]
    pub unmovable: u16,
    #[bits(2)]
    pub(crate) type_bits: u8,
    /// What may be done with the block.
    #[bits(3, from = BlockState::from_bits, into = BlockState::into_bits)]
    pub state: BlockState,
    /// Whether compaction leaves the block alone for a time; see
    /// [`refuse_block`](crate::FrameAllocator::refuse_block).
    #[bits(2, from = Refusal::from_bits, into = Refusal::into_bits)]
    pub refusal: Refusal,
    /// Changes with each change of the word.
    #[bits(17)]
    pub version: u32,
}

impl Ledger {
    /// Which requests the block serves.
    pub fn migratetype(self) -> Migratetype {
        Migratetype::from_bits(self.type_bits())
    }

    /// Frames that are not free.
    pub fn used(self) -> u16 {
        FRAMES_PER_BLOCK as u16 - self.free()
    }

    /// Whether it is open and wholly free: a free huge page.
    pub fn is_whole(self) -> bool {
        self.free() as usize == FRAMES_PER_BLOCK && self.state() == BlockState::Open
    }

    /// Whether it counts as a free huge page: wholly free, and open or kept by a CPU.
    pub(crate) fn counts_as_whole(self) -> bool {
        self.free() as usize == FRAMES_PER_BLOCK
            && matches!(self.state(), BlockState::Open | BlockState::Spare)
    }

    /// Frames of the block that count as free in its zone: none while it is isolated.
    pub fn available(self) -> i64 {
        match self.state() {
            BlockState::Open | BlockState::Spare => i64::from(self.free()),
            BlockState::Isolated | BlockState::Huge => 0,
        }
    }

    pub(crate) fn with_type(self, migratetype: Migratetype) -> Self {
        self.with_type_bits(migratetype as u8)
    }

    pub(crate) fn class_count(self, class: FrameClass) -> u16 {
        match class {
            FrameClass::Movable => self.movable(),
            FrameClass::Balloon => self.balloon(),
            FrameClass::Unmovable | FrameClass::Reclaimable => self.unmovable(),
        }
    }

    pub(crate) fn with_class_count(self, class: FrameClass, count: u16) -> Self {
        match class {
            FrameClass::Movable => self.with_movable(count),
            FrameClass::Balloon => self.with_balloon(count),
            FrameClass::Unmovable | FrameClass::Reclaimable => self.with_unmovable(count),
        }
    }

    /// The shift of the count of `class`.
    const fn shift(class: FrameClass) -> u32 {
        match class {
            FrameClass::Movable => 10,
            FrameClass::Balloon => 20,
            FrameClass::Unmovable | FrameClass::Reclaimable => 30,
        }
    }

    /// `count` frames go from free to `class`. There are as many free.
    #[inline]
    pub(crate) fn taken(self, class: FrameClass, count: u16) -> Self {
        debug_assert!(count <= self.free());
        let count = u64::from(count);
        Self::from_bits(self.into_bits() + (count << Self::shift(class)) - count)
    }

    /// `count` frames go from `class` to free; there are as many. A wholly free block has no refusal.
    #[inline]
    pub(crate) fn given(self, class: FrameClass, count: u16) -> Self {
        debug_assert!(count <= self.class_count(class));
        let count = u64::from(count);
        let ledger = Self::from_bits(self.into_bits() - (count << Self::shift(class)) + count);
        if ledger.free() as usize == FRAMES_PER_BLOCK {
            ledger.with_refusal(Refusal::None)
        } else {
            ledger
        }
    }

    /// `count` frames of class `from` count as `to`.
    pub(crate) fn recounted(self, from: FrameClass, to: FrameClass, count: u16) -> Self {
        let left = self.with_class_count(from, self.class_count(from) - count);
        left.with_class_count(to, left.class_count(to) + count)
    }

    /// The same with the next version.
    pub(crate) fn bumped(self) -> Self {
        // It is the highest field, so an overflow is lost.
        Self::from_bits(self.into_bits().wrapping_add(1 << VERSION_SHIFT))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_fields_keep_apart() {
        let full = Ledger::new()
            .with_free(512)
            .with_movable(512)
            .with_balloon(512)
            .with_unmovable(512)
            .with_type(Migratetype::Reclaimable)
            .with_state(BlockState::Huge)
            .with_refusal(Refusal::Lasting)
            .with_version(VERSION_MASK);
        assert_eq!(
            (
                full.free(),
                full.movable(),
                full.balloon(),
                full.unmovable()
            ),
            (512, 512, 512, 512)
        );
        assert_eq!(full.migratetype(), Migratetype::Reclaimable);
        assert_eq!(
            (full.state(), full.refusal(), full.version()),
            (BlockState::Huge, Refusal::Lasting, VERSION_MASK)
        );
        // One field at a time, nothing spills into another.
        let bits = |ledger: Ledger| ledger.into_bits();
        let fields = [
            bits(Ledger::new().with_free(1023)),
            bits(Ledger::new().with_movable(1023)),
            bits(Ledger::new().with_balloon(1023)),
            bits(Ledger::new().with_unmovable(1023)),
            bits(Ledger::new().with_type_bits(3)),
            bits(Ledger::from_bits(7 << 42)),
            bits(Ledger::from_bits(3 << 45)),
            bits(Ledger::new().with_version(VERSION_MASK)),
        ];
        assert_eq!(fields.iter().fold(0, |all, field| all ^ field), u64::MAX);
        assert_eq!(
            fields.iter().map(|field| field.count_ones()).sum::<u32>(),
            64
        );
    }

    #[test]
    fn counts_sum_to_a_block_whatever_is_taken_and_given() {
        let sum = |l: Ledger| l.free() + l.movable() + l.balloon() + l.unmovable();
        let mut ledger = Ledger::new().with_free(500).with_unmovable(12);
        for bits in 0..4 {
            let class = FrameClass::from_bits(bits);
            let before = ledger.class_count(class);
            ledger = ledger.taken(class, 60);
            assert_eq!((ledger.class_count(class), sum(ledger)), (before + 60, 512));
        }
        assert_eq!(
            (ledger.free(), ledger.unmovable(), ledger.used()),
            (260, 132, 252)
        );
        for bits in 0..4 {
            ledger = ledger.given(FrameClass::from_bits(bits), 60);
            assert_eq!(sum(ledger), 512);
        }
        assert_eq!((ledger.free(), ledger.unmovable()), (500, 12));
    }

    #[test]
    fn whole_means_open_and_free() {
        let ledger = Ledger::new().with_free(512);
        assert!(ledger.is_whole());
        assert!(!ledger.with_state(BlockState::Isolated).is_whole());
        assert!(!ledger.taken(FrameClass::Balloon, 1).is_whole());
        let spare = ledger.with_state(BlockState::Spare);
        assert!(!spare.is_whole() && spare.counts_as_whole());
        assert_eq!((spare.available(), ledger.available()), (512, 512));
        let isolated = ledger.with_state(BlockState::Isolated);
        assert_eq!(
            (isolated.available(), isolated.counts_as_whole()),
            (0, false)
        );
    }

    #[test]
    fn a_refusal_outlasts_comings_and_goings() {
        let refused = Ledger::new()
            .with_free(500)
            .with_movable(12)
            .with_refusal(Refusal::Lasting);
        let pinned = refused.recounted(FrameClass::Movable, FrameClass::Unmovable, 2);
        assert_eq!((pinned.movable(), pinned.unmovable()), (10, 2));
        for ledger in [
            refused,
            refused.taken(FrameClass::Movable, 1),
            refused.given(FrameClass::Movable, 1),
            pinned,
        ] {
            assert_eq!(ledger.bumped().refusal(), Refusal::Lasting, "{ledger:?}");
        }
        // A wholly free block has no refusal.
        let free = refused.given(FrameClass::Movable, 12);
        assert_eq!(free.refusal(), Refusal::None);
        let same = refused.recounted(FrameClass::Reclaimable, FrameClass::Unmovable, 0);
        assert_eq!((same.unmovable(), same.movable()), (0, 12));
    }

    #[test]
    fn the_version_moves_and_wraps() {
        let ledger = Ledger::new().with_free(512);
        assert_eq!(ledger.bumped().version(), 1);
        let last = ledger.with_version(VERSION_MASK).bumped();
        assert_eq!((last.version(), last.free()), (0, 512));
    }
}
