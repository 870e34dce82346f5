//! Moving pages to other frames.

use dirigible_frames::{Cost, FrameContents, FrameFlags, FrameState, Order, Pfn};
use dirigible_mobility::{Fate, MovableOwner, MovePair, Outcome};

use crate::cache::PageCache;
use crate::removing::DETACHED;
use crate::slot::Slot;

impl<P: FrameContents> MovableOwner for PageCache<'_, P> {
    fn isolate(&self, frame: Pfn) -> bool {
        // A look, not a promise: `migrate` finds out.
        let in_use = self.frames.frame(frame).is_none_or(|info| {
            let stuck = FrameFlags::WRITEBACK
                .union(FrameFlags::LOCKED)
                .union(FrameFlags::ABANDONED);
            info.refcount > 0 || info.flags.intersects(stuck)
        });
        !in_use && self.frames.try_isolate(frame, self.owner).is_ok()
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        for pair in pairs {
            pair.outcome = self.move_page(pair);
        }
    }

    fn plan(&self, frame: Pfn) -> Fate {
        if self.is_cold(frame) {
            Fate::Drop
        } else {
            Fate::Move
        }
    }

    fn drop_frame(&self, frame: Pfn) -> bool {
        self.drop_cold(frame)
    }

    /// Takes what the disk has finished: frames that were written before they are dropped.
    fn poll(&self, _deadline: u64) -> bool {
        PageCache::poll(self)
    }

    fn putback(&self, frame: Pfn) {
        self.put_back_frame(frame);
    }
}

impl<P: FrameContents> PageCache<'_, P> {
    fn move_page(&self, pair: &MovePair) -> Outcome {
        let MovePair {
            from, to, order, ..
        } = *pair;
        let Some(slot) = Slot::present(to).filter(|_| order == Order::BASE) else {
            return Outcome::Refused;
        };
        // The frame is isolated, so its word does not change.
        let block = self.frames.owner_word(from);
        let locked = block < self.block_count()
            && self
                .lock(block, from, FrameFlags::ABANDONED, true)
                .is_some();
        if !locked {
            let found = self.frames.flags(from);
            if found.contains(DETACHED) && !found.contains(FrameFlags::ABANDONED) {
                self.must_transition(from, FrameState::Isolated, FrameState::Allocated);
                return Outcome::Released;
            }
            return Outcome::Refused;
        }
        // Locked, without references, and not being written: nobody changes the contents.
        self.platform.copy_frames(from, to, 1);
        self.platform.charge(Cost::MoveFrame(1));
        if let Some(observer) = self.observer {
            observer.moved(block, from, to);
        }
        self.frames.set_owner(to, self.owner, block);
        // The marks go with it.
        self.generations.moved(from, to);
        self.set_slot(block, slot);
        // Who finds `from` in the slot it looked at before sees it locked or allocated, and looks again.
        self.must_transition(to, FrameState::Allocated, FrameState::Listed);
        self.must_transition(from, FrameState::Isolated, FrameState::Allocated);
        Outcome::Moved
    }
}
