//! Moving mapped frames: migration entry, shoot-down, copy, new mapping, in that order.

use crate::{
    entry::Kind,
    page::{HUGE_DEPTH, Page},
    paging::Paging,
    space::{OwnerWord, SpaceState},
    tables::Place,
};
use dirigible_frames::{Cost, FrameFlags, FrameState, Order, PageTables, Pfn, sync::MutexGuard};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};

impl<P: PageTables> MovableOwner for Paging<'_, P> {
    fn isolate(&self, frame: Pfn) -> bool {
        self.frames.try_isolate(frame, self.owner).is_ok()
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
        // Also for released frames: their unmapper may not have come to its own shoot-down yet, and the core frees them
        // when we return.
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
                // Under the lock, so that an unmap sees the frame isolated or listed and leaves it to one of us.
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
    /// A migration entry stands for the mapping that the word names.
    Frozen(OwnerWord),
    /// The mapping stays as it is.
    Refused,
    /// There is no mapping any more.
    Detached,
}

impl<P: PageTables> Paging<'_, P> {
    /// Locks the space that maps `frame`, a frame that the caller has isolated or pinned; `None` if it was unmapped
    /// meanwhile and is the caller's to free. While the lock is held the mapping stays.
    pub(crate) fn lock_mapper(&self, frame: Pfn) -> Option<(MutexGuard<'_, SpaceState>, Page)> {
        let word = OwnerWord(self.frames.owner_word(frame));
        if word == OwnerWord::DETACHED {
            return None;
        }
        let state = self.slot(word.space())?.state.lock();
        // Only an unmap changes the word of such a frame, to `DETACHED`, under this lock.
        (self.frames.owner_word(frame) == word.0).then(|| (state, word.page()))
    }

    /// Puts a migration entry in the place of the mapping of an isolated frame.
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

    /// Maps `to` where the migration entry of `from` stands.
    fn finish_move(&self, from: Pfn, to: Pfn, word: OwnerWord) {
        let kept = FrameFlags::DIRTY.union(FrameFlags::REFERENCED).bits();
        let marks = self.frames.flags(from).bits() & kept;
        self.frames.set_flags(to, FrameFlags::from_bits(marks));
        self.frames.set_generation(to, self.frames.generation(from));
        self.frames.set_owner(to, self.owner, word.0);
        let Some(slot) = self.slot(word.space()) else {
            return;
        };
        let state = slot.state.lock();
        // Unmap and destroy wait for migration entries, so it is still there, and the tables above it.
        let Place {
            table,
            index,
            entry,
            depth,
        } = self.peek(&state, word.page());
        debug_assert!(entry.kind(depth) == Kind::Migration && entry.frame() == from);
        self.set_entry(table, index, entry.restored(to));
        self.must_transition(to, FrameState::Allocated, FrameState::Listed);
        self.must_transition(from, FrameState::Isolated, FrameState::Allocated);
    }
}
