//! [`Mobility`]: the registry, the accounts, and what compaction works in.

use dirigible_frames::sync::{AtomicBool, AtomicU64, Mutex};
use dirigible_frames::{FrameAllocator, MAX_ZONES, OwnerId, Platform, ZoneId};

use crate::account::Accounts;
use crate::piece::Piece;
use crate::place::Workspaces;
use crate::registry::Registry;
use crate::zone::ZoneState;
use crate::{
    CompactionConfig, EmptyingObserver, IdentityError, MovableOwner, PerClass, RegisterError,
};

/// Everything that can move, and the means to move it: one for each [`FrameAllocator`].
///
/// It holds its workspaces in itself: `size_of::<Mobility<P>>()` is about 43 KiB. Where stacks are small, build it
/// where it stays ([`new_in`](Self::new_in)).
pub struct Mobility<'a, P: Platform + ?Sized> {
    pub(crate) frames: &'a FrameAllocator<'a>,
    pub(crate) platform: &'a P,
    pub(crate) config: CompactionConfig,
    pub(crate) registry: Registry<'a>,
    pub(crate) accounts: Accounts,
    /// Raised each time a pending pair settles: whoever waits looks again.
    pub(crate) settled: AtomicU64,
    /// Background compaction has begun and not yet reached its goal.
    pub(crate) background_runs: AtomicBool,
    /// What a step of background compaction left open. The lock is only ever tried; it is held for as long as a step
    /// runs.
    pub(crate) background: Mutex<Option<Piece>>,
    pub(crate) zones: [Mutex<ZoneState>; MAX_ZONES],
    pub(crate) workspaces: Workspaces,
    /// Who hears of blocks that are emptied. Held for a copy of the reference.
    pub(crate) observer: Mutex<Option<&'a dyn EmptyingObserver>>,
}

impl<'a, P: Platform + ?Sized> Mobility<'a, P> {
    /// Makes `owner` the owner of all frames that carry the number `id`. The owner outlives this `Mobility`, which
    /// calls it and is never called by it.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Busy`] when the number has an owner, [`RegisterError::OutOfRange`] when it is not 1 to 15.
    pub fn register(&self, id: OwnerId, owner: &'a dyn MovableOwner) -> Result<(), RegisterError> {
        self.registry.add(id, owner)
    }

    /// Takes the owner with number `id` out of the table. Frames that still carry the number cannot be moved any more.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Isolated`] while any of its frames is isolated, any of its pairs is pending or waits to be
    /// [drained](Self::drain_settled), or one of its operations runs: removal waits, the caller decides how.
    /// [`RegisterError::Absent`] when there is no such owner.
    pub fn unregister(&self, id: OwnerId) -> Result<(), RegisterError> {
        self.registry.remove(id)
    }

    /// Takes what has settled from all owners: pairs that were left [`Outcome::Pending`](crate::Outcome::Pending) and
    /// have ended since ([`MovableOwner::take_settled`]). Frees their frames, or puts them back, and balances the
    /// accounts. Gives how many pairs that were.
    ///
    /// For daemons, each time they have woken. Compaction does the same wherever it waits; without either, frames of
    /// late pairs stay isolated, and their owner has no room for further ones. When nothing is out it costs one load
    /// of an atomic for each possible owner.
    pub fn drain_settled(&self) -> usize {
        let drain = |id| {
            let owner = self.registry.enter(id);
            owner.map_or(0, |owner| self.drain_owner(id, &*owner))
        };
        self.registry.in_use().map(drain).sum()
    }

    /// Polls each owner of which something is out, and takes what has settled. The deadline that it gives them has
    /// passed: they look at their devices and do not wait. For daemons and for the end, where a device is driven by
    /// polling. Gives how many pairs have settled.
    pub fn poll_pending(&self) -> usize {
        let poll = |id| {
            let Some(owner) = self.registry.enter(id) else {
                return 0;
            };
            owner.poll(self.platform.now());
            self.drain_owner(id, &*owner)
        };
        self.registry.in_use().map(poll).sum()
    }

    /// The allocator whose frames these are.
    pub fn frames(&self) -> &'a FrameAllocator<'a> {
        self.frames
    }

    /// The machine below.
    pub fn platform(&self) -> &'a P {
        self.platform
    }

    /// The constants in use.
    pub fn config(&self) -> &CompactionConfig {
        &self.config
    }

    /// Base frames that are off their owners' books now, pending ones included.
    pub fn isolated_frames(&self) -> u64 {
        self.accounts.now().sum()
    }

    /// The same for each class. Balloon frames are counted apart, so that reclaim that waits for too many isolated
    /// frames of its own does not wait for a balloon's.
    pub fn isolated_by_class(&self) -> PerClass {
        self.accounts.now()
    }

    /// Checks the identities of the counters, at quiescence: `compact_stall` = success + fail; frames isolated =
    /// moved + dropped + put back + isolated now, for movable and for balloon frames; the events say the same;
    /// `compact_balloon_released` = `compact_balloon_migrated`.
    ///
    /// # Errors
    ///
    /// The first identity that does not hold.
    pub fn verify(&self) -> Result<(), IdentityError> {
        self.accounts.verify(self.frames.events())
    }

    /// All zones, in the order in which requests try them: the last first.
    pub(crate) fn zone_ids(&self) -> impl Iterator<Item = ZoneId> + use<P> {
        let count = self.frames.zones().count() as u8;
        (0..count).rev().map(ZoneId::new)
    }
}

impl<P: Platform + ?Sized> core::fmt::Debug for Mobility<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mobility")
            .field("config", &self.config)
            .field("isolated", &self.accounts.now())
            .finish_non_exhaustive()
    }
}
