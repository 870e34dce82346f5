//! The balloon as the last means against want of memory.

use dirigible_balloon::BalloonDriver;
use dirigible_paging::OutOfMemoryNotifier;

/// Has a balloon deflate before a request of the guest fails. It gives nothing unless `DEFLATE_ON_OOM` was negotiated.
#[derive(Clone, Copy)]
pub struct Relief<'a>(&'a dyn BalloonDriver);

impl<'a> Relief<'a> {
    /// Relief by `balloon`.
    pub fn new(balloon: &'a dyn BalloonDriver) -> Self {
        Self(balloon)
    }
}

impl OutOfMemoryNotifier for Relief<'_> {
    fn release(&self, frames: usize) -> usize {
        self.0.deflate_on_oom(frames)
    }
}
