//! Migration of mapped frames: migration entry, shoot-down, copy, new mapping, in that order.

use crate::{
    entry::Kind,
    page::{HUGE_DEPTH, Page},
    paging::Paging,
    space::{OwnerWord, SpaceState},
    tables::Place,
};
use dirigible_frames::{Cost, FrameFlags, FrameState, Order, PageTables, Pfn, sync::MutexGuard};
use dirigible_mobility::{Fate, MovableOwner, MovePair, Outcome};
use dirigible_reclaim::Evictable;

impl<P: PageTables> MovableOwner for Paging<'_, P> {
    fn isolate(&self, frame: Pfn) -> bool {
        self.frames.try_isolate(frame, self.owner).is_ok()
    }

    /// Old pages go into swap, if there is room.
    fn plan(&self, frame: Pfn) -> Fate {
        let old = self.generations.is_some_and(|g| g.is_old(frame));
        if old && self.has_swap() && !self.is_in_use(frame) {
            Fate::Write
        } else {
            Fate::Move
        }
    }

    fn write_frames(&self, frames: &[Pfn]) -> usize {
        self.swap_out(frames)
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        let mut hint = None;
        for pair in pairs.iter_mut() {
            pair.outcome = match self.begin_move(pair) {
                Begin::Frozen(word) => {
                    hint.get_or_insert(word);
                    Outcome::Todo
                }
                Begin::Refused => Outcome::Refused,
                Begin::Detached => {
                    hint.get_or_insert(OwnerWord::DETACHED);
                    Outcome::Released
                }
            };
        }
        let Some(hint) = hint else { return };
        // Also for released frames: the unmap that detached them may not have done its shoot-down yet, and mobility
        // frees them when this function returns.
        self.platform
            .shoot_down(hint.space().get(), hint.page().address());
        for pair in pairs
            .iter_mut()
            .filter(|pair| pair.outcome == Outcome::Todo)
        {
            let count = pair.frames();
            self.platform.copy_frames(pair.from, pair.to, count);
            self.platform.charge(Cost::MoveFrame(count as u32));
            let word = OwnerWord(self.frames.owner_word(pair.from));
            if let Some(observer) = self.observer {
                observer.moved(word.space(), word.page(), pair.to, pair.order);
            }
            self.finish_move(pair.from, pair.to, word);
            pair.outcome = Outcome::Moved;
        }
    }

    fn putback(&self, frame: Pfn) {
        match self.lock_mapper(frame) {
            Some((_state, _page)) => {
                // Under the lock, so that an unmap sees the frame either isolated or listed, and exactly one of the two
                // frees it.
                self.must_transition(frame, FrameState::Isolated, FrameState::Listed);
            }
            None => {
                let order = self.frames.order(frame);
                self.must_transition(frame, FrameState::Isolated, FrameState::Allocated);
                self.platform.shoot_down(0, 0);
                self.free(frame, order);
            }
        }
    }
}

/// How the move of one frame began.
enum Begin {
    /// A migration entry replaces the mapping that the word names.
    Frozen(OwnerWord),
    /// The mapping has not changed.
    Refused,
    /// The frame was unmapped meanwhile.
    Detached,
}

impl<P: PageTables> Paging<'_, P> {
    /// Locks the space that maps `frame`, which is isolated or pinned; `None` if it was unmapped meanwhile, and the
    /// caller must free it. Its frame is in no generation then. The mapping does not change while the lock is held.
    pub(crate) fn lock_mapper(&self, frame: Pfn) -> Option<(MutexGuard<'_, SpaceState>, Page)> {
        let word = OwnerWord(self.frames.owner_word(frame));
        if word == OwnerWord::DETACHED {
            return None;
        }
        let state = self.slot(word.space())?.state.lock();
        // Only an unmap changes the word of such a frame: to `DETACHED`, under this lock. Any other frame may have become
        // somebody else's, and the word name a space that is gone.
        let exists = state.id != 0 && state.space() == word.space();
        let same = exists && self.frames.owner_word(frame) == word.0;
        same.then(|| (state, word.page()))
    }

    /// Replaces the mapping of an isolated frame by a migration entry.
    fn begin_move(&self, pair: &MovePair) -> Begin {
        let Some((state, page)) = self.lock_mapper(pair.from) else {
            self.must_transition(pair.from, FrameState::Isolated, FrameState::Allocated);
            return Begin::Detached;
        };
        let place = self.peek(&state, page);
        let fits = (place.depth == HUGE_DEPTH) == (pair.order == Order::HUGE);
        let named = place.kind() == Kind::Leaf && place.entry.frame() == pair.from;
        debug_assert!(fits && named, "{} is not mapped where it says", pair.from);
        if !fits || !named || self.is_pinned(pair.from) {
            return Begin::Refused;
        }
        self.freeze_entry(&place);
        Begin::Frozen(OwnerWord::new(state.space(), page))
    }

    /// Replaces the migration entry of `from` by a mapping of `to`.
    fn finish_move(&self, from: Pfn, to: Pfn, word: OwnerWord) {
        self.frames.set_owner(to, self.owner, word.0);
        match self.generations {
            Some(generations) => generations.moved(from, to),
            None => {
                let kept = FrameFlags::DIRTY.union(FrameFlags::REFERENCED).bits();
                let marks = self.frames.flags(from).bits() & kept;
                self.frames.set_flags(to, FrameFlags::from_bits(marks));
                self.frames.set_generation(to, self.frames.generation(from));
            }
        }
        let Some(slot) = self.slot(word.space()) else {
            return;
        };
        let state = slot.state.lock();
        // Unmap and destroy wait for migration entries, so the entry and the tables on the way to it are unchanged.
        let Place {
            table,
            index,
            entry,
            depth,
        } = self.peek(&state, word.page());
        debug_assert!(entry.kind(depth) == Kind::Migration && entry.frame() == from);
        if state.kept {
            // The space was exempted while the migration entry stood here.
            self.forget_age(to);
        }
        self.set_entry(table, index, entry.restored(to));
        self.must_transition(to, FrameState::Allocated, FrameState::Listed);
        self.must_transition(from, FrameState::Isolated, FrameState::Allocated);
    }
}
