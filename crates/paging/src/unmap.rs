//! Unmapping: entries are cleared in batches under the lock, frames freed in bulk after a shoot-down, without it.

use crate::{
    entry::{Entry, Kind},
    page::{ENTRIES, HUGE_DEPTH, LEAF_DEPTH, Page},
    paging::Paging,
    space::{OwnerWord, Slot, SpaceId, SpaceState},
    tables::Place,
};
use arrayvec::ArrayVec;
use core::ops::Range;
use dirigible_frames::{FrameState, Order, PageTables, Pfn};

/// Base pages cleared under one hold of the lock, and freed together.
const BATCH: usize = 64;
/// Huge pages cleared under one hold of the lock.
const HUGE_BATCH: usize = 8;

/// What was taken out of the tables and waits for the shoot-down. Up to three tables may follow the last page, and each
/// huge page gives a deposited table besides.
#[derive(Default)]
struct Batch {
    frames: ArrayVec<Pfn, { BATCH + HUGE_BATCH * 4 }>,
    huge: ArrayVec<Pfn, HUGE_BATCH>,
    pages: usize,
    cleared: bool,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.frames.len() >= BATCH || self.huge.is_full()
    }
}

/// Why [`Paging::fill_batch`] stopped before the end of the range.
#[derive(PartialEq)]
enum Stop {
    /// The batch is full, or the range is done.
    Flush,
    /// A frame is just being moved, or kept from being split: its turn comes later.
    Wait,
}

impl<P: PageTables> Paging<'_, P> {
    /// Unmaps `pages` and frees their frames; gives how many base pages were mapped (0 for a space that is no more).
    ///
    /// A huge page that lies in the range in part is split; the rest of it stays mapped. On return nobody uses the old
    /// translations. Frames that compaction has isolated are freed when it lets go of them; frames just being moved,
    /// and huge pages to split that are isolated or pinned, are waited for.
    pub fn unmap(&self, space: SpaceId, pages: Range<Page>) -> usize {
        let Some(slot) = self.slot(space) else {
            return 0;
        };
        self.clear_range(slot, space.get(), pages.start..pages.end.min(self.limit()))
    }

    /// [`Paging::unmap`] for the space whose state carries `id`.
    pub(crate) fn clear_range(&self, slot: &Slot, id: u32, pages: Range<Page>) -> usize {
        let mut page = pages.start;
        let mut total = 0;
        while page < pages.end {
            let mut batch = Batch::default();
            let first = page;
            let stop = {
                let mut state = slot.state.lock();
                if state.id != id {
                    break;
                }
                self.fill_batch(&mut state, &mut page, pages.end, &mut batch)
            };
            if batch.cleared {
                self.platform
                    .shoot_down(id & !SpaceState::DYING, first.address());
                self.free_batch(&batch);
                total += batch.pages;
            }
            if stop == Stop::Wait {
                self.platform.relax();
            }
        }
        total
    }

    fn free_batch(&self, batch: &Batch) {
        let cpu = self.platform.cpu();
        if batch.frames.len() == 1 {
            self.free(batch.frames[0], Order::BASE);
        } else if !batch.frames.is_empty() {
            let freed = self.frames.free_bulk(cpu, &batch.frames);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        for &head in &batch.huge {
            self.free(head, Order::HUGE);
        }
    }

    /// Clears entries from `page` on, which moves past them. The lock is held.
    fn fill_batch(
        &self,
        state: &mut SpaceState,
        page: &mut Page,
        end: Page,
        batch: &mut Batch,
    ) -> Stop {
        while *page < end && !batch.is_full() {
            let place = self.find(state, *page);
            let stop = match (place.kind(), place.depth) {
                (Kind::Migration, _) => Stop::Wait,
                (Kind::Leaf, HUGE_DEPTH) => self.clear_huge(state, page, end, &place, batch),
                (_, LEAF_DEPTH) => self.clear_table(state, page, end, &place, batch),
                (_, depth) => {
                    *page = page.next_span(depth);
                    Stop::Flush
                }
            };
            if stop == Stop::Wait {
                return stop;
            }
        }
        Stop::Flush
    }

    /// Clears base pages in one last-level table.
    fn clear_table(
        &self,
        state: &mut SpaceState,
        page: &mut Page,
        end: Page,
        place: &Place,
        batch: &mut Batch,
    ) -> Stop {
        let first = *page;
        let room = (ENTRIES - first.offset()).min(end.get() - first.get());
        let mut cleared = 0;
        let mut stop = Stop::Flush;
        for step in 0..room {
            let index = place.index + step as usize;
            let entry = self.entry(place.table, index);
            match entry.kind(LEAF_DEPTH) {
                Kind::Leaf => {
                    if batch.frames.len() >= BATCH {
                        break;
                    }
                    if self.detach(entry.frame()) {
                        batch.frames.push(entry.frame());
                    }
                    self.set_entry(place.table, index, Entry::EMPTY);
                    cleared += 1;
                }
                Kind::Migration => {
                    stop = Stop::Wait;
                    break;
                }
                Kind::Empty | Kind::Table => {}
            }
            *page = first.plus(step + 1);
        }
        if cleared > 0 {
            state.base -= cleared;
            batch.pages += cleared as usize;
            batch.cleared = true;
            self.sub_count(place.table, cleared);
            if self.count(place.table) == 0 {
                self.prune(state, first, |table| batch.frames.push(table));
            }
        }
        stop
    }

    /// Clears a huge page, or splits it when only a part is to go.
    fn clear_huge(
        &self,
        state: &mut SpaceState,
        page: &mut Page,
        end: Page,
        place: &Place,
        batch: &mut Batch,
    ) -> Stop {
        let base = page.huge_base();
        if *page != base || end < base.plus(ENTRIES) {
            // After a split the loop comes back to the page and finds a table.
            let split = self.split_locked(state, base, place);
            return if split.is_ok() {
                Stop::Flush
            } else {
                Stop::Wait
            };
        }
        if self.detach(place.entry.frame()) {
            batch.huge.push(place.entry.frame());
        }
        self.set_entry(place.table, place.index, Entry::EMPTY);
        if let Some(table) = self.withdraw_table(state) {
            batch.frames.push(table);
        }
        state.huge -= 1;
        batch.pages += ENTRIES as usize;
        batch.cleared = true;
        self.sub_count(place.table, 1);
        if self.count(place.table) == 0 {
            self.prune(state, base, |table| batch.frames.push(table));
        }
        *page = base.plus(ENTRIES);
        Stop::Flush
    }

    /// Takes a frame off the books whose entry goes; `true` if it is the caller's to free. Otherwise somebody else
    /// holds it, compaction or a pin, and learns from the owner word that it is theirs to free.
    fn detach(&self, frame: Pfn) -> bool {
        let free = self
            .frames
            .transition(frame, FrameState::Listed, FrameState::Allocated)
            .is_ok();
        if !free {
            self.frames.set_owner_word(frame, OwnerWord::DETACHED.0);
        }
        free
    }
}
