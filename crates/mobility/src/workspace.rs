//! Workspaces: memory set aside for evacuations, so that they allocate nothing and need little stack.
//!
//! A workspace has its place ([`crate::place`]), which is lent for as long as an evacuation lasts, its wait for the
//! host included. It is no lock that others wait for: a caller that finds no vacant place tries again for a bounded
//! time, or does without.

use arrayvec::ArrayVec;
use dirigible_frames::{CpuId, IsolatedBlock, Platform};

use crate::config::{MAX_RANGE_USED, WORKSPACE_FRAMES};
use crate::place::Lease;
use crate::{Mobility, MovePair};

/// What one evacuation works in.
pub(crate) struct Workspace {
    pub(crate) pairs: [MovePair; WORKSPACE_FRAMES],
    /// Blocks of a range that are isolated and not empty yet. Empty between evacuations.
    pub(crate) held: ArrayVec<IsolatedBlock, MAX_RANGE_USED>,
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// A place to work in, if one is free. Never for a caller that has one: an allocation inside compaction came back
    /// here.
    pub(crate) fn try_lease(&self, cpu: CpuId) -> Option<Lease<'_>> {
        let caller = self.platform.caller(cpu);
        if self.workspaces.has(caller) {
            return None;
        }
        self.workspaces.try_lend(caller)
    }

    /// The place of the open piece of background compaction, if this caller has none.
    pub(crate) fn try_resume(&self, cpu: CpuId) -> Option<Lease<'_>> {
        let caller = self.platform.caller(cpu);
        if self.workspaces.has(caller) {
            return None;
        }
        self.workspaces.resume(caller)
    }

    /// [`try_lease`](Self::try_lease) after a bounded wait: `None` when all places stay lent, or at once when this
    /// caller itself has one.
    pub(crate) fn lease(&self, cpu: CpuId) -> Option<Lease<'_>> {
        let caller = self.platform.caller(cpu);
        if self.workspaces.has(caller) {
            return None;
        }
        self.patiently(|| self.workspaces.try_lend(caller))
    }

    /// What `attempt` gives within a bounded number of turns and a bounded time, with others let run in between.
    pub(crate) fn patiently<R>(&self, mut attempt: impl FnMut() -> Option<R>) -> Option<R> {
        let mut deadline = None;
        for _ in 0..self.config.lock_relaxes {
            if let Some(got) = attempt() {
                return Some(got);
            }
            // The clock is read only by those who wait.
            let deadline = *deadline.get_or_insert_with(|| self.deadline());
            if self.platform.now() >= deadline {
                break;
            }
            self.platform.relax();
        }
        attempt()
    }
}
