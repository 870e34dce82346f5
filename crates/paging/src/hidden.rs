//! Tables that a collapse has hidden: their range is one migration entry of the level above, which names the table.
//!
//! Page walks, faults and unmaps wait there as at any migration entry. Whoever holds the lock can look behind it.

use dirigible_frames::{PageTables, Pfn};

use crate::{
    audit::{Audit, AuditError},
    entry::{Entry, Kind},
    page::{ENTRIES, LEAF_DEPTH, Page},
    paging::Paging,
    space::SpaceState,
    tables::Place,
};

impl<P: PageTables> Paging<'_, P> {
    /// The entry of `page` in the table that `place` hides; `place` itself if it hides none. The lock is held.
    pub(crate) fn behind(&self, place: Place, page: Page) -> Place {
        if !place.entry.hides_table(place.depth) {
            return place;
        }
        let (table, index) = (place.entry.frame(), page.index(LEAF_DEPTH));
        let entry = match self.entry(table, index) {
            entry if entry.kind(LEAF_DEPTH) == Kind::Leaf => entry.to_migration(),
            entry => entry,
        };
        Place {
            table,
            depth: LEAF_DEPTH,
            index,
            entry,
        }
    }

    /// Checks a hidden table, whose first page is `first`. Its mappings count as migration entries, and all of its
    /// frames are isolated.
    pub(crate) fn audit_hidden(
        &self,
        state: &SpaceState,
        table: Pfn,
        first: Page,
        audit: &mut Audit,
    ) -> Result<(), AuditError> {
        let space = state.space();
        self.audit_table_frame(space, table)?;
        audit.tables += 1;
        let mut found = 0;
        for index in 0..ENTRIES {
            let entry = self.entry(table, index as usize);
            let page = first.plus(index);
            match entry.kind(LEAF_DEPTH) {
                Kind::Leaf => {
                    let moving = entry.to_migration();
                    self.audit_leaf(state, page, LEAF_DEPTH, moving, audit)?;
                    found += 1;
                }
                _ if entry == Entry::EMPTY => {}
                _ => {
                    return Err(AuditError::Entry {
                        space,
                        page,
                        bits: entry.bits(),
                    });
                }
            }
        }
        let counted = self.count(table);
        if counted != found || found == 0 {
            return Err(AuditError::Count {
                space,
                table,
                counted,
                found,
            });
        }
        Ok(())
    }
}
