//! Frame descriptors: a state word of 4 bytes and an owner's word of 8 for each frame, in tables of their own.

use bitfield_struct::bitfield;

use crate::{
    FrameClass, Order,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Where a frame is in its life: Free ⇄ Cached → Allocated → Entering → Listed → Isolated → Leaving → Allocated → Free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum FrameState {
    /// In its block's field.
    Free = 0,
    /// In a CPU's cache, or on its way from there to its field. Not stored: a frame whose word says *Free* and whose
    /// bit is clear is one of these.
    Cached = 1,
    /// Handed out; on no owner's books.
    Allocated = 2,
    /// Being given to the host: the inflate request is out.
    Entering = 3,
    /// On its owner's books, and may be isolated.
    Listed = 4,
    /// Off the books, to be moved or put back.
    Isolated = 5,
    /// Being taken back from the host: the deflate request is out.
    Leaving = 6,
    /// Never handed out, or no memory at all.
    Reserved = 7,
    /// Inside a larger allocation; its head has the state.
    Tail = 8,
}

impl FrameState {
    /// The state with number `bits`, the inverse of `as u8`: for those who keep states in words of their own. A number
    /// that is no state's gives `Reserved`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Free,
            1 => Self::Cached,
            2 => Self::Allocated,
            3 => Self::Entering,
            4 => Self::Listed,
            5 => Self::Isolated,
            6 => Self::Leaving,
            8 => Self::Tail,
            _ => Self::Reserved,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }

    /// Whether a frame's holder may take it from this state to `to`. The allocator's own edges (free, cached) are not
    /// among them.
    pub const fn may_become(self, to: Self) -> bool {
        use FrameState::{Allocated, Entering, Isolated, Leaving, Listed};
        matches!(
            (self, to),
            (Allocated, Entering | Listed | Isolated)
                | (Entering, Listed | Allocated | Isolated | Leaving)
                | (Listed, Isolated | Leaving | Allocated)
                | (Isolated, Listed | Leaving | Allocated | Entering)
                | (Leaving, Allocated | Listed)
        )
    }
}

/// The number of an owner, of somebody who can move frames. 0 is nobody ([`NONE`](Self::NONE)), owners have 1 to
/// [`MAX`](Self::MAX).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct OwnerId(u8);

impl OwnerId {
    /// No owner.
    pub const NONE: Self = Self(0);

    /// The largest number that a frame's state word has room for. Compaction looks owners up in a table of its own,
    /// which may be smaller: `dirigible-mobility` registers owners 1 to 15. Frames of an owner that is not registered
    /// are never moved.
    pub const MAX: u8 = 31;

