//! The balloon by the interface of all drivers.
#![forbid(unsafe_code)]

use dirigible_frames::{OwnerId, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use super::VirtioBalloon;
use crate::{BalloonDriver, BalloonStats, Fault, FrameSource, Held, Step};

impl<H: Hal, T: Transport + Send, P: Platform, const N: usize> BalloonDriver
    for VirtioBalloon<'_, H, T, P, N>
{
    fn owner_id(&self) -> OwnerId {
        self.owner_id()
    }

    fn actual(&self) -> u64 {
        self.actual()
    }

    fn target(&self) -> u64 {
        self.target()
    }

    fn step(&self, source: &dyn FrameSource, max_messages: usize) -> Step {
        self.step(source, max_messages)
    }

    fn handle_interrupt(&self) {
        self.handle_interrupt();
    }

    fn stats(&self) -> BalloonStats {
        self.stats()
    }

    fn held(&self) -> Held {
        self.held()
    }

    fn verify(&self) -> Result<(), Fault> {
        self.verify()
    }

    fn deflate_on_oom(&self, frames: usize) -> usize {
        self.deflate_on_oom(frames)
    }

    fn shutdown(&self) -> Result<(), Fault> {
        self.shutdown()
    }
}
