//! Splits huge pages into base pages. This needs no memory: the table was deposited when the huge page was mapped.
//!
//! An unmap of a part splits at once. There is no queue of huge pages to be split when memory is wanted (Linux has
//! one, since other mappings of the page may need it whole): here a frame is mapped once, so the split ends with the
//! mapping, and the frames of the part are free when the unmap returns.

use crate::{
    eligible::ELIGIBLE,
    entry::{Entry, Kind},
    page::{ENTRIES, HUGE_DEPTH, Page},
    paging::Paging,
    space::{OwnerWord, SpaceId, SpaceState},
    tables::Place,
};
use dirigible_frames::{Event, FrameState, PageTables};
use dirigible_reclaim::Age;

/// Why a huge page was not split. The mapping has not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SplitError {
    /// The page is not mapped by a huge page.
    #[error("not a huge page")]
    NotHuge,
    /// The huge page is isolated, being moved, or pinned.
    #[error("the huge page is busy")]
    Busy,
}

impl<P: PageTables> Paging<'_, P> {
    /// Splits the huge page that contains `page`: the same frames are then mapped as base pages. For reclaim each of them
    /// has an age of its own from then on, which begins as [`Age::New`].
    ///
    /// # Errors
    ///
    /// See [`SplitError`].
    pub fn split_huge(&self, space: SpaceId, page: Page) -> Result<(), SplitError> {
        let slot = self.slot(space).ok_or(SplitError::NotHuge)?;
        let mut state = slot.state.lock();
        if state.id != space.get() || !self.may_map(page) {
            return Err(SplitError::NotHuge);
        }
        let place = self.peek(&state, page);
        match (place.kind(), place.depth) {
            (Kind::Leaf, HUGE_DEPTH) => self.split_locked(&mut state, page.huge_base(), &place),
            (Kind::Migration, HUGE_DEPTH) => Err(SplitError::Busy),
            _ => Err(SplitError::NotHuge),
        }
    }

    /// Splits the huge page at `place`, whose first page is `base`.
    pub(crate) fn split_locked(
        &self,
        state: &mut SpaceState,
        base: Page,
        place: &Place,
    ) -> Result<(), SplitError> {
        let head = place.entry.frame();
        // Prevents isolation; fails if the huge page is isolated or pinned.
        if self
            .frames
            .transition(head, FrameState::Listed, FrameState::Allocated)
            .is_err()
        {
            return Err(SplitError::Busy);
        }
        let Some(table) = self.withdraw_table(state) else {
            debug_assert!(false, "a huge page without a deposited table");
            self.must_transition(head, FrameState::Allocated, FrameState::Listed);
            return Err(SplitError::Busy);
        };
        // Page walks wait at the migration entry, so no mark is lost, and no CPU holds translations of both sizes at
        // once. The shoot-down under the lock cannot deadlock, as no lock is taken inside an access section.
        let frozen = self.freeze_entry(place);
        self.platform
            .shoot_down(state.space().get(), base.address());
        // Before the split, which copies the head's word: each part is counted on its own afterwards.
        self.forget_age(head);
        self.frames.split_huge(head);
        for index in 0..ENTRIES {
            let word = OwnerWord::new(state.space(), base.plus(index));
            self.frames.set_owner(head.plus(index), self.owner, word.0);
            self.set_age(state, head.plus(index), Age::New);
            self.set_entry(table, index as usize, frozen.part(index));
        }
        // Who mapped the huge page has said that the whole range is the program's.
        self.frames.set_owner_word(table, ENTRIES | ELIGIBLE);
        self.set_entry(place.table, place.index, Entry::table(table));
        for index in 0..ENTRIES {
            let frame = head.plus(index);
            self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
        }
        state.tables += 1;
        state.huge -= 1;
        state.base += ENTRIES;
        self.frames
            .events()
            .add(self.platform.cpu(), Event::ThpSplit, 1);
        Ok(())
    }
}
