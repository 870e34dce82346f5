//! Room to work in, so that compaction needs neither memory nor much stack: a few places, each for one evacuation.
//!
//! A place is lent for as long as an evacuation lasts, its wait for the host included. Nobody else ever waits for a lent
//! place as for a lock: who finds none free comes back, or does without.

use core::ops::{Deref, DerefMut};

use arrayvec::ArrayVec;
use dirigible_frames::sync::{AtomicU32, Mutex, MutexGuard, Ordering};
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
    /// Per place: 1 + the number of the CPU that it is lent to, or 0.
    holders: [AtomicU32; PLACES],
}

/// A place, for as long as this lives.
pub(crate) struct Lease<'w> {
    guard: MutexGuard<'w, Workspace>,
    holder: &'w AtomicU32,
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
        // Relaxed: only the CPU that wrote it draws a conclusion from it.
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
            holders: core::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    fn try_lend(&self, mark: u32) -> Option<Lease<'_>> {
        self.places
            .iter()
            .zip(&self.holders)
            .find_map(|(place, holder)| {
                let guard = place.try_lock()?;
                holder.store(mark, Ordering::Relaxed);
                Some(Lease { guard, holder })
            })
    }

    /// Whether the CPU with this mark has a place: then this is a call from inside compaction.
    fn has(&self, mark: u32) -> bool {
        let of_cpu = |holder: &AtomicU32| holder.load(Ordering::Relaxed) == mark;
        self.holders.iter().any(of_cpu)
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// A place to work in, if one is free. Never for a CPU that has one: an allocation inside compaction came back here.
    pub(crate) fn try_lease(&self, cpu: CpuId) -> Option<Lease<'_>> {
        let mark = cpu.index() as u32 + 1;
        if self.workspaces.has(mark) {
            return None;
        }
        self.workspaces.try_lend(mark)
    }

    /// The same after a bounded wait: `None` when all places stay lent, or at once when this CPU itself has one.
    pub(crate) fn lease(&self, cpu: CpuId) -> Option<Lease<'_>> {
        let mark = cpu.index() as u32 + 1;
        if self.workspaces.has(mark) {
            return None;
        }
        self.patiently(|| self.workspaces.try_lend(mark))
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
