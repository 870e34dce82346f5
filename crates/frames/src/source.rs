//! Where frames come from for those who must not know the allocator's slow path, and who can free some.

use crate::{AllocRequest, Order, Pfn};

/// There is no frame, after everything was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// A supply of page frames.
///
/// The methods are called with no lock held: an implementation may reclaim, compact, or wait.
pub trait PageSource: Sync {
    /// Allocates a run of frames, in state `Allocated`.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory>;

    /// Frees a run that [`PageSource::alloc`] gave.
    fn free(&self, frame: Pfn, order: Order);
}

/// Somebody who can free frames, such as a page cache, or reclaim with all that it knows of.
pub trait Reclaim: Sync {
    /// Frees about `frames` frames, or fewer if it has no more, and gives how many: for a request of `order` that found
    /// none. Called with no lock held; it may wait. The caller counts the event.
    fn reclaim(&self, frames: usize, order: Order) -> usize;

    /// A request found too little free memory: background reclaim should begin. Does not wait.
    fn wake(&self) {}
}

/// A reclaimer that holds no frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReclaim;

impl Reclaim for NoReclaim {
    fn reclaim(&self, _frames: usize, _order: Order) -> usize {
        0
    }
}
