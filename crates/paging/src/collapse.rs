//! Collapse: the base pages of an aligned 2 MiB range are copied into a huge page, which replaces them.
//!
//! The order is that of a migration. The last-level table is hidden behind one migration entry at the level above,
//! after all of its frames were isolated; a shoot-down follows; then nobody has a translation of the range, and nobody
//! changes the table. The pages are copied with no lock held. At last the huge page replaces the migration entry, the
//! table is kept for a split, and the old frames are freed.

use arrayvec::ArrayVec;
use dirigible_frames::{AllocRequest, Cost, Event, FrameClass, FrameState, Order, PageTables, Pfn};
use dirigible_reclaim::Age;

use crate::{
    entry::{Entry, Kind},
    page::{ENTRIES, HUGE_DEPTH, LEAF_DEPTH, Page},
    paging::Paging,
    source::PageSource,
    space::{OwnerWord, Slot, SpaceId, SpaceState},
    tables::Place,
};

/// Frames that are freed together.
const BATCH: usize = 64;

/// Which ranges are worth a huge page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CollapseConfig {
    /// Most pages of the range that may be unmapped; they are filled. Default 511, as Linux's `max_ptes_none`: one page
    /// is enough.
    pub max_none: u64,
}

impl Default for CollapseConfig {
    fn default() -> Self {
        Self { max_none: 511 }
    }
}

/// A huge page that has replaced base pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collapsed {
    /// Its first frame.
    pub head: Pfn,
    /// Pages that were copied.
    pub copied: u64,
    /// Pages that were not mapped before, and were filled.
    pub filled: u64,
}

/// Why base pages were not replaced. Nothing is mapped otherwise than before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CollapseError {
    /// The address space does not exist.
    #[error("no such address space")]
    NoSuchSpace,
    /// No fault has asked for a huge page there, a part was unmapped since, or it is a huge page already.
    #[error("not eligible")]
    NotEligible,
    /// More pages than [`CollapseConfig::max_none`] are not mapped.
    #[error("too few pages are mapped")]
    Sparse,
    /// No page was used since the last look at the accessed bits.
    #[error("no page is in use")]
    Unused,
    /// A page of the range is in swap, isolated, being moved, or pinned.
    #[error("a page is busy")]
    Busy,
    /// There is no huge page.
    #[error("out of memory")]
    OutOfMemory,
}

/// A last-level table whose pages can be collapsed, found under the lock.
struct Candidate {
    /// The entry that names it, at [`HUGE_DEPTH`].
    upper: Place,
    table: Pfn,
}

/// What was found in the table while it was copied.
struct Copied {
    /// The old frames.
    frames: ArrayVec<Pfn, { ENTRIES as usize }>,
    accessed: bool,
    dirty: bool,
}

