//! Touching mapped memory, as a CPU's page walker does.

use crate::{
    entry::Kind,
    page::Page,
    paging::{Paging, frame_of},
    space::{Slot, SpaceId},
    tables::walk,
};
use dirigible_frames::{PageTables, Pfn};

/// What one walk found.
enum Touch {
    Frame(Pfn),
    Absent,
    Migrating,
}

/// An access section that ends however its block is left.
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
    /// Runs `f` on the base frame that holds `page`, and marks the mapping accessed, and dirty if `write`; `None` if
    /// the page is not mapped.
    ///
    /// Takes no lock. `f` runs inside an access section: the frame stays the page's until `f` is done, so `f` is short
    /// and waits for nobody. A page that is just being moved is waited for, outside the section.
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

    /// Walks to `page` and marks its entry. Inside an access section.
    fn touch(&self, slot: &Slot, space: SpaceId, page: Page, write: bool) -> Touch {
        let Some(root) = slot.root(space) else {
            return Touch::Absent;
        };
        loop {
            let place = walk(self.platform, root, page);
            match place.kind() {
                Kind::Migration => return Touch::Migrating,
                Kind::Empty | Kind::Table => return Touch::Absent,
                Kind::Leaf => {
                    let marked = place.entry.touched(write);
                    // As hardware does it: marks go into the entry only while it is still the one that was walked, so
                    // none lands in an entry that was emptied or replaced meanwhile, and none is lost to a migration.
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