    /// Owner number `number`, 1 to [`MAX`](Self::MAX); `None` for any other.
    pub const fn new(number: u8) -> Option<Self> {
        if number == 0 || number > Self::MAX {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number; 0 is nobody.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Marks on a frame, as a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct FrameFlags(u16);

impl FrameFlags {
    /// No mark.
    pub const EMPTY: Self = Self(0);
    /// Contents differ from what is on disk.
    pub const DIRTY: Self = Self(1);
    /// Used since the mark was last cleared.
    pub const REFERENCED: Self = Self(1 << 1);
    /// Must stay where it is for now: isolation refuses, the ledger counts it as unmovable, and it cannot be freed.
    pub const PINNED: Self = Self(1 << 2);
    /// Being written to disk.
    pub const WRITEBACK: Self = Self(1 << 3);
    /// Its owner moves, drops or reads in the contents: nobody gets a new reference.
    pub const LOCKED: Self = Self(1 << 4);
    /// To be freed as soon as it has been written.
    pub const RECLAIM: Self = Self(1 << 5);
    /// Used again since it was `REFERENCED`: reclaim makes it young instead of taking it.
    pub const ACTIVE: Self = Self(1 << 6);
    /// Belonged to the memory in use when it was reclaimed, and came back.
    pub const WORKINGSET: Self = Self(1 << 7);
    /// A device that cannot be stopped may still use it: it is neither moved nor freed any more.
    pub const ABANDONED: Self = Self(1 << 8);

    /// Marks that a frame has room for.
    pub const MASK: u16 = (1 << 9) - 1;

    /// The bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The set with these bits; the lowest nine count.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & Self::MASK)
    }

    /// Whether all marks of `other` are in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any mark of `other` is in this set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the marks of `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The most references that a frame can have beside its owner's.
pub(crate) const MAX_REFS: u8 = 31;

/// The state word of a frame.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(crate) struct Word {
    #[bits(4, from = FrameState::from_bits, into = FrameState::into_bits)]
    pub state: FrameState,
    #[bits(2)]
    pub class_bits: u8,
    #[bits(4)]
    pub order: u8,
    #[bits(3)]
    pub generation: u8,
    #[bits(9)]
    pub flags: u16,
    #[bits(5)]
    pub owner: u8,
    #[bits(5)]
    pub refcount: u8,
}

impl Word {
    /// The bits that must be as in [`owned`](Self::owned) for a frame to be freed: state, order, pin and references.
    const FREEABLE: u32 = Self::new()
        .with_state_bits(0xf)
        .with_order(0xf)
        .with_flags(FrameFlags::PINNED.bits())
        .with_refcount(MAX_REFS)
        .into_bits();

    const fn with_state_bits(self, bits: u32) -> Self {
        Self::from_bits(self.into_bits() & !0xf | bits)
    }

    /// An allocation of `order` that was just handed out.
    #[inline]
    pub const fn owned(class: FrameClass, order: Order) -> Self {
        Self::new()
            .with_state(FrameState::Allocated)
            .with_class_bits(class as u8)
            .with_order(order.get())
    }

    /// Whether it is an allocation of `order` that its holder may free.
    #[inline]
    pub const fn is_freeable(self, order: Order) -> bool {
        let free = Self::owned(FrameClass::Unmovable, order).into_bits();
        self.into_bits() & Self::FREEABLE == free & Self::FREEABLE
    }

    pub fn class(self) -> FrameClass {
        FrameClass::from_bits(self.class_bits())
    }

    pub fn with_class(self, class: FrameClass) -> Self {
        self.with_class_bits(class as u8)
    }

    pub fn is_pinned(self) -> bool {
        FrameFlags::from_bits(self.flags()).contains(FrameFlags::PINNED)
    }

    /// The class under which the ledger counts the frame: a pinned one is unmovable.
    pub fn counted_class(self) -> FrameClass {
        if self.is_pinned() {
            FrameClass::Unmovable
        } else {
            self.class()
        }
    }

    /// Whether somebody holds the allocation that the frame heads.
    pub fn is_held(self) -> bool {
        use FrameState::{Free, Reserved, Tail};
        !matches!(self.state(), Free | Reserved | Tail)
    }
}

/// What the allocator knows of one frame. The words of 16 frames share a cache line; that of a block's first frame,
/// which heads the block's huge page, lies with the block's ledger.
///
/// Orderings: a holder publishes a frame by a release store or CAS of `word` (Allocated → Listed); the one that takes
/// it by an acquiring CAS (Listed → Isolated, Leaving, Allocated) sees the owner word that was stored before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor<'m> {
    /// [`Word`].
    pub word: &'m AtomicU32,
    /// The owner's word: where the frame is mapped, or its slot in a balloon.
    pub owner: &'m AtomicU64,
}

impl Descriptor<'_> {
    #[inline]
    pub fn load(&self) -> Word {
        // Acquire: pairs with the release of the transition that made this state.
        Word::from_bits(self.word.load(Ordering::Acquire))
    }

    /// For a frame that nobody else may change: ours alone, or held under a lock.
    #[inline]
    pub fn store(&self, word: Word) {
        // Release: pairs with the acquire in `load` and `update`.
        self.word.store(word.into_bits(), Ordering::Release);
    }