impl<P: PageTables> Paging<'_, P> {
    /// Replaces the base pages of the aligned 2 MiB range around `page` by a huge page, which is allocated from
    /// `memory` with no lock held. `fill` gets each page of the range that is not mapped, and the frame in which it
    /// writes the page's contents as a fault would.
    ///
    /// Faults, unmaps and accesses of the range wait while it is copied. `fill` and the observer of moves are called
    /// then, with no lock held, so they must not make any.
    ///
    /// # Errors
    ///
    /// See [`CollapseError`]. The range is looked at again when the huge page was allocated: if it has changed so that
    /// it cannot be collapsed any more, the huge page is freed.
    pub fn collapse(
        &self,
        space: SpaceId,
        page: Page,
        config: CollapseConfig,
        memory: &dyn PageSource,
        mut fill: impl FnMut(Page, Pfn),
    ) -> Result<Collapsed, CollapseError> {
        let slot = self.slot(space).ok_or(CollapseError::NoSuchSpace)?;
        let base = page.huge_base();
        self.candidate(&slot.state.lock(), space, base, config)?;
        let head = self.collapse_target(memory)?;
        let hidden = {
            let mut state = slot.state.lock();
            self.candidate(&state, space, base, config)
                .and_then(|candidate| self.hide(&mut state, &candidate))
        };
        let table = hidden.inspect_err(|_| memory.free(head, Order::HUGE))?;
        self.platform.shoot_down(space.get(), base.address());
        let copied = self.copy_hidden(table, base, head, &mut fill);
        if let Some(observer) = self.observer {
            observer.moved(space, base, head, Order::HUGE);
        }
        self.install_collapsed(slot, table, OwnerWord::new(space, base), head, &copied);
        self.free_collapsed(&copied.frames);
        self.frames
            .events()
            .add(self.platform.cpu(), Event::ThpCollapse, 1);
        let count = copied.frames.len() as u64;
        Ok(Collapsed {
            head,
            copied: count,
            filled: ENTRIES - count,
        })
    }

    fn collapse_target(&self, memory: &dyn PageSource) -> Result<Pfn, CollapseError> {
        let got = memory.alloc(AllocRequest::new(Order::HUGE, FrameClass::Movable));
        let event = match got {
            Ok(_) => Event::ThpCollapseAlloc,
            Err(_) => Event::ThpCollapseAllocFailed,
        };
        self.frames.events().add(self.platform.cpu(), event, 1);
        got.map_err(|_| CollapseError::OutOfMemory)
    }

    /// Looks whether the range that begins with `base` can be collapsed. The lock is held.
    fn candidate(
        &self,
        state: &SpaceState,
        space: SpaceId,
        base: Page,
        config: CollapseConfig,
    ) -> Result<Candidate, CollapseError> {
        if state.id != space.get() {
            return Err(CollapseError::NoSuchSpace);
        }
        let upper = self
            .upper_entry(state, base)
            .ok_or(CollapseError::NotEligible)?;
        let table = match upper.entry.kind(HUGE_DEPTH) {
            Kind::Table => upper.entry.frame(),
            Kind::Migration => return Err(CollapseError::Busy),
            _ => return Err(CollapseError::NotEligible),
        };
        if !self.is_eligible(table) {
            return Err(CollapseError::NotEligible);
        }
        if ENTRIES - self.count(table) > config.max_none {
            return Err(CollapseError::Sparse);
        }
        let mut used = false;
        for index in 0..ENTRIES as usize {
            let entry = self.entry(table, index);
            match entry.kind(LEAF_DEPTH) {
                Kind::Empty => {}
                Kind::Leaf if self.can_collapse(entry.frame()) => used |= entry.is_accessed(),
                _ => return Err(CollapseError::Busy),
            }
        }
        if used {
            Ok(Candidate { upper, table })
        } else {
            Err(CollapseError::Unused)
        }
    }

    /// Whether nobody has the mapped `frame` in hand. A hint, unless it is isolated.
    fn can_collapse(&self, frame: Pfn) -> bool {
        self.frames.state(frame) == FrameState::Listed && !self.is_pinned(frame)
    }

    /// The entry for the range that begins with `base`; `None` if there is no table of [`HUGE_DEPTH`] for it. The lock
    /// is held.
    fn upper_entry(&self, state: &SpaceState, base: Page) -> Option<Place> {
        if !self.may_map(base) {
            return None;
        }
        let mut table = state.root;
        for depth in 0..HUGE_DEPTH {
            let entry = self.entry(table, base.index(depth));
            if entry.kind(depth) != Kind::Table {
                return None;
            }
            table = entry.frame();
        }
        let index = base.index(HUGE_DEPTH);
        Some(Place {
            table,
            depth: HUGE_DEPTH,
            index,
            entry: self.entry(table, index),
        })
    }

    /// Isolates all frames of a candidate and hides its table, which it gives. If a frame cannot be isolated, all are
    /// as before. The lock is held.
    fn hide(&self, state: &mut SpaceState, found: &Candidate) -> Result<Pfn, CollapseError> {
        for index in 0..ENTRIES as usize {
            let entry = self.entry(found.table, index);
            let isolated =
                entry == Entry::EMPTY || self.frames.try_isolate(entry.frame(), self.owner).is_ok();
            if !isolated {
                self.put_all_back(found.table, index);
                return Err(CollapseError::Busy);
            }
        }
        let Place { table, index, .. } = found.upper;
        self.set_entry(table, index, Entry::hidden(found.table));
        if state.leaf.is_some_and(|(_, leaf)| leaf == found.table) {
            state.leaf = None;
        }
        Ok(found.table)
    }

    /// Lists the frames of the first `count` entries again. The lock is held, so no unmap has seen them isolated.
    fn put_all_back(&self, table: Pfn, count: usize) {
        for index in 0..count {
            let entry = self.entry(table, index);
            if entry != Entry::EMPTY {
                self.must_transition(entry.frame(), FrameState::Isolated, FrameState::Listed);
            }
        }
    }

    /// Copies the pages of a hidden table, and fills the others. No lock is held: nobody else changes the table now,
    /// and since the shoot-down no processor sets a mark in it.
    fn copy_hidden(
        &self,
        table: Pfn,
        base: Page,
        head: Pfn,
        fill: &mut impl FnMut(Page, Pfn),
    ) -> Copied {
        let mut copied = Copied {
            frames: ArrayVec::new(),
            accessed: false,
            dirty: false,
        };
        for index in 0..ENTRIES {
            let entry = self.entry(table, index as usize);
            let to = head.plus(index);
            if entry == Entry::EMPTY {
                fill(base.plus(index), to);
                self.platform.charge(Cost::FillFrame);
            } else {
                self.platform.copy_frames(entry.frame(), to, 1);
                copied.accessed |= entry.is_accessed();
                copied.dirty |= entry.is_dirty();
                copied.frames.push(entry.frame());
            }
        }
        let count = copied.frames.len() as u32;
        self.platform.charge(Cost::MoveFrame(count));
        copied
    }

    /// Replaces the hidden `table` of the range that `word` names by the huge page.
    fn install_collapsed(
        &self,
        slot: &Slot,
        table: Pfn,
        word: OwnerWord,
        head: Pfn,
        copied: &Copied,
    ) {
        self.frames.set_owner(head, self.owner, word.0);
        let mut leaf = Entry::leaf(head, Order::HUGE);
        if copied.dirty {
            leaf = leaf.touched(true);
        }
        if !copied.accessed {
            leaf = leaf.aged();
        }
        let mut state = slot.state.lock();
        self.set_age(&state, head, Age::Young);
        // Unmap and destroy wait for migration entries, so the tables on the way are unchanged, and the space is there.
        let Some(upper) = self.upper_entry(&state, word.page()) else {
            debug_assert!(false, "a hidden table was unlinked");
            return;
        };
        debug_assert!(upper.entry.hides_table(HUGE_DEPTH) && upper.entry.frame() == table);
        self.set_entry(upper.table, upper.index, leaf);
        self.platform.zero_frames(table, 1);
        state.tables -= 1;
        self.deposit_table(&mut state, table);
        state.base -= copied.frames.len() as u64;
        state.huge += 1;
        // Last, as `isolate` takes only listed frames, and `migrate` expects their entry.
        self.must_transition(head, FrameState::Allocated, FrameState::Listed);
    }

    /// Frees the frames of the base pages: no entry names them, and the shoot-down was before the copy.
    fn free_collapsed(&self, frames: &[Pfn]) {
        for batch in frames.chunks(BATCH) {
            for &frame in batch {
                self.forget_age(frame);
                self.must_transition(frame, FrameState::Isolated, FrameState::Allocated);
            }
            let freed = self.frames.free_bulk(self.platform.cpu(), batch);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}
