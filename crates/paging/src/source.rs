//! Where paging gets frames from, who can be asked to give some back, and who hears how long that took.

use dirigible_frames::{AllocRequest, FrameAllocator, Order, Pfn, Platform};

/// There is no frame to be had, whatever was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// A supply of page frames.
///
/// Called with no lock held: an implementation may reclaim, compact, or wait.
pub trait PageSource: Sync {
    /// A run of frames as `request` asks, in state `Allocated`.
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory>;

    /// Takes back what [`PageSource::alloc`] gave and nobody used.
    fn free(&self, frame: Pfn, order: Order);
}

/// Somebody who holds frames that others need more.
pub trait Reclaim: Sync {
    /// Gives about `frames` frames back to the allocator, fewer if there are not so many; the answer is how many.
    /// Called with no lock held. The caller charges the cost and counts the event.
    fn reclaim(&self, frames: usize) -> usize;
}

/// Nobody to reclaim from.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReclaim;

impl Reclaim for NoReclaim {
    fn reclaim(&self, _frames: usize) -> usize {
        0
    }
}

/// Somebody who holds frames by promise, a balloon, and breaks it rather than let a task fail.
pub trait OutOfMemoryNotifier: Sync {
    /// Asked when everything else has failed, before a base request fails: gives about `frames` frames back to the
    /// allocator, fewer if there are not so many; the answer is how many. Called with no lock held.
    fn release(&self, frames: usize) -> usize;
}

/// Nobody to ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNotifier;

impl OutOfMemoryNotifier for NoNotifier {
    fn release(&self, _frames: usize) -> usize {
        0
    }
}

/// Hears of the requests that were not served at once.
pub trait StallObserver: Sync {
    /// `request` found nothing at its first attempt and ended `ns` nanoseconds later, `served` or not. Called with no
    /// lock held, by the CPU that asked.
    fn stalled(&self, request: AllocRequest, ns: u64, served: bool);
}

/// The plainest source: what the allocator has free, and no slow path.
pub struct FreeFrames<'a, P> {
    frames: &'a FrameAllocator<'a>,
    platform: &'a P,
}

impl<'a, P: Platform> FreeFrames<'a, P> {
    /// A source over `frames`, for the CPU that `platform` says the caller runs on.
    pub fn new(frames: &'a FrameAllocator<'a>, platform: &'a P) -> Self {
        Self { frames, platform }
    }
}

impl<P: Platform> PageSource for FreeFrames<'_, P> {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        self.frames
            .alloc(self.platform.cpu(), request)
            .map_err(|_| OutOfMemory)
    }

    fn free(&self, frame: Pfn, order: Order) {
        let freed = self.frames.free(self.platform.cpu(), frame, order);
        debug_assert!(freed.is_ok(), "{frame} was not owned by its user");
    }
}
