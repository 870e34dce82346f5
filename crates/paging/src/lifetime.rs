//! The beginning and the end of an address space.

use crate::{
    page::{ENTRIES, Page},
    paging::Paging,
    source::PageSource,
    space::{SpaceId, SpaceState},
    tables::new_table,
};
use dirigible_frames::{Order, PageTables};

/// Why there is no new address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpaceError {
    /// No frame for the root table.
    #[error("out of memory")]
    OutOfMemory,
    /// All slots are taken.
    #[error("too many address spaces")]
    TooManySpaces,
}

impl<P: PageTables> Paging<'_, P> {
    /// An empty address space; its root table comes from `memory`.
    pub fn create_space(&self, memory: &dyn PageSource) -> Result<SpaceId, SpaceError> {
        let root =
            new_table(self.frames, self.platform, memory).map_err(|_| SpaceError::OutOfMemory)?;
        let Some((space, slot)) = self.spaces.take() else {
            memory.free(root, Order::BASE);
            return Err(SpaceError::TooManySpaces);
        };
        if let Some(template) = self.kernel_half {
            for index in self.root_entries()..ENTRIES as usize {
                self.set_entry(root, index, self.entry(template, index));
            }
        }
        slot.open(space, root);
        Ok(space)
    }

    /// Unmaps everything and ends the space; gives the number of anonymous frames that it held (0 for a space that is
    /// no more). Faults and accesses that run at the same time find no space; a frame that is just being moved is
    /// waited for.
    pub fn destroy_space(&self, space: SpaceId) -> usize {
        let Some(slot) = self.spaces.slot(space).filter(|slot| slot.close(space)) else {
            return 0;
        };
        let pages = self.clear_range(
            slot,
            space.get() | SpaceState::DYING,
            Page::new(0)..self.limit(),
        );
        let root = {
            let mut state = slot.state.lock();
            debug_assert_eq!((state.base, state.huge, state.tables), (0, 0, 1));
            core::mem::take(&mut *state).root
        };
        // A walker that saw the space alive may still stand in the root table.
        self.platform.shoot_down(space.get(), 0);
        self.free_table(root);
        self.spaces.give_back(space);
        pages
    }
}
