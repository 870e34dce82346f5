//! Access to mapped memory by page walks in software.

use crate::{
    entry::Kind,
    page::Page,
    paging::{Paging, frame_of},
    space::{Slot, SpaceId},
    tables::walk,
};
use dirigible_frames::{PageTables, Pfn};

/// The result of one walk.
enum Touch {
    Frame(Pfn),
    Absent,
    Migrating,
}

/// An access section, which ends when this value is dropped.
struct Section<'p, P: PageTables>(&'p P);

impl<'p, P: PageTables> Section<'p, P> {
    fn enter(platform: &'p P) -> Self {
        platform.enter_access();
        Self(platform)
    }
}

impl<P: PageTables> Drop for Section<'_, P> {
    fn drop(&mut self) {
        self.0.leave_access();
    }
}

impl<P: PageTables> Paging<'_, P> {
    /// Marks the mapping of `page` accessed, and dirty if `write`, and runs `f` on the base frame that holds the page.
    /// `None` if the page is not mapped, or in swap.
    ///
    /// Takes no lock. `f` runs inside an access section: the frame is not reused until `f` returns, so `f` must be
    /// short and must not wait. If the page is being moved, waits outside of the section.
    pub fn access<R>(
        &self,
        space: SpaceId,
        page: Page,
        write: bool,
        f: impl FnOnce(Pfn) -> R,
    ) -> Option<R> {
        let slot = self.slot(space).filter(|_| self.may_map(page))?;
        loop {
            let section = Section::enter(self.platform);
            match self.touch(slot, space, page, write) {
                Touch::Frame(frame) => return Some(f(frame)),
                Touch::Absent => return None,
                Touch::Migrating => {
                    drop(section);
                    self.platform.relax();
                }
            }
        }
    }

    /// Walks to `page` and marks its entry. Called inside an access section.
    fn touch(&self, slot: &Slot, space: SpaceId, page: Page, write: bool) -> Touch {
        let Some(root) = slot.root(space) else {
            return Touch::Absent;
        };
        loop {
            let place = walk(self.platform, root, page);
            match place.kind() {
                Kind::Migration => return Touch::Migrating,
                Kind::Empty | Kind::Table | Kind::Swapped => return Touch::Absent,
                Kind::Leaf => {
                    let marked = place.entry.touched(write);
                    // As hardware does: marks are set only if the entry has not changed since the walk. So no mark is
                    // set in an entry that was cleared or replaced meanwhile, and no mark is lost when a page is moved.
                    let done = marked == place.entry
                        || self
                            .platform
                            .compare_exchange_entry(
                                place.table,
                                place.index,
                                place.entry.bits(),
                                marked.bits(),
                            )
                            .is_ok();
                    if done {
                        return Touch::Frame(frame_of(place.entry, place.depth, page));
                    }
                }
            }
        }
    }
}
