//! Harvesting accessed bits: which pages of a space were used since the last look.

use core::ops::Range;

use dirigible_frames::{Order, PageTables, Pfn};

use crate::{
    entry::{Entry, Kind},
    page::{ENTRIES, HUGE_DEPTH, LEAF_DEPTH, Page},
    paging::Paging,
    space::{SpaceId, SpaceState},
    tables::Place,
};

/// Entries that are looked at while the lock is held once.
const PIECE: u64 = 512;
/// Tables and holes that are passed by while the lock is held once.
const STEPS: usize = 64;

/// What a harvest found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Harvest {
    /// Mappings that were looked at; a huge page is one.
    pub looked: u64,
    /// Of these, mappings that were used since the last harvest, or are new.
    pub used: u64,
}

impl<P: PageTables> Paging<'_, P> {
    /// Clears the accessed bits of all mappings of `pages`, and calls `used` for each that had it set, with the page, the
    /// frame and the order (0 or 9) of the mapping. A huge page that lies in the range in part counts. `dirty` bits stay.
    /// Gives nothing if the space does not exist.
    ///
    /// The space's lock is held for a bounded piece at a time. `used` is called under it, so the frame is mapped there at
    /// that moment; it must be short, and neither wait, allocate nor call [`Paging`]. Each piece with a bit cleared ends
    /// with a shoot-down: a use after this call sets the bit again. Pages that are being moved or split are passed by, with
    /// their bits as they are; so are pages in swap.
    pub fn harvest(
        &self,
        space: SpaceId,
        pages: Range<Page>,
        mut used: impl FnMut(Page, Pfn, Order),
    ) -> Harvest {
        self.harvest_with(space, pages, |_, page, frame, order| {
            used(page, frame, order)
        })
    }

    /// As [`Paging::harvest`]; `used` is also told whether the space is kept in memory.
    pub(crate) fn harvest_with(
        &self,
        space: SpaceId,
        pages: Range<Page>,
        mut used: impl FnMut(bool, Page, Pfn, Order),
    ) -> Harvest {
        let mut harvest = Harvest::default();
        let Some(slot) = self.slot(space) else {
            return harvest;
        };
        let (mut page, end) = (pages.start, pages.end.min(self.limit()));
        while page < end {
            let (first, before) = (page, harvest.used);
            {
                let mut state = slot.state.lock();
                if state.id != space.get() {
                    break;
                }
                let kept = state.kept;
                self.each_mapping(&mut state, &mut page, end, |page, place, order| {
                    if self.harvest_entry(place, &mut harvest) {
                        used(kept, page, place.entry.frame(), order);
                    }
                });
            }
            if harvest.used > before {
                self.platform.shoot_down(space.get(), first.address());
            }
        }
        harvest
    }

    /// Calls `visit` with each mapping of a bounded number of entries from `page` on, its first page and its order, and
    /// advances `page` behind them. Passes by what is being moved or split. The lock is held.
    pub(crate) fn each_mapping(
        &self,
        state: &mut SpaceState,
        page: &mut Page,
        end: Page,
        mut visit: impl FnMut(Page, &Place, Order),
    ) {
        let mut left = PIECE;
        for _ in 0..STEPS {
            if *page >= end || left == 0 {
                return;
            }
            let place = self.find(state, *page);
            match (place.kind(), place.depth) {
                (Kind::Leaf, HUGE_DEPTH) => {
                    let base = page.huge_base();
                    visit(base, &place, Order::HUGE);
                    left -= 1;
                    *page = base.plus(ENTRIES);
                }
                (_, LEAF_DEPTH) => {
                    let room = (ENTRIES - page.offset()).min(end.get() - page.get());
                    let count = room.min(left);
                    for step in 0..count {
                        let index = place.index + step as usize;
                        let entry = self.entry(place.table, index);
                        if entry.kind(LEAF_DEPTH) == Kind::Leaf {
                            let place = Place {
                                index,
                                entry,
                                ..place
                            };
                            visit(page.plus(step), &place, Order::BASE);
                        }
                    }
                    left -= count;
                    *page = page.plus(count);
                }
                (_, depth) => *page = page.next_span(depth),
            }
        }
    }

    /// Looks at one mapping, and clears its accessed bit; gives whether it was set.
    fn harvest_entry(&self, place: &Place, harvest: &mut Harvest) -> bool {
        harvest.looked += 1;
        let mut seen = place.entry;
        // Only page walks change the entry meanwhile, and they set marks: a few times at most.
        while seen.kind(place.depth) == Kind::Leaf && seen.is_accessed() {
            let cleared = self.platform.compare_exchange_entry(
                place.table,
                place.index,
                seen.bits(),
                seen.aged().bits(),
            );
            match cleared {
                Ok(_) => {
                    harvest.used += 1;
                    return true;
                }
                Err(found) => seen = Entry::from_bits(found),
            }
        }
        false
    }
}
