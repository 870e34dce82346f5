//! Page tables: walks, entries, and removal of empty tables.
//!
//! The owner word of each table frame holds the number of its entries in use, and whether the table's range is eligible
//! for a huge page. It is changed under the lock of the space.

use crate::{
    eligible::ELIGIBLE,
    entry::{Entry, Kind},
    page::{LEAF_DEPTH, Page},
    paging::Paging,
    source::{OutOfMemory, PageSource},
    space::SpaceState,
};
use dirigible_frames::{AllocRequest, FrameAllocator, OwnerId, PageTables, Pfn};

/// The entry where a walk ended: a leaf, a migration or swapped entry, or an empty entry at any depth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) table: Pfn,
    pub(crate) depth: usize,
    pub(crate) index: usize,
    pub(crate) entry: Entry,
}

impl Place {
    /// The kind of the entry; never [`Kind::Table`].
    pub(crate) fn kind(&self) -> Kind {
        self.entry.kind(self.depth)
    }
}

/// Allocates a zeroed frame for a table. The table is not counted or linked yet.
pub(crate) fn new_table<P: PageTables>(
    frames: &FrameAllocator<'_>,
    platform: &P,
    memory: &dyn PageSource,
) -> Result<Pfn, OutOfMemory> {
    let table = memory.alloc(AllocRequest::unmovable())?;
    platform.zero_frames(table, 1);
    frames.set_owner(table, OwnerId::NONE, 0);
    Ok(table)
}

/// Walks from `root` to `page`'s entry, until there is no further table.
pub(crate) fn walk<P: PageTables>(platform: &P, root: Pfn, page: Page) -> Place {
    let mut table = root;
    let mut depth = 0;
    loop {
        let index = page.index(depth);
        let entry = Entry::from_bits(platform.load_entry(table, index));
        if entry.kind(depth) != Kind::Table {
            return Place {
                table,
                depth,
                index,
                entry,
            };
        }
        table = entry.frame();
        depth += 1;
    }
}

impl<P: PageTables> Paging<'_, P> {
    /// Walks to `page` under the lock, and caches its last-level table in `state`.
    pub(crate) fn find(&self, state: &mut SpaceState, page: Page) -> Place {
        let place = self.peek(state, page);
        if place.depth == LEAF_DEPTH {
            state.leaf = Some((page.region(), place.table));
        }
        place
    }

    /// Walks to `page` under the lock.
    pub(crate) fn peek(&self, state: &SpaceState, page: Page) -> Place {
        match state.leaf {
            Some((region, table)) if region == page.region() => {
                let index = page.index(LEAF_DEPTH);
                let entry = Entry::from_bits(self.platform.load_entry(table, index));
                Place {
                    table,
                    depth: LEAF_DEPTH,
                    index,
                    entry,
                }
            }
            _ => walk(self.platform, state.root, page),
        }
    }

    /// The current entry.
    pub(crate) fn entry(&self, table: Pfn, index: usize) -> Entry {
        Entry::from_bits(self.platform.load_entry(table, index))
    }

    /// Replaces an entry and gives the old one.
    pub(crate) fn set_entry(&self, table: Pfn, index: usize, entry: Entry) -> Entry {
        Entry::from_bits(self.platform.swap_entry(table, index, entry.bits()))
    }

    /// Replaces a leaf by its migration entry, and gives that. Keeps all marks that page walks have set; afterwards
    /// they set none.
    pub(crate) fn freeze_entry(&self, place: &Place) -> Entry {
        let mut seen = place.entry;
        loop {
            let frozen = seen.to_migration();
            match self.platform.compare_exchange_entry(
                place.table,
                place.index,
                seen.bits(),
                frozen.bits(),
            ) {
                Ok(_) => return frozen,
                Err(found) => seen = Entry::from_bits(found),
            }
        }
    }

    /// Entries in use in `table`.
    pub(crate) fn count(&self, table: Pfn) -> u64 {
        self.frames.owner_word(table) & !ELIGIBLE
    }

    /// Counts `more` additional entries in use in `table`.
    pub(crate) fn add_count(&self, table: Pfn, more: u64) {
        let word = self.frames.owner_word(table);
        self.frames.set_owner_word(table, word + more);
    }

    /// Counts `fewer` entries less in use in `table`.
    pub(crate) fn sub_count(&self, table: Pfn, fewer: u64) {
        debug_assert!(self.count(table) >= fewer);
        let word = self.frames.owner_word(table);
        self.frames.set_owner_word(table, word - fewer);
    }

    /// Unlinks the tables on the way to `page` that are empty, except the root, and passes each to `give`. They may be
    /// freed after the next shoot-down.
    pub(crate) fn prune(&self, state: &mut SpaceState, page: Page, mut give: impl FnMut(Pfn)) {
        let mut path = [state.root; LEAF_DEPTH + 1];
        let mut depth = 0;
        while depth < LEAF_DEPTH {
            let entry = self.entry(path[depth], page.index(depth));
            if entry.kind(depth) != Kind::Table {
                break;
            }
            depth += 1;
            path[depth] = entry.frame();
        }
        while depth > 0 && self.count(path[depth]) == 0 {
            if depth == LEAF_DEPTH && state.leaf.is_some_and(|(_, table)| table == path[depth]) {
                state.leaf = None;
            }
            self.set_entry(path[depth - 1], page.index(depth - 1), Entry::EMPTY);
            self.sub_count(path[depth - 1], 1);
            state.tables -= 1;
            give(path[depth]);
            depth -= 1;
        }
    }

    /// Keeps a table for the split of a huge page.
    pub(crate) fn deposit_table(&self, state: &mut SpaceState, table: Pfn) {
        self.frames
            .set_owner_word(table, state.deposit.map_or(0, |next| next.get() + 1));
        state.deposit = Some(table);
        state.tables += 1;
    }

    /// Takes one of the deposited tables, zeroed and with a count of 0. There is one for each huge page.
    pub(crate) fn withdraw_table(&self, state: &mut SpaceState) -> Option<Pfn> {
        let table = state.deposit?;
        let next = self.frames.owner_word(table);
        state.deposit = next.checked_sub(1).map(Pfn::new);
        state.tables -= 1;
        self.frames.set_owner_word(table, 0);
        Some(table)
    }

    /// Frees a table frame that no page walk can reach any more.
    pub(crate) fn free_table(&self, table: Pfn) {
        self.free(table, dirigible_frames::Order::BASE);
    }
}
