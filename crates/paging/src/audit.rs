//! The page-table audit: compares every table and mapping with the descriptors and the counts.

use crate::{
    entry::{Entry, Kind},
    page::{ENTRIES, HUGE_DEPTH, LEAF_DEPTH, Page},
    paging::Paging,
    space::{OwnerWord, SpaceId, SpaceState},
};
use dirigible_frames::{FrameClass, FrameFlags, FrameState, Order, OwnerId, PageTables, Pfn};

/// What the audit found, over all spaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Existing spaces.
    pub spaces: u64,
    /// Base pages mapped.
    pub base: u64,
    /// Huge pages mapped.
    pub huge: u64,
    /// Base pages in swap, or on their way there.
    pub swapped: u64,
    /// Table frames, including the deposited ones.
    pub tables: u64,
    /// Mappings that are being moved or split: 0 at rest.
    pub migration_entries: u64,
    /// Mapped frames and huge pages that are isolated: 0 at rest.
    pub isolated: u64,
    /// Mapped frames and huge pages that are pinned.
    pub pinned: u64,
}

impl Audit {
    /// Frames of anonymous memory. Pages in swap have none.
    pub const fn frames(&self) -> u64 {
        self.base + self.huge * ENTRIES
    }
}

/// What is wrong with an address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A table's descriptor is not that of a table.
    #[error("{table} of {space:?} is not a table frame")]
    Table {
        /// The space.
        space: SpaceId,
        /// The frame.
        table: Pfn,
    },
    /// A table's count of entries is wrong.
    #[error("table {table} of {space:?} counts {counted} entries and has {found}")]
    Count {
        /// The space.
        space: SpaceId,
        /// The table.
        table: Pfn,
        /// Its count of entries.
        counted: u64,
        /// Entries in use.
        found: u64,
    },
    /// A mapped frame's descriptor does not name the mapping.
    #[error("{page} of {space:?} maps {frame}, whose descriptor says otherwise")]
    Owner {
        /// The space.
        space: SpaceId,
        /// The page.
        page: Page,
        /// The mapped frame.
        frame: Pfn,
    },
    /// A mapped frame is in a state that no mapped frame can have.
    #[error("{page} of {space:?} maps {frame}, which is {state:?}")]
    State {
        /// The space.
        space: SpaceId,
        /// The page.
        page: Page,
        /// The mapped frame.
        frame: Pfn,
        /// Its state.
        state: FrameState,
    },
    /// A mapped frame has no age, so reclaim would never find it.
    #[error("{page} of {space:?} maps {frame}, which is in no generation")]
    Age {
        /// The space.
        space: SpaceId,
        /// The page.
        page: Page,
        /// The mapped frame.
        frame: Pfn,
    },
    /// An entry is neither empty nor valid.
    #[error("entry for {page} of {space:?} is {bits:#x}")]
    Entry {
        /// The space.
        space: SpaceId,
        /// The page.
        page: Page,
        /// The word found.
        bits: u64,
    },
    /// The counts of a space differ from its tables.
    #[error("{space:?}: counts differ from its tables")]
    Totals {
        /// The space.
        space: SpaceId,
    },
}

