//! The table of address spaces: ids that are safe to reuse, and what each space keeps outside its page tables.

use crate::page::Page;
use alloc::{boxed::Box, vec::Vec};
use dirigible_frames::{
    Pfn,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// Bits that a space has in a frame's owner word; the page has the other 36.
const ID_BITS: u32 = 28;
/// Most spaces that one [`Paging`](crate::Paging) can have: leaves 8 bits to tell apart the users of a slot.
pub const MAX_SPACES: usize = 1 << 20;

/// An address space.
///
/// The number holds the slot in the table and a generation, so an id that outlives its space is recognised (until the
/// slot has been reused 2^(28 - slot bits) - 2 times).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct SpaceId(u32);

impl SpaceId {
    /// The id with number `number`, as [`SpaceId::get`] gave it.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number: 28 bits, never 0.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Names the mapper of a frame, from its descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnerWord(pub(crate) u64);

impl OwnerWord {
    /// Of a frame whose mapping is gone while somebody (compaction, a pin) still had it: whoever lets go frees it.
    /// No space has this number, see [`Spaces::take`].
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

/// What a space's lock guards, besides its page tables.
#[derive(Debug, Default)]
pub(crate) struct SpaceState {
    /// The living space's id, that of one being torn down with [`SpaceState::DYING`] set, or 0.
    pub(crate) id: u32,
    pub(crate) root: Pfn,
    /// The last-level table used last: 2 MiB range number and table. Sequential faults find it without a walk.
    pub(crate) leaf: Option<(u64, Pfn)>,
    /// Table frames kept for splitting, one for each huge mapping, linked through their owner words.
    pub(crate) deposit: Option<Pfn>,
    /// Base pages mapped, migration entries among them.
    pub(crate) base: u64,
    /// Huge pages mapped, migration entries among them.
    pub(crate) huge: u64,
    /// Table frames in use, the root and the deposit among them.
    pub(crate) tables: u64,
}

impl SpaceState {
    /// Marks the id of a space that takes no more faults.
    pub(crate) const DYING: u32 = 1 << 31;

    /// The id, of a living space or one that is being torn down.
    pub(crate) const fn space(&self) -> SpaceId {
        SpaceId(self.id & !Self::DYING)
    }
}

/// A place in the table.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// The living space's id or 0, for walkers without the lock. Changes under the lock.
    id: AtomicU32,
    /// Its root table. Valid inside an access section that began before a look at `id` succeeded: the frame is freed
    /// only after a shoot-down that follows the change of `id`.
    root: AtomicU64,
    pub(crate) state: Mutex<SpaceState>,
}

impl Slot {
    /// The root of living space `space`, for a walk inside an access section.
    pub(crate) fn root(&self, space: SpaceId) -> Option<Pfn> {
        // Pairs with the release in `open`: who sees the id sees the root that was stored before it.
        (self.id.load(Ordering::Acquire) == space.0)
            .then(|| Pfn::new(self.root.load(Ordering::Relaxed)))
    }

    /// Lets the space be used; `root` is an empty table.
    pub(crate) fn open(&self, space: SpaceId, root: Pfn) {
        let mut state = self.state.lock();
        *state = SpaceState {
            id: space.0,
            root,
            tables: 1,
            ..SpaceState::default()
        };
        self.root.store(root.get(), Ordering::Relaxed);
        // Pairs with the acquire in `root`.
        self.id.store(space.0, Ordering::Release);
    }

    /// Refuses all further use of `space`; `false` if it is not the living one.
    pub(crate) fn close(&self, space: SpaceId) -> bool {
        let mut state = self.state.lock();
        if state.id != space.0 {
            return false;
        }
        state.id |= SpaceState::DYING;
        // Walkers that missed this are waited for by the shoot-down before anything is freed.
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

/// Slots to hand out, last freed first, and each slot's next generation. Both have their full capacity from the start.
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
        // 0 would make id 0 possible, all ones `OwnerWord::DETACHED`.
        let last = (1 << (ID_BITS - self.slot_bits)) - 2;
        *generation = if *generation == last {
            1
        } else {
            *generation + 1
        };
        Some((SpaceId(id), &self.slots[index as usize]))
    }

    /// Gives the id's slot back. The space is gone and its slot's state cleared.
    pub(crate) fn give_back(&self, space: SpaceId) {
        let index = space.0 & ((1 << self.slot_bits) - 1);
        self.free.lock().stack.push(index);
    }

    /// The slot that `space` lives or lived in; what it holds now is for the caller to compare.
    pub(crate) fn slot(&self, space: SpaceId) -> Option<&Slot> {
        // Other numbers are no ids: 0 and those with `DYING` would be taken for those of slots without a living space.
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
