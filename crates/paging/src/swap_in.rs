//! Bringing pages back from swap: the contents are fetched without a lock, then their frame is taken and mapped under it.

use crate::{
    entry::{Entry, Kind},
    fault::{Fault, FaultError},
    page::Page,
    paging::Paging,
    space::{OwnerWord, SpaceId, SpaceState},
    tables::Place,
};
use dirigible_frames::{Event, FrameFlags, FrameState, Order, PageTables};
use dirigible_reclaim::Age;

/// Marks that say something about the contents' time in swap's cache.
const STALE: FrameFlags = FrameFlags::REFERENCED
    .union(FrameFlags::ACTIVE)
    .union(FrameFlags::RECLAIM);

impl<P: PageTables> Paging<'_, P> {
    /// Whether `page` is in swap: a fault brings it back.
    pub fn is_swapped(&self, space: SpaceId, page: Page) -> bool {
        let Some(slot) = self.slot(space).filter(|_| self.may_map(page)) else {
            return false;
        };
        let state = slot.state.lock();
        state.id == space.get() && self.peek(&state, page).kind() == Kind::Swapped
    }

    /// Brings the contents of `slot` into memory. No lock is held.
    pub(crate) fn fetch(&self, slot: u64) -> Result<(), FaultError> {
        let Some(swap) = self.swap else {
            debug_assert!(false, "a swapped entry without swap");
            return Err(FaultError::SwapRead);
        };
        Ok(swap.fetch(slot)?)
    }

    /// Takes the page of the swapped entry at `place` out of swap and maps it. `None` if somebody has its contents in
    /// hand, or they have left memory again. The lock is held: the entry cannot change, so the slot is the page's.
    pub(crate) fn swap_in(
        &self,
        state: &mut SpaceState,
        page: Page,
        place: &Place,
    ) -> Option<Fault> {
        let frame = self.swap?.take(place.entry.slot())?;
        if self.frames.flags(frame).intersects(STALE) {
            self.frames.clear_flags(frame, STALE);
        }
        let word = OwnerWord::new(state.space(), page);
        self.frames.set_owner(frame, self.owner, word.0);
        // Page walks do not change such an entry, so nothing is lost.
        self.set_entry(place.table, place.index, Entry::leaf(frame, Order::BASE));
        state.base += 1;
        state.swapped -= 1;
        // It is being used, whatever swap says about how long it was away.
        self.set_age(state, frame, Age::Young);
        self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
        self.frames
            .events()
            .add(self.platform.cpu(), Event::SwapFault, 1);
        Some(Fault {
            frame,
            huge: false,
            fresh: false,
        })
    }
}
