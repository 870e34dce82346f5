//! Memory of the load's programs, accessed at virtual addresses through the page tables of `paging`.

use dirigible_paging::{Page, Paging, SpaceId};
use dirigible_workload::user::UserMemory;

use super::{arch::user, platform::GuestPlatform};

/// Accesses programs' memory through the hardware's page walk.
pub struct Programs<'p, 'a> {
    paging: &'p Paging<'a, GuestPlatform>,
}

impl<'p, 'a> Programs<'p, 'a> {
    /// Programs in the address spaces of `paging`. A space must not be destroyed while a CPU runs in it.
    pub fn new(paging: &'p Paging<'a, GuestPlatform>) -> Self {
        Self { paging }
    }

    /// Physical address of the root table of `space`; `None` if the space does not exist any more.
    fn root(&self, space: SpaceId) -> Option<u64> {
        self.paging.root(space).map(|root| root.address())
    }
}

impl UserMemory for Programs<'_, '_> {
    fn store(
        &self,
        space: SpaceId,
        page: Page,
        value: u64,
        fault: &mut dyn FnMut() -> bool,
    ) -> bool {
        let root = self.root(space);
        root.is_some_and(|root| user::store(root, page.address(), value, fault))
    }

    fn load(
        &self,
        space: SpaceId,
        page: Page,
        lines: &mut [u64; 64],
        fault: &mut dyn FnMut() -> bool,
    ) -> bool {
        let root = self.root(space);
        root.is_some_and(|root| user::load_lines(root, page.address(), lines, fault))
    }

    fn load_line(
        &self,
        space: SpaceId,
        page: Page,
        line: usize,
        fault: &mut dyn FnMut() -> bool,
    ) -> Option<u64> {
        let address = page.address() + 64 * (line % 64) as u64;
        user::load_word(self.root(space)?, address, fault)
    }
}