impl<P: PageTables> Paging<'_, P> {
    /// Compares all page tables with the frame descriptors and the counts. Holds the lock of one space at a time.
    ///
    /// Faults, unmaps and moves may run at the same time. At rest there are no migration entries, and nothing is
    /// isolated.
    pub fn audit(&self) -> Result<Audit, AuditError> {
        let mut audit = Audit::default();
        for slot in self.spaces.iter() {
            let mut state = slot.state.lock();
            if state.id == 0 {
                continue;
            }
            let before = audit;
            audit.spaces += 1;
            self.audit_table(&state, state.root, 0, Page::new(0), &mut audit)?;
            self.audit_deposit(&mut state, audit.huge - before.huge, &mut audit)?;
            let found = [
                audit.base - before.base,
                audit.huge - before.huge,
                audit.swapped - before.swapped,
                audit.tables - before.tables,
            ];
            if found != [state.base, state.huge, state.swapped, state.tables] {
                return Err(AuditError::Totals {
                    space: state.space(),
                });
            }
        }
        Ok(audit)
    }

    fn audit_table(
        &self,
        state: &SpaceState,
        table: Pfn,
        depth: usize,
        first: Page,
        audit: &mut Audit,
    ) -> Result<(), AuditError> {
        let space = state.space();
        self.audit_table_frame(space, table)?;
        audit.tables += 1;
        let mut found = 0;
        let mut page = first;
        let entries = if depth == 0 {
            self.root_entries()
        } else {
            ENTRIES as usize
        };
        for index in 0..entries {
            let entry = self.entry(table, index);
            match entry.kind(depth) {
                Kind::Empty if entry != Entry::EMPTY => {
                    return Err(AuditError::Entry {
                        space,
                        page,
                        bits: entry.bits(),
                    });
                }
                Kind::Empty => {}
                Kind::Migration if entry.hides_table(depth) => {
                    self.audit_hidden(state, entry.frame(), page, audit)?
                }
                Kind::Table => self.audit_table(state, entry.frame(), depth + 1, page, audit)?,
                Kind::Leaf | Kind::Migration => {
                    self.audit_leaf(state, page, depth, entry, audit)?
                }
                Kind::Swapped if entry != Entry::swapped(entry.slot()) || self.swap.is_none() => {
                    return Err(AuditError::Entry {
                        space,
                        page,
                        bits: entry.bits(),
                    });
                }
                Kind::Swapped => audit.swapped += 1,
            }
            found += u64::from(entry != Entry::EMPTY);
            page = page.next_span(depth);
        }
        let counted = self.count(table);
        if counted != found || (found == 0 && depth > 0) {
            return Err(AuditError::Count {
                space,
                table,
                counted,
                found,
            });
        }
        Ok(())
    }

    pub(crate) fn audit_table_frame(&self, space: SpaceId, table: Pfn) -> Result<(), AuditError> {
        let fits = self.frames.frame(table).is_some_and(|info| {
            info.state == FrameState::Allocated
                && info.class == FrameClass::Unmovable
                && info.owner == OwnerId::NONE
                && info.order == Order::BASE
        });
        if fits {
            Ok(())
        } else {
            Err(AuditError::Table { space, table })
        }
    }

    pub(crate) fn audit_leaf(
        &self,
        state: &SpaceState,
        page: Page,
        depth: usize,
        entry: Entry,
        audit: &mut Audit,
    ) -> Result<(), AuditError> {
        let space = state.space();
        let frame = entry.frame();
        let order = if depth == HUGE_DEPTH {
            Order::HUGE
        } else {
            Order::BASE
        };
        let info = self
            .frames
            .frame(frame)
            .ok_or(AuditError::Owner { space, page, frame })?;
        let named = info.owner == self.owner
            && info.class == FrameClass::Movable
            && info.order == order
            && info.word == OwnerWord::new(space, page).0
            && depth >= HUGE_DEPTH
            && frame.is_aligned(order);
        if !named {
            return Err(AuditError::Owner { space, page, frame });
        }
        let migrating = entry.kind(depth) == Kind::Migration;
        match info.state {
            FrameState::Listed if !migrating => {}
            FrameState::Isolated => audit.isolated += 1,
            FrameState::Allocated if info.flags.contains(FrameFlags::PINNED) && !migrating => {
                audit.pinned += 1;
            }
            found => {
                return Err(AuditError::State {
                    space,
                    page,
                    frame,
                    state: found,
                });
            }
        }
        // While it is being moved, the age may have gone ahead; of a space that was just exempted, some are left.
        let aged = self.generations.is_some() && !state.kept && !migrating;
        if aged && info.generation == 0 {
            return Err(AuditError::Age { space, page, frame });
        }
        audit.migration_entries += u64::from(migrating);
        if depth == LEAF_DEPTH {
            audit.base += 1;
        } else {
            audit.huge += 1;
        }
        Ok(())
    }

    /// Checks that there is one deposited table for each huge page.
    fn audit_deposit(
        &self,
        state: &mut SpaceState,
        huge: u64,
        audit: &mut Audit,
    ) -> Result<(), AuditError> {
        let mut next = state.deposit;
        let mut found = 0;
        while let Some(table) = next
            && found <= huge
        {
            self.audit_table_frame(state.space(), table)?;
            next = self.frames.owner_word(table).checked_sub(1).map(Pfn::new);
            found += 1;
        }
        audit.tables += found;
        if found == huge {
            Ok(())
        } else {
            Err(AuditError::Totals {
                space: state.space(),
            })
        }
    }
}
