//! What the operator of a machine does: the balloon, the probe, the end of the load.
//!
//! The [`director`](crate::director) runs the phases through this. It is a second line beside that of the programs
//! ([`calls`](crate::calls)), and a small one.

use crate::timeline::{PassPlan, PassResult};

/// There is no memory for it: no huge page, no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

/// How much of the contents is checked.
pub use crate::calls::Check;

/// The operator's means.
pub trait Operator: Sync {
    /// A huge page that the probe holds.
    type Block: Send;

    /// One attempt of the probe.
    ///
    /// # Errors
    ///
    /// No huge page could be allocated.
    fn attempt(&self) -> Result<Self::Block, NoMemory>;

    /// Gives back the huge page of an attempt.
    fn release(&self, block: Self::Block);

    /// A fault on the aligned 2 MiB with number `range` of an address space of the operator's own, with advice for huge
    /// pages. Gives whether a huge page is there now.
    fn huge_fault(&self, range: u64) -> bool;

    /// Gives back what [`huge_fault`](Self::huge_fault) made.
    fn end_faults(&self);

    /// Sets the balloon's target, in frames.
    fn set_balloon_target(&self, frames: u64);

    /// The balloon's target, in frames.
    fn balloon_target(&self) -> u64;

    /// The balloon's size, in frames.
    fn balloon_actual(&self) -> u64;

    /// Kills all programs, and gives whether they have ended: to be called until they have.
    fn kill_load(&self) -> bool;

    /// When all programs have ended: deletes their files, drops the caches of files, inodes and names, and sets the
    /// watermarks of a machine at rest.
    fn clean_up(&self);

    /// Called before a pass begins, at `now`.
    fn begin_pass(&self, pass: &PassPlan, now: u64);

    /// Called many times in a second while a pass is under way.
    fn sample_pass(&self, now: u64);

    /// Called after each fault of the THP test: when it was begun, and whether it got a huge page.
    fn faulted(&self, at: u64, got: bool);

    /// Called when a pass has ended, while its huge pages are still held.
    fn end_pass(&self, pass: &PassPlan, result: &PassResult);
}
