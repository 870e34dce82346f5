//! Programs of the load: their pages are touched at virtual addresses, through the tables that `paging` keeps.

use dirigible_paging::{Page, Paging, SpaceId};
use dirigible_workload::user::UserMemory;

use super::{arch::user, platform::GuestPlatform};

/// Touches programs' memory by the hardware's own walk.
pub struct Programs<'p, 'a> {
    paging: &'p Paging<'a, GuestPlatform>,
}

impl<'p, 'a> Programs<'p, 'a> {
    /// The programs whose spaces `paging` keeps. Each is destroyed only when nobody runs in it.
    pub fn new(paging: &'p Paging<'a, GuestPlatform>) -> Self {
        Self { paging }
    }

    /// Physical address of the root table of a living space.
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