    /// Changes the word by `change` in one atomic step. If `change` gives `None`, the word found is the error.
    #[inline]
    pub fn update(&self, mut change: impl FnMut(Word) -> Option<Word>) -> Result<Word, Word> {
        // AcqRel: the winner sees what the publisher stored, and publishes what it stored itself.
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                change(Word::from_bits(bits)).map(Word::into_bits)
            })
            .map(Word::from_bits)
            .map_err(Word::from_bits)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const STATES: [FrameState; 9] = [
        FrameState::Free,
        FrameState::Cached,
        FrameState::Allocated,
        FrameState::Entering,
        FrameState::Listed,
        FrameState::Isolated,
        FrameState::Leaving,
        FrameState::Reserved,
        FrameState::Tail,
    ];

    #[test]
    fn the_parts_of_a_word_keep_apart() {
        let word = Word::new()
            .with_state(FrameState::Tail)
            .with_class(FrameClass::Balloon)
            .with_order(10)
            .with_generation(7)
            .with_flags(0x1ff)
            .with_owner(31)
            .with_refcount(31);
        assert_eq!(
            (word.state(), word.class(), word.order()),
            (FrameState::Tail, FrameClass::Balloon, 10)
        );
        assert_eq!(
            (word.generation(), word.flags(), word.owner()),
            (7, 0x1ff, 31)
        );
        assert_eq!(word.refcount(), 31);
        for state in STATES {
            let changed = word.with_state(state);
            assert_eq!(
                (changed.state(), changed.refcount(), changed.order()),
                (state, 31, 10)
            );
        }
        assert_eq!(
            Word::new().into_bits(),
            0,
            "memory of zeroes is free frames"
        );
        assert_eq!(Word::new().state(), FrameState::Free);
    }

    #[test]
    fn states_are_found_by_their_numbers() {
        for state in STATES {
            assert_eq!(FrameState::from_bits(state as u8), state);
        }
        assert_eq!(FrameState::from_bits(9), FrameState::Reserved);
        assert_eq!(FrameState::from_bits(u8::MAX), FrameState::Reserved);
    }

    #[test]
    fn only_what_nobody_uses_can_be_freed() {
        let word = Word::owned(FrameClass::Movable, Order::BASE);
        assert!(word.is_freeable(Order::BASE) && !word.is_freeable(Order::HUGE));
        assert!(Word::owned(FrameClass::Balloon, Order::MAX).is_freeable(Order::MAX));
        let still = [
            word.with_owner(3),
            word.with_generation(7),
            word.with_flags(FrameFlags::DIRTY.bits()),
        ];
        assert!(still.into_iter().all(|word| word.is_freeable(Order::BASE)));
        let not = [
            word.with_flags(FrameFlags::PINNED.bits()),
            word.with_refcount(1),
            word.with_refcount(16),
            word.with_state(FrameState::Listed),
            word.with_state(FrameState::Tail),
            Word::new(),
        ];
        assert!(!not.into_iter().any(|word| word.is_freeable(Order::BASE)));
    }

    #[test]
    fn only_the_edges_of_the_design_may_be_taken() {
        use FrameState::{Allocated, Entering, Isolated, Leaving, Listed};
        let edges = [
            (Allocated, Entering),
            (Allocated, Listed),
            (Allocated, Isolated),
            (Entering, Listed),
            (Entering, Allocated),
            (Entering, Isolated),
            (Entering, Leaving),
            (Listed, Isolated),
            (Listed, Leaving),
            (Listed, Allocated),
            (Isolated, Listed),
            (Isolated, Leaving),
            (Isolated, Allocated),
            (Isolated, Entering),
            (Leaving, Allocated),
            (Leaving, Listed),
        ];
        for from in STATES {
            for to in STATES {
                assert_eq!(
                    from.may_become(to),
                    edges.contains(&(from, to)),
                    "{from:?} {to:?}"
                );
            }
        }
    }

    #[test]
    fn an_update_that_is_refused_changes_nothing() {
        let (word, owner) = (AtomicU32::new(0), AtomicU64::new(0));
        let descriptor = Descriptor {
            word: &word,
            owner: &owner,
        };
        descriptor.store(Word::new().with_refcount(3));
        assert_eq!(
            descriptor.update(|_| None),
            Err(Word::new().with_refcount(3))
        );
        let old = descriptor.update(|word| Some(word.with_refcount(4)));
        assert_eq!(old, Ok(Word::new().with_refcount(3)));
        assert_eq!(descriptor.load().refcount(), 4);
    }

    #[test]
    fn flags_are_sets() {
        let both = FrameFlags::DIRTY.union(FrameFlags::PINNED);
        assert!(both.contains(FrameFlags::DIRTY) && both.contains(FrameFlags::EMPTY));
        assert!(!both.contains(FrameFlags::WRITEBACK));
        assert!(!both.contains(both.union(FrameFlags::REFERENCED)));
        assert_eq!(FrameFlags::from_bits(both.bits()), both);
        assert_eq!((OwnerId::new(0), OwnerId::NONE.get()), (None, 0));
        assert_eq!(OwnerId::new(31).map(OwnerId::get), Some(31));
        assert_eq!(OwnerId::new(32), None);
    }
}
