//! Room to work in, so that compaction needs neither memory nor much stack: a few places, each for one evacuation.
//!
//! A place is lent for as long as an evacuation lasts, its wait for the host included. Nobody else ever waits for a lent
//! place as for a lock: who finds none free comes back, or does without.

use core::ops::{Deref, DerefMut};

use arrayvec::ArrayVec;
use dirigible_frames::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use dirigible_frames::{CpuId, IsolatedBlock, Pfn, Platform};

use crate::config::{MAX_RANGE_USED, WORKSPACE_FRAMES};
use crate::{Mobility, MovePair};

/// Evacuations that can run at the same time.
pub(crate) const PLACES: usize = 3;

/// What one evacuation works in.
pub(crate) struct Workspace {
    pub(crate) pairs: [MovePair; WORKSPACE_FRAMES],
    /// Blocks of a range that are isolated and not empty yet. Empty between evacuations.
    pub(crate) held: ArrayVec<IsolatedBlock, MAX_RANGE_USED>,
}

/// All places.
pub(crate) struct Workspaces {
    places: [Mutex<Workspace>; PLACES],
    /// Per place: the caller that it is lent to (`Platform::caller`), or 0.
    holders: [AtomicU64; PLACES],
}

/// A place, for as long as this lives.
pub(crate) struct Lease<'w> {
    guard: MutexGuard<'w, Workspace>,
    holder: &'w AtomicU64,
}

impl Deref for Lease<'_> {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.guard
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Workspace {
        &mut self.guard
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Relaxed: only the caller that wrote it draws a conclusion from it.
        self.holder.store(0, Ordering::Relaxed);
    }
}

impl Workspaces {
    pub(crate) fn new() -> Self {
        let nothing = Pfn::new(0);
        Self {
            places: core::array::from_fn(|_| {
                Mutex::new(Workspace {
                    pairs: [MovePair::base(nothing, nothing); WORKSPACE_FRAMES],
                    held: ArrayVec::new(),
                })
            }),
            holders: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn try_lend(&self, caller: u64) -> Option<Lease<'_>> {
        self.places
            .iter()
            .zip(&self.holders)
            .find_map(|(place, holder)| {
                let guard = place.try_lock()?;
                holder.store(caller, Ordering::Relaxed);
                Some(Lease { guard, holder })
            })
    }

    /// Whether this caller has a place: then this is a call from inside compaction.
    fn has(&self, caller: u64) -> bool {
        let is_its = |holder: &AtomicU64| holder.load(Ordering::Relaxed) == caller;
        self.holders.iter().any(is_its)
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// A place to work in, if one is free. Never for a caller that has one: an allocation inside compaction came back here.
    pub(crate) fn try_lease(&self, cpu: CpuId) -> Option<Lease<'_>> {
        let caller = self.platform.caller(cpu);
        if self.workspaces.has(caller) {
            return None;
        }
        self.workspaces.try_lend(caller)
    }

    /// The same after a bounded wait: `None` when all places stay lent, or at once when this caller itself has one.
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
