//! Pins: a frame that somebody outside the page tables uses stays where it is.

use crate::{
    entry::Kind,
    page::Page,
    paging::{Paging, frame_of},
    space::SpaceId,
};
use dirigible_frames::{FrameFlags, FrameState, PageTables, Pfn};

impl<P: PageTables> Paging<'_, P> {
    /// Keeps `page` in its frame until [`Paging::unpin`], and gives the frame; `None` if the page is not mapped. Waits
    /// while the frame is isolated. A huge page is pinned whole. Pins count: up to 31 of one page, a further one waits
    /// until one of them ends.
    ///
    /// The page may be unmapped meanwhile; the frame is then freed at the last unpin.
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
                    Kind::Empty | Kind::Table => return None,
                    // A pinned frame is `Allocated`, not `Listed`: isolation's one step fails, no flag need be looked
                    // at.
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
                        // 31 pins already: wait for one to end.
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

    /// Drops a reference; whether it was the last. The space's lock is held, or `last_pin`.
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
