//! Where the frames of an inflation come from.
#![forbid(unsafe_code)]

use dirigible_frames::{BalloonPlacement, FrameAllocator, Pfn, Platform, Watermark};

/// Where the driver gets frames for inflation. The core does not use it: its caller passes frames to
/// [`begin_inflate`](crate::Balloon::begin_inflate).
///
/// It is called with no lock of the balloon held, so it may compact (which calls the balloon's own `isolate` and
/// `migrate`), reclaim, or call [`deflate_on_oom`](crate::VirtioBalloon::deflate_on_oom).
pub trait FrameSource: Sync {
    /// Fills `out` from the front with frames in state `Allocated` and gives their number. Fewer than asked is no
    /// failure; none means that there is none now, and the balloon rests for its retry delay.
    fn take(&self, how: BalloonPlacement, out: &mut [Pfn]) -> usize;
    /// Takes frames back that turned out not to be needed.
    fn give_back(&self, frames: &[Pfn]);
}

/// The plain source: the allocator, without reclaim or compaction.
pub struct AllocatorSource<'a, P: ?Sized> {
    /// Where frames come from.
    pub frames: &'a FrameAllocator<'a>,
    /// Names the CPU that we run on.
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
