//! Where paging gets frames from, who can free some when there are none, and who is notified of stalls.

use dirigible_frames::{AllocRequest, FrameAllocator, Order, Pfn, Platform};
pub use dirigible_frames::{NoReclaim, OutOfMemory, PageSource, Reclaim};

/// A holder of frames that frees some before a request fails for want of memory: a balloon, which has promised them to
/// the host.
pub trait OutOfMemoryNotifier: Sync {
    /// Called when everything else has failed, before a base request fails. Frees about `frames` frames, or fewer if it
    /// holds fewer, and gives how many. Called with no lock held.
    fn release(&self, frames: usize) -> usize;
}

/// A notifier that holds no frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNotifier;

impl OutOfMemoryNotifier for NoNotifier {
    fn release(&self, _frames: usize) -> usize {
        0
    }
}

/// Is notified of requests that the first attempt did not serve.
pub trait StallObserver: Sync {
    /// The first attempt to serve `request` failed, and the request ended `ns` nanoseconds later, `served` or not.
    /// Called with no lock held, on the CPU that made the request.
    fn stalled(&self, request: AllocRequest, ns: u64, served: bool);
}

/// The simplest source: the allocator's free frames, without a slow path.
pub struct FreeFrames<'a, P> {
    frames: &'a FrameAllocator<'a>,
    platform: &'a P,
}

impl<'a, P: Platform> FreeFrames<'a, P> {
    /// A source over `frames`, which uses the CPU that `platform` reports.
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
        debug_assert!(freed.is_ok(), "{frame} was not allocated");
    }
}
