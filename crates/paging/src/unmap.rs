//! Unmapping: entries are cleared in batches under the lock; after a shoot-down, frames are freed in bulk without it.

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

/// Most base pages that are cleared while the lock is held once.
const BATCH: usize = 64;
/// Most huge pages that are cleared while the lock is held once.
const HUGE_BATCH: usize = 8;

/// Frames that were taken out of the tables, and are freed after the shoot-down. Besides the pages' frames there may be
/// up to three tables that became empty with the last page, and a deposited table for each huge page.
#[derive(Default)]
struct Batch {
    frames: ArrayVec<Pfn, { BATCH + HUGE_BATCH * 4 }>,
    huge: ArrayVec<Pfn, HUGE_BATCH>,
    /// Slots of pages that were in swap.
    slots: ArrayVec<u64, BATCH>,
    pages: usize,
    /// A mapping or a table was taken out: a shoot-down is due.
    cleared: bool,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.frames.len() >= BATCH || self.huge.is_full() || self.slots.is_full()
    }
}

/// Why [`Paging::fill_batch`] stopped before the end of the range.
#[derive(PartialEq)]
enum Stop {
    /// The batch is full, or the range is done.
    Flush,
    /// A page is being moved, or a huge page cannot be split now: try again later.
    Wait,
}

impl<P: PageTables> Paging<'_, P> {
    /// Unmaps `pages` and frees their frames, and the slots of those that are in swap. Gives the number of base pages that
    /// were mapped, 0 if the space does not exist. Pages in swap do not count, as they had no frame.
    ///
    /// If only a part of a huge page lies in the range, the huge page is split and the rest stays mapped. On return no
    /// CPU uses the old translations. Frames that compaction has isolated are freed when compaction puts them back or
    /// has moved them. Waits while frames in the range are being moved, and while a huge page that must be split is
    /// isolated or pinned, and for slots that are being read or written.
    pub fn unmap(&self, space: SpaceId, pages: Range<Page>) -> usize {
        let Some(slot) = self.slot(space) else {
            return 0;
        };
        self.clear_range(slot, space.get(), pages.start..pages.end.min(self.limit()))
    }

    /// As [`Paging::unmap`], for the space whose state has `id`.
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
            if let Some(swap) = self.swap.filter(|_| !batch.slots.is_empty()) {
                swap.free(&batch.slots);
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

    /// Clears entries from `page` on, and advances `page` behind them. The lock is held.
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

    /// Clears base pages in one last-level table, mapped ones and those in swap.
    fn clear_table(
        &self,
        state: &mut SpaceState,
        page: &mut Page,
        end: Page,
        place: &Place,
        batch: &mut Batch,
    ) -> Stop {
        self.unmark_eligible(place.table);
        let first = *page;
        let room = (ENTRIES - first.offset()).min(end.get() - first.get());
        let mut cleared = 0;
        let slots = batch.slots.len();
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
                Kind::Swapped => {
                    if batch.slots.is_full() {
                        break;
                    }
                    batch.slots.push(entry.slot());
                    self.set_entry(place.table, index, Entry::EMPTY);
                }
                Kind::Empty | Kind::Table => {}
            }
            *page = first.plus(step + 1);
        }
        let swapped = (batch.slots.len() - slots) as u64;
        if cleared + swapped > 0 {
            state.base -= cleared;
            state.swapped -= swapped;
            batch.pages += cleared as usize;
            batch.cleared |= cleared > 0;
            self.sub_count(place.table, cleared + swapped);
            if self.count(place.table) == 0 {
                batch.cleared = true;
                self.prune(state, first, |table| batch.frames.push(table));
            }
        }
        stop
    }

    /// Clears a huge page, or splits it if only a part is to be unmapped.
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
            // After the split the caller walks to the page again and finds a table.
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

    /// Takes a frame off the books before its entry is cleared; `true` if the caller must free it. Otherwise the frame
    /// is isolated or pinned, and the owner word says that putback, migration or the last unpin must free it. In both
    /// cases it is in no generation from now on, as nothing finds it by its entry any more.
    fn detach(&self, frame: Pfn) -> bool {
        let free = self
            .frames
            .transition(frame, FrameState::Listed, FrameState::Allocated)
            .is_ok();
        self.forget_age(frame);
        if !free {
            // From here on whoever has it isolated may free it.
            self.frames.set_owner_word(frame, OwnerWord::DETACHED.0);
        }
        free
    }
}
