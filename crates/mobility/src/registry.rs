//! Which owner has which number, and how many of its frames and calls are out.

use core::ops::Deref;

use dirigible_frames::OwnerId;
use dirigible_frames::sync::{AtomicU64, Mutex, Ordering};

use crate::MovableOwner;

/// One more than owners can be registered at once: owner numbers are 1 to 15 (0 means nobody).
pub const OWNERS: usize = 16;

/// Why an owner could not be registered or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The number is taken by another owner.
    #[error("the owner number is taken")]
    Busy,
    /// The owner number is not between 1 and [`OWNERS`] - 1.
    #[error("the owner's number is out of range")]
    OutOfRange,
    /// No owner has this number.
    #[error("no owner is registered under this number")]
    Absent,
    /// Frames of this owner are isolated, or one of its operations runs: settle them first, then try again.
    #[error("frames of the owner are isolated")]
    Isolated,
}

/// The table of owners.
pub(crate) struct Registry<'a> {
    table: Mutex<[Option<&'a dyn MovableOwner>; OWNERS]>,
    /// Per owner number: isolated allocations and calls in flight. Raised under the table's lock or by somebody who has one
    /// already, so that `remove`, which looks under the lock, misses none.
    uses: [AtomicU64; OWNERS],
}

impl<'a> Registry<'a> {
    pub(crate) fn new() -> Self {
        Self {
            table: Mutex::new([None; OWNERS]),
            uses: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn slot(id: OwnerId) -> Result<usize, RegisterError> {
        match usize::from(id.get()) {
            0 => Err(RegisterError::OutOfRange),
            slot if slot < OWNERS => Ok(slot),
            _ => Err(RegisterError::OutOfRange),
        }
    }

    pub(crate) fn add(
        &self,
        id: OwnerId,
        owner: &'a dyn MovableOwner,
    ) -> Result<(), RegisterError> {
        let slot = Self::slot(id)?;
        let mut table = self.table.lock();
        if table[slot].is_some() {
            return Err(RegisterError::Busy);
        }
        table[slot] = Some(owner);
        Ok(())
    }

    pub(crate) fn remove(&self, id: OwnerId) -> Result<(), RegisterError> {
        let slot = Self::slot(id)?;
        let mut table = self.table.lock();
        if table[slot].is_none() {
            return Err(RegisterError::Absent);
        }
        // Acquire pairs with the release in `Use::drop` and `let_go`: whoever removes the owner sees what the last
        // operation did.
        if self.uses[slot].load(Ordering::Acquire) != 0 {
            return Err(RegisterError::Isolated);
        }
        table[slot] = None;
        Ok(())
    }

    /// The owner with this number, held in the table until the answer is dropped.
    #[inline(never)]
    pub(crate) fn enter(&self, id: OwnerId) -> Option<Use<'_, 'a>> {
        let slot = Self::slot(id).ok()?;
        let table = self.table.lock();
        let owner = table[slot]?;
        // Relaxed: ordered against `remove` by the table's lock.
        self.uses[slot].fetch_add(1, Ordering::Relaxed);
        Some(Use {
            owner,
            uses: &self.uses[slot],
        })
    }

    /// Ends the stay in the table of `count` isolated allocations (see [`Use::keep`]).
    pub(crate) fn let_go(&self, id: OwnerId, count: u64) {
        if let Ok(slot) = Self::slot(id) {
            // Release pairs with the acquire in `remove`.
            let before = self.uses[slot].fetch_sub(count, Ordering::Release);
            debug_assert!(
                before >= count,
                "more frames of an owner settled than were isolated"
            );
        }
    }
}

/// An owner that cannot be removed while this lives.
pub(crate) struct Use<'r, 'a> {
    owner: &'a dyn MovableOwner,
    uses: &'r AtomicU64,
}

impl Use<'_, '_> {
    /// Leaves the use standing for an isolated allocation, until [`Registry::let_go`].
    pub(crate) fn keep(self) {
        core::mem::forget(self);
    }
}

impl<'a> Deref for Use<'_, 'a> {
    type Target = dyn MovableOwner + 'a;

    fn deref(&self) -> &Self::Target {
        self.owner
    }
}

impl Drop for Use<'_, '_> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `Registry::remove`.
        self.uses.fetch_sub(1, Ordering::Release);
    }
}
