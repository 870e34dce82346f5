//! Pins: a frame that is in use outside the page tables cannot move.

use crate::{
    entry::Kind,
    page::Page,
    paging::{Paging, frame_of},
    space::SpaceId,
};
use dirigible_frames::{FrameFlags, FrameState, PageTables, Pfn};

impl<P: PageTables> Paging<'_, P> {
    /// Keeps `page` in its frame until [`Paging::unpin`], and gives the frame; `None` if the page is not mapped, or in
    /// swap. Waits while the frame is isolated. A huge page is pinned as a whole. A page can have up to 31 pins; another
    /// one waits until one of them ends.
    ///
    /// If the page is unmapped meanwhile, its frame is freed when the last pin ends.
    pub fn pin(&self, space: SpaceId, page: Page) -> Option<Pfn> {
        let slot = self.slot(space).filter(|_| self.may_map(page))?;
        loop {
            {
                let state = slot.state.lock();
                if state.id != space.get() {
                    return None;
                }
                let place = self.peek(&state, page);
                let head = place.entry.frame();
                match place.kind() {
                    Kind::Empty | Kind::Table | Kind::Swapped => return None,
                    // A pinned frame is `Allocated`, not `Listed`: its isolation fails in one step, without a look at
                    // any flag.
                    Kind::Leaf
                        if self.frames.state(head) == FrameState::Allocated
                            || self
                                .frames
                                .transition(head, FrameState::Listed, FrameState::Allocated)
                                .is_ok() =>
                    {
                        if self.frames.get_ref(head) {
                            self.frames.set_flags(head, FrameFlags::PINNED);
                            return Some(frame_of(place.entry, place.depth, page));
                        }
                        // There are 31 pins: waits until one of them ends.
                    }
                    Kind::Leaf | Kind::Migration => {}
                }
            }
            self.platform.relax();
        }
    }

    /// Ends one pin of the frame that [`Paging::pin`] gave.
    pub fn unpin(&self, frame: Pfn) {
        let head = self.frames.head(frame);
        match self.lock_mapper(head) {
            Some(_lock) => {
                if self.is_last(head) {
                    self.must_transition(head, FrameState::Allocated, FrameState::Listed);
                }
            }
            None => {
                let last = {
                    let _one_at_a_time = self.last_pin.lock();
                    self.is_last(head)
                };
                if last {
                    self.platform.shoot_down(0, 0);
                    self.free(head, self.frames.order(head));
                }
            }
        }
    }

    /// Drops a reference; gives whether it was the last one. The space's lock or `last_pin` is held.
    fn is_last(&self, head: Pfn) -> bool {
        let dropped = self.frames.put_ref(head);
        debug_assert!(dropped, "{head} was not pinned");
        let last = dropped
            && self
                .frames
                .frame(head)
                .is_some_and(|info| info.refcount == 0);
        if last {
            self.frames.clear_flags(head, FrameFlags::PINNED);
        }
        last
    }
}
