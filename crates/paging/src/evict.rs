//! What reclaim asks of anonymous memory, and the ages of its frames.

use crate::{
    page::Page,
    paging::Paging,
    space::{SpaceId, SpaceState},
};
use dirigible_frames::{Cost, PageTables, Pfn};
use dirigible_mobility::MovableOwner;
use dirigible_reclaim::{Age, Evictable, Kept, Kind as Contents, Stamp};

impl<P: PageTables> Evictable for Paging<'_, P> {
    /// Never: the contents are nowhere else.
    fn drop_clean(&self, _frame: Pfn, _stamp: Stamp) -> Result<(), Kept> {
        Err(Kept::InUse)
    }

    /// Nothing: a page is written when it is the page cache's.
    fn begin_write(&self, _frame: Pfn) -> usize {
        0
    }

    fn kind(&self) -> Contents {
        Contents::Anonymous
    }

    fn has_swap(&self) -> bool {
        self.generations.is_some() && self.swap.is_some_and(|swap| swap.has_room())
    }

    /// Takes the locks of the frames' spaces, one after the other, and makes one shoot-down for 32 frames. A huge page
    /// that was not used since the last harvest is split.
    fn swap_out(&self, frames: &[Pfn]) -> usize {
        match self.swap.filter(|_| self.generations.is_some()) {
            Some(swap) => self.swap_out_all(frames, swap),
            None => {
                frames.iter().for_each(|&frame| self.putback(frame));
                0
            }
        }
    }

    fn put_back(&self, frame: Pfn) {
        self.putback(frame);
    }

    fn wake_flusher(&self) {}

    fn dirty_and_writeback(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Harvests the accessed bits of all spaces but those that are [kept in memory](Paging::keep_in_memory). Charges the
    /// look at each mapping.
    fn harvest(&self) {
        let Some(generations) = self.generations else {
            return;
        };
        for slot in self.spaces.iter() {
            let space = {
                let state = slot.state.lock();
                (state.id != 0 && !state.kept).then(|| state.space())
            };
            let Some(space) = space else { continue };
            // Under the lock, so the frame is mapped and somebody holds it; and the space may be exempted by now.
            let used = |kept: bool, _, frame, _| {
                if !kept {
                    generations.add(frame, Age::Young);
                }
            };
            let found = self.harvest_with(space, Page::new(0)..self.limit(), used);
            let looked = u32::try_from(found.looked).unwrap_or(u32::MAX);
            self.platform.charge(Cost::Scan(looked));
        }
    }
}

impl<P: PageTables> Paging<'_, P> {
    /// Exempts `space` from reclaim, as mlockall does: its frames are in no generation from now on, those mapped already
    /// and those to come. Pages in swap come back when they are used, and then stay. Gives `false` if the space does not
    /// exist.
    ///
    /// The space's lock is held for a bounded piece at a time. Frames that reclaim has isolated are put back.
    pub fn keep_in_memory(&self, space: SpaceId) -> bool {
        let Some(slot) = self.slot(space) else {
            return false;
        };
        let mut page = Page::new(0);
        while page < self.limit() {
            let mut state = slot.state.lock();
            if state.id != space.get() {
                return false;
            }
            // Before the first frame: what is mapped from now on has no age, nor has what a migration ends with.
            state.kept = true;
            self.each_mapping(&mut state, &mut page, self.limit(), |_, place, _| {
                self.forget_age(place.entry.frame());
            });
        }
        true
    }

    /// Gives `frame` an age, if it has one at all. `frame` is mapped by the space, whose lock is held, or about to be.
    pub(crate) fn set_age(&self, state: &SpaceState, frame: Pfn, age: Age) {
        if let Some(generations) = self.generations.filter(|_| !state.kept) {
            generations.add(frame, age);
        }
    }

    /// `frame` is in no generation from now on.
    pub(crate) fn forget_age(&self, frame: Pfn) {
        if let Some(generations) = self.generations {
            generations.remove(frame);
        }
    }
}
