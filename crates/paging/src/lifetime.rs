//! Creation and destruction of address spaces.

use crate::{
    page::{ENTRIES, Page},
    paging::Paging,
    source::PageSource,
    space::{SpaceId, SpaceState},
    tables::new_table,
};
use dirigible_frames::{Order, PageTables};

/// Why an address space was not created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpaceError {
    /// There is no frame for the root table.
    #[error("out of memory")]
    OutOfMemory,
    /// All slots for spaces are in use.
    #[error("too many address spaces")]
    TooManySpaces,
}

impl<P: PageTables> Paging<'_, P> {
    /// Creates an empty address space. Its root table comes from `memory`.
    ///
    /// # Errors
    ///
    /// See [`SpaceError`].
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

    /// Unmaps all pages and destroys the space. Gives the number of anonymous frames that were mapped, 0 if the space
    /// does not exist; slots of swap are freed and do not count. Faults and accesses at the same time find no space.
    /// Waits while frames of the space are being moved, and for slots that are being read or written.
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
            debug_assert_eq!(state.swapped, 0);
            core::mem::take(&mut *state).root
        };
        // A walker that read the id before it was cleared may still read the root table.
        self.platform.shoot_down(space.get(), 0);
        self.free_table(root);
        self.spaces.give_back(space);
        pages
    }
}
