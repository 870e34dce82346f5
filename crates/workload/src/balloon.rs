//! What the experiment needs of a balloon, and the actor that works for it.

use dirigible_balloon::FrameSource;

use crate::{
    actor::{Actor, Next},
    tuning::{BALLOON_MESSAGES, BALLOON_TICK},
};

/// A balloon, with the host's end of it: the machine's own.
pub trait BalloonControl: Sync {
    /// The host sets the target, in frames.
    fn set_target(&self, frames: u64);
    /// The target, in frames.
    fn target(&self) -> u64;
    /// What the balloon holds, in frames.
    fn actual(&self) -> u64;
    /// Works toward the target, with at most `messages` requests to the device.
    fn step(&self, source: &dyn FrameSource, messages: usize);
}

/// The worker of the balloon: looks at a steady pace and sends a bounded number of messages each time.
pub struct BalloonWorker<'a> {
    balloon: &'a dyn BalloonControl,
    source: &'a dyn FrameSource,
}

impl<'a> BalloonWorker<'a> {
    /// The worker of `balloon`, which takes its frames from `source`.
    pub fn new(balloon: &'a dyn BalloonControl, source: &'a dyn FrameSource) -> Self {
        Self { balloon, source }
    }
}

impl Actor for BalloonWorker<'_> {
    fn step(&mut self, now: u64) -> Next {
        self.balloon.step(self.source, BALLOON_MESSAGES);
        Next::At(now + BALLOON_TICK)
    }
}
