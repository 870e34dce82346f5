//! A balloon's driver, whatever it drives.
#![forbid(unsafe_code)]

use dirigible_frames::OwnerId;

use crate::{BalloonStats, Fault, FrameSource, Held, Step};

/// What those need of a balloon who care neither for its transport nor for the length of its messages: its worker, the
/// last means against want of memory, and whoever ends it. Object-safe; `VirtioBalloon` implements it by its methods of
/// the same names.
pub trait BalloonDriver: Sync {
    /// The owner number that its frames carry.
    fn owner_id(&self) -> OwnerId;

    /// Frames promised to the host.
    fn actual(&self) -> u64;

    /// The target as it was read last, lowered to what the guest has, in frames.
    fn target(&self) -> u64;

    /// One bounded piece of work toward the target, with at most `max_messages` requests to the device. `source` is
    /// asked for frames with no lock held. The answer tells when the next piece is due.
    fn step(&self, source: &dyn FrameSource, max_messages: usize) -> Step;

    /// Takes the device's answers and does what follows from them: the bottom half of its interrupt.
    fn handle_interrupt(&self);

    /// What has happened so far.
    fn stats(&self) -> BalloonStats;

    /// Where the frames are.
    fn held(&self) -> Held;

    /// Recounts the books, at quiescence.
    ///
    /// # Errors
    /// What does not fit.
    fn verify(&self) -> Result<(), Fault>;

    /// Takes up to `frames` frames back for want of memory, and gives how many are with the allocator; 0 where that was
    /// not negotiated.
    fn deflate_on_oom(&self, frames: usize) -> usize;

    /// Gives every frame back to the guest and resets the device.
    ///
    /// # Errors
    /// What keeps frames out, or the device from giving them back.
    fn shutdown(&self) -> Result<(), Fault>;
}
