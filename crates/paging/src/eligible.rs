//! Ranges of 2 MiB that may become a huge page: which they are, and how a daemon finds them.
//!
//! A range is *eligible* when a fault that asked for a huge page was served by a base page in it: whoever asks says
//! that the whole aligned range is the program's. An unmap of any part ends it, since that part is not the program's
//! any more. A bit in the owner word of the range's last-level table says so, beside the number of entries.

use dirigible_frames::{PageTables, Pfn};

use crate::{
    page::{ENTRIES, LEAF_DEPTH, Page},
    paging::Paging,
    space::{SpaceId, SpaceState},
    tables::walk,
};

/// The mark in the owner word of a last-level table.
pub(crate) const ELIGIBLE: u64 = 1 << 63;
/// Tables and holes that are passed by while the lock is held once.
const STEPS: usize = 64;

/// Where [`Paging::next_eligible`] goes on. The default is the first page of the first space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CollapseCursor {
    slot: usize,
    page: Page,
}

impl<P: PageTables> Paging<'_, P> {
    /// The next range that may become a huge page: its space and its first page. `None` when `left` has come to 0, or
    /// behind the last space; the cursor is at the beginning then.
    ///
    /// Lowers `left` by 512 for each range that it gives, and by 1 for each other last-level table, for each 64
    /// entries above these, and for each space. The lock of a space is held for a bounded number of steps at a time.
    /// The range may have changed when this returns.
    pub fn next_eligible(
        &self,
        cursor: &mut CollapseCursor,
        left: &mut u64,
    ) -> Option<(SpaceId, Page)> {
        for slot in self.spaces.iter().skip(cursor.slot) {
            while cursor.page < self.limit() {
                if *left == 0 {
                    return None;
                }
                let state = slot.state.lock();
                if state.id == 0 || state.id & SpaceState::DYING != 0 {
                    break;
                }
                if let Some(page) = self.eligible_piece(&state, &mut cursor.page, left) {
                    return Some((state.space(), page));
                }
                *left = left.saturating_sub(1);
            }
            *left = left.saturating_sub(1);
            *cursor = CollapseCursor {
                slot: cursor.slot + 1,
                page: Page::new(0),
            };
        }
        *cursor = CollapseCursor::default();
        None
    }

    /// Looks at a bounded number of tables from `page` on, and advances `page` behind them. The lock is held.
    fn eligible_piece(&self, state: &SpaceState, page: &mut Page, left: &mut u64) -> Option<Page> {
        for _ in 0..STEPS {
            if *page >= self.limit() || *left == 0 {
                return None;
            }
            let place = walk(self.platform, state.root, *page);
            if place.depth < LEAF_DEPTH {
                *page = page.next_span(place.depth);
                continue;
            }
            let base = page.huge_base();
            *page = base.plus(ENTRIES);
            if self.is_eligible(place.table) {
                *left = left.saturating_sub(ENTRIES);
                return Some(base);
            }
            *left -= 1;
        }
        None
    }

    /// Whether the range of the last-level table `table` is eligible. The lock is held, here and below.
    pub(crate) fn is_eligible(&self, table: Pfn) -> bool {
        self.frames.owner_word(table) & ELIGIBLE != 0
    }

    /// Makes the range of the last-level table `table` eligible.
    pub(crate) fn mark_eligible(&self, table: Pfn) {
        let word = self.frames.owner_word(table);
        self.frames.set_owner_word(table, word | ELIGIBLE);
    }

    /// The range of the last-level table `table` is not eligible any more.
    pub(crate) fn unmark_eligible(&self, table: Pfn) {
        let word = self.frames.owner_word(table);
        self.frames.set_owner_word(table, word & !ELIGIBLE);
    }
}
