//! Giving pages to swap: swapped entries, one shoot-down, and then the frames are given away.

use crate::{
    entry::{Entry, Kind},
    page::HUGE_DEPTH,
    paging::Paging,
    space::{OwnerWord, SpaceState},
    swap::SwapSpace,
    tables::Place,
};
use arrayvec::ArrayVec;
use dirigible_frames::{Event, FrameState, Order, PageTables, Pfn};
use dirigible_mobility::MovableOwner;
use dirigible_reclaim::Age;

/// Most frames that one shoot-down and one call of `write_out` serve.
const BATCH: usize = 32;

/// What became of one frame.
enum Fate {
    /// A swapped entry replaces the mapping that the word names. Nobody else has the frame.
    Leaves(OwnerWord),
    /// It was put back, or freed if it was unmapped meanwhile.
    Stays,
}

impl<P: PageTables> Paging<'_, P> {
    /// Gives isolated frames to `swap`, and gives how many. The others are put back. No lock is held, or a zone's
    /// compaction.
    pub(crate) fn swap_out_all(&self, frames: &[Pfn], swap: &dyn SwapSpace) -> usize {
        frames
            .chunks(BATCH)
            .map(|frames| self.swap_out_batch(frames, swap))
            .sum()
    }

    fn swap_out_batch(&self, frames: &[Pfn], swap: &dyn SwapSpace) -> usize {
        let mut numbers = [0; BATCH];
        let wanted = frames
            .iter()
            .filter(|&&frame| self.frames.order(frame) == Order::BASE)
            .count();
        let got = swap.take_slots(&mut numbers[..wanted]).min(wanted);
        let mut free = numbers[..got].iter().copied();
        let mut unused = ArrayVec::<u64, BATCH>::new();
        let mut leaving = ArrayVec::<Pfn, BATCH>::new();
        let mut slots = ArrayVec::<u64, BATCH>::new();
        let mut hint = None;
        let mut missing = 0;
        for &frame in frames {
            if self.frames.order(frame) != Order::BASE {
                self.split_isolated(frame);
                continue;
            }
            let Some(slot) = unused.pop().or_else(|| free.next()) else {
                missing += 1;
                self.putback(frame);
                continue;
            };
            match self.begin_swap_out(frame, slot, swap) {
                Fate::Leaves(word) => {
                    hint.get_or_insert(word);
                    leaving.push(frame);
                    slots.push(slot);
                }
                // The next frame takes it.
                Fate::Stays => unused.push(slot),
            }
        }
        unused.extend(free);
        if missing > 0 {
            let cpu = self.platform.cpu();
            self.frames.events().add(cpu, Event::SwapFull, missing);
        }
        if let Some(hint) = hint {
            self.platform
                .shoot_down(hint.space().get(), hint.page().address());
            for (&frame, &slot) in leaving.iter().zip(&slots) {
                self.forget_age(frame);
                self.must_transition(frame, FrameState::Isolated, FrameState::Allocated);
                swap.adopt(slot, frame);
            }
            swap.write_out(&slots);
        }
        if !unused.is_empty() {
            swap.free(&unused);
        }
        leaving.len()
    }

    /// Replaces the mapping of an isolated base frame by an entry for `slot`, or puts the frame back.
    fn begin_swap_out(&self, frame: Pfn, slot: u64, swap: &dyn SwapSpace) -> Fate {
        let Some((mut state, page)) = self.lock_mapper(frame) else {
            // Frees it.
            self.putback(frame);
            return Fate::Stays;
        };
        let place = self.peek(&state, page);
        let named =
            place.kind() == Kind::Leaf && place.depth != HUGE_DEPTH && place.entry.frame() == frame;
        debug_assert!(named, "{frame} is not mapped where it says");
        let in_use = place.entry.is_accessed();
        let leaves = named
            && !in_use
            && !state.kept
            && !self.is_pinned(frame)
            && slot <= Entry::MAX_SLOT
            && swap.promise(slot, frame);
        if leaves {
            if self.replace(&place, Entry::swapped(slot)) {
                state.base -= 1;
                state.swapped += 1;
                return Fate::Leaves(OwnerWord::new(state.space(), page));
            }
            swap.withdraw(slot, frame);
        }
        // Also if the replacement failed: an access has set a mark at this moment.
        if in_use || leaves {
            self.keep_used(&state, &place, frame);
        }
        // Under the lock, as in `putback`.
        self.must_transition(frame, FrameState::Isolated, FrameState::Listed);
        Fate::Stays
    }

    /// Whether a base frame was used since its accessed bit was cleared, or cannot go. A hint: one that is not isolated may
    /// be somebody else's by now.
    pub(crate) fn is_in_use(&self, frame: Pfn) -> bool {
        self.lock_mapper(frame).is_none_or(|(state, page)| {
            if state.kept || !self.may_map(page) {
                return true;
            }
            let place = self.peek(&state, page);
            place.kind() != Kind::Leaf || place.entry.frame() != frame || place.entry.is_accessed()
        })
    }

    /// `frame` was used: it becomes young, and its accessed bit is cleared, so that the next look finds out whether it
    /// was used again. There is no shoot-down, as in Linux: while a processor has the translation cached it sets no bit,
    /// which is a mistake about an age only.
    fn keep_used(&self, state: &SpaceState, place: &Place, frame: Pfn) {
        self.set_age(state, frame, Age::Young);
        // Fails if an access sets a mark at this moment: then the frame is in use indeed.
        self.replace(place, place.entry.aged());
    }

    /// Replaces the entry, unless a page walk has set a mark since it was read. The lock is held.
    fn replace(&self, place: &Place, entry: Entry) -> bool {
        self.platform
            .compare_exchange_entry(place.table, place.index, place.entry.bits(), entry.bits())
            .is_ok()
    }

    /// Puts an isolated huge page back, and splits it: its parts are met one by one. If it was used, it stays whole.
    fn split_isolated(&self, head: Pfn) {
        let Some((mut state, page)) = self.lock_mapper(head) else {
            self.putback(head);
            return;
        };
        let place = self.peek(&state, page);
        debug_assert!(place.depth == HUGE_DEPTH && place.entry.frame() == head);
        let in_use = place.entry.is_accessed();
        if in_use {
            self.keep_used(&state, &place, head);
        }
        self.must_transition(head, FrameState::Isolated, FrameState::Listed);
        if in_use || state.kept || place.kind() != Kind::Leaf || place.depth != HUGE_DEPTH {
            return;
        }
        // Fails if compaction has isolated it at this moment: another time.
        let _ = self.split_locked(&mut state, page, &place);
    }
}
