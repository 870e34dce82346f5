//! The table of address spaces: ids with generations, and the state of each space outside its page tables.

use crate::page::Page;
use alloc::{boxed::Box, vec::Vec};
use dirigible_frames::{
    Pfn,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// Bits of a frame's owner word that hold the space. The other 36 hold the page.
const ID_BITS: u32 = 28;
/// Most spaces that one [`Paging`](crate::Paging) can have. It leaves 8 bits for the generations of a slot.
pub const MAX_SPACES: usize = 1 << 20;

/// An address space.
///
/// The number consists of a slot in the table and a generation. So the id of a destroyed space is recognised, until its
/// slot was reused 2^(28 - slot bits) - 2 times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct SpaceId(u32);

impl SpaceId {
    /// The id with number `number`, which came from [`SpaceId::get`].
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number: 28 bits, never 0.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The owner word of a mapped frame: the space and page that map it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnerWord(pub(crate) u64);

impl OwnerWord {
    /// The word of a frame that was unmapped while it was isolated or pinned: putback, migration or the last unpin
    /// frees it. No space has this number, see [`Spaces::take`].
    pub(crate) const DETACHED: Self = Self(u64::MAX);

    pub(crate) const fn new(space: SpaceId, page: Page) -> Self {
        Self(((space.0 as u64) << 36) | page.get())
    }

    pub(crate) const fn space(self) -> SpaceId {
        SpaceId((self.0 >> 36) as u32)
    }

    pub(crate) const fn page(self) -> Page {
        Page::new(self.0 & (Page::LIMIT.get() - 1))
    }
}

/// What a space's lock protects, besides the page tables.
#[derive(Debug, Default)]
pub(crate) struct SpaceState {
    /// The id of the space, with [`SpaceState::DYING`] set while the space is being destroyed; 0 if there is no space.
    pub(crate) id: u32,
    pub(crate) root: Pfn,
    /// The last-level table that was used last: number of its 2 MiB range, and table. Saves walks in sequential faults.
    pub(crate) leaf: Option<(u64, Pfn)>,
    /// The first of the table frames kept for splits, one for each huge mapping. They are linked through their owner
    /// words.
    pub(crate) deposit: Option<Pfn>,
    /// Base pages mapped, including migration entries.
    pub(crate) base: u64,
    /// Huge pages mapped, including migration entries.
    pub(crate) huge: u64,
    /// Base pages in swap.
    pub(crate) swapped: u64,
    /// Table frames in use, including the root and the deposited ones.
    pub(crate) tables: u64,
    /// Reclaim takes none of its frames: they are in no generation.
    pub(crate) kept: bool,
}

impl SpaceState {
    /// Marks the id of a space that is being destroyed: faults find no space.
    pub(crate) const DYING: u32 = 1 << 31;

    /// The id of the space, which exists or is being destroyed.
    pub(crate) const fn space(&self) -> SpaceId {
        SpaceId(self.id & !Self::DYING)
    }
}

/// An entry in the table of spaces.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// The space's id or 0, for page walks without the lock. Changes under the lock.
    id: AtomicU32,
    /// Its root table. Valid in an access section that has read `id` and found the space: the frame is freed only after
    /// `id` has changed and a shoot-down has followed.
    root: AtomicU64,
    pub(crate) state: Mutex<SpaceState>,
}

impl Slot {
    /// The root table of `space`, for a walk inside an access section; `None` if the space does not exist.
    pub(crate) fn root(&self, space: SpaceId) -> Option<Pfn> {
        // Acquire: pairs with the release in `open`, so that the root that was stored before the id is read.
        (self.id.load(Ordering::Acquire) == space.0)
            .then(|| Pfn::new(self.root.load(Ordering::Relaxed)))
    }

    /// Makes the space exist; `root` is an empty table.
    pub(crate) fn open(&self, space: SpaceId, root: Pfn) {
        let mut state = self.state.lock();
        *state = SpaceState {
            id: space.0,
            root,
            tables: 1,
            ..SpaceState::default()
        };
        self.root.store(root.get(), Ordering::Relaxed);
        // Release: pairs with the acquire in `root`.
        self.id.store(space.0, Ordering::Release);
    }

    /// Ends all use of `space`; `false` if it does not exist.
    pub(crate) fn close(&self, space: SpaceId) -> bool {
        let mut state = self.state.lock();
        if state.id != space.0 {
            return false;
        }
        state.id |= SpaceState::DYING;
        // The shoot-down before anything is freed waits for page walks that have read the old id.
        self.id.store(0, Ordering::Release);
        true
    }
}

/// The table of spaces.
#[derive(Debug)]
pub(crate) struct Spaces {
    slots: Box<[Slot]>,
    slot_bits: u32,
    free: Mutex<FreeSlots>,
}

/// The free slots, last freed first, and each slot's next generation. Both have their full capacity from the start.
#[derive(Debug)]
struct FreeSlots {
    stack: Vec<u32>,
    generation: Box<[u32]>,
}

impl Spaces {
    /// Room for `max` spaces.
    pub(crate) fn new(max: usize) -> Self {
        assert!(
            (1..=MAX_SPACES).contains(&max),
            "{max} address spaces asked for, 1 to 2^20 allowed"
        );
        let slots = (0..max).map(|_| Slot::default()).collect();
        let stack = (0..max as u32).rev().collect();
        let generation = (0..max).map(|_| 1).collect();
        let slot_bits = max.next_power_of_two().trailing_zeros();
        Self {
            slots,
            slot_bits,
            free: Mutex::new(FreeSlots { stack, generation }),
        }
    }

    /// An unused id, and its slot.
    pub(crate) fn take(&self) -> Option<(SpaceId, &Slot)> {
        let mut free = self.free.lock();
        let index = free.stack.pop()?;
        let generation = &mut free.generation[index as usize];
        let id = (*generation << self.slot_bits) | index;
        // Generation 0 would make id 0 possible, and all ones `OwnerWord::DETACHED`.
        let last = (1 << (ID_BITS - self.slot_bits)) - 2;
        *generation = if *generation == last {
            1
        } else {
            *generation + 1
        };
        Some((SpaceId(id), &self.slots[index as usize]))
    }

    /// Frees the slot of a space that was destroyed, and whose state is cleared.
    pub(crate) fn give_back(&self, space: SpaceId) {
        let index = space.0 & ((1 << self.slot_bits) - 1);
        self.free.lock().stack.push(index);
    }

    /// The slot of `space`. It may hold another space by now: the caller must compare the id.
    pub(crate) fn slot(&self, space: SpaceId) -> Option<&Slot> {
        // Other numbers are not ids: 0, and numbers with `DYING`, would match slots without a space.
        if !(1..1 << ID_BITS).contains(&space.0) {
            return None;
        }
        let index = space.0 & ((1 << self.slot_bits) - 1);
        self.slots.get(index as usize)
    }

    /// All slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_words_hold_space_and_page() {
        let word = OwnerWord::new(SpaceId::new(0xfff_fffe), Page::new((1 << 36) - 1));
        assert_eq!(word.space(), SpaceId::new(0xfff_fffe));
        assert_eq!(word.page(), Page::new((1 << 36) - 1));
        assert_ne!(word, OwnerWord::DETACHED);
    }

    #[test]
    fn ids_differ_though_slots_are_reused() {
        let spaces = Spaces::new(2);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let (id, _) = spaces.take().unwrap();
            assert!(id.get() != 0 && id.get() < 1 << 28 && seen.insert(id));
            spaces.give_back(id);
        }
    }

    #[test]
    fn no_more_spaces_than_slots() {
        let spaces = Spaces::new(3);
        let taken: std::vec::Vec<_> = (0..3).map(|_| spaces.take().unwrap().0).collect();
        assert!(spaces.take().is_none());
        spaces.give_back(taken[1]);
        assert!(spaces.take().is_some());
    }

    #[test]
    fn generations_wrap_without_the_two_reserved_ids() {
        // 2^20 slots leave 8 bits: 1 to 254.
        let spaces = Spaces::new(MAX_SPACES);
        let mut generations = std::vec::Vec::new();
        for _ in 0..255 {
            let (id, _) = spaces.take().unwrap();
            generations.push(id.get() >> 20);
            spaces.give_back(id);
        }
        assert_eq!(
            (generations[0], generations[253], generations[254]),
            (1, 254, 1)
        );
    }

    #[test]
    fn a_closed_slot_gives_no_root() {
        let spaces = Spaces::new(1);
        let (id, slot) = spaces.take().unwrap();
        assert_eq!(slot.root(id), None);
        slot.open(id, Pfn::new(9));
        assert_eq!(slot.root(id), Some(Pfn::new(9)));
        assert!(!slot.close(SpaceId::new(id.get() + 2)));
        assert!(slot.close(id));
        assert_eq!(slot.root(id), None);
        assert!(!slot.close(id));
    }
}
