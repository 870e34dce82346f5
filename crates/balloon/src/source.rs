//! Where the balloon's frames come from, and whom it tells of moves that end later.
#![forbid(unsafe_code)]

use dirigible_frames::{BalloonPlacement, FrameAllocator, Pfn, Platform, Watermark};
use dirigible_mobility::{Mobility, Outcome};

/// Gives frames to inflation.
///
/// It is called with no lock of the balloon held, so it may compact (which calls the balloon's own `isolate` and
/// `migrate`), reclaim, or call [`deflate_on_oom`](crate::VirtioBalloon::deflate_on_oom).
pub trait FrameSource: Sync {
    /// Fills `out` from the front with frames in state `Allocated` and gives their number. Fewer than asked is no failure;
    /// none means that none is to be had now, and the balloon rests for its retry delay.
    fn take(&self, how: BalloonPlacement, out: &mut [Pfn]) -> usize;
    /// Takes frames back that turned out not to be needed.
    fn give_back(&self, frames: &[Pfn]);
}

/// The plain source: the allocator above its low watermark, without reclaim or compaction.
pub struct AllocatorSource<'a, P: ?Sized> {
    /// Where frames come from.
    pub frames: &'a FrameAllocator<'a>,
    /// Says on which CPU we run.
    pub platform: &'a P,
    /// The watermark that inflation respects.
    pub watermark: Watermark,
}

impl<P: Platform + ?Sized> FrameSource for AllocatorSource<'_, P> {
    fn take(&self, how: BalloonPlacement, out: &mut [Pfn]) -> usize {
        self.frames
            .alloc_balloon(self.platform.cpu(), how, self.watermark, out)
    }

    fn give_back(&self, frames: &[Pfn]) {
        let given = self.frames.free_bulk(self.platform.cpu(), frames);
        debug_assert!(given.is_ok(), "frames from take are owned: {given:?}");
    }
}

/// Hears how pending pairs ended. It is called with no lock of the balloon held, perhaps before the `migrate` that
/// began the pair has returned.
pub trait Settle: Sync {
    /// The pair ended with `outcome`.
    fn settled(&self, from: Pfn, to: Pfn, outcome: Outcome);
}

impl<P: Platform + ?Sized> Settle for Mobility<'_, P> {
    fn settled(&self, from: Pfn, to: Pfn, outcome: Outcome) {
        let settled = self.complete(from, to, outcome);
        debug_assert!(settled, "mobility does not know the pair {from} to {to}");
    }
}

/// For a balloon that nobody asks to move frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSettle;

impl Settle for NoSettle {
    fn settled(&self, _from: Pfn, _to: Pfn, _outcome: Outcome) {}
}
