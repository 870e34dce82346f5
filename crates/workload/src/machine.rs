//! What the experiment asks of a machine: memory for the load, blocks for the probe, a balloon.
//!
//! Two machines implement it: [`System`](crate::system::System), the real one, and [`Counts`](crate::twin::Counts), the
//! counts-only twin. Jobs, kernel memory and the passes are written once over these traits, so both see the same requests.

use core::ops::Range;

use dirigible_frames::{Order, Pfn};

use crate::timeline::{PassPlan, PassResult};

/// No memory: the asker waits, or does without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

/// An address space of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space(pub u32);

/// A request for kernel memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelRequest {
    /// Reclaimable, else unmovable.
    pub reclaimable: bool,
    /// 0 to 2.
    pub order: Order,
}

/// Kernel memory that was got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelMemory {
    /// What was asked for.
    pub request: KernelRequest,
    /// The first frame; no place in the twin.
    pub first: Pfn,
    /// Names the contents.
    pub serial: u64,
}

/// How closely contents are looked at when memory is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// At the four lines that this draw names.
    Four(u32),
    /// At every line.
    Whole,
}

/// Memory for the load.
pub trait LoadMemory: Sync {
    /// A new, empty address space.
    ///
    /// # Errors
    ///
    /// No memory for its first page table.
    fn create_space(&self) -> Result<Space, NoMemory>;

    /// Makes sure that `page` of `space` is there; what is new is filled with its pattern. With `huge` the aligned 512
    /// pages from `page` on may come as one huge page. Gives how many pages from `page` on are there now: 1 or 512.
    ///
    /// # Errors
    ///
    /// No memory for the page or a page table.
    fn fault(&self, space: Space, page: u64, huge: bool) -> Result<u64, NoMemory>;

    /// Uses a page again, if it is there: checks the four lines that `draw` names.
    fn reuse(&self, space: Space, page: u64, draw: u32);

    /// Checks the pages of the range that are there.
    fn check(&self, space: Space, pages: Range<u64>, check: Check);

    /// Gives back what is there of the range.
    fn give_back(&self, space: Space, pages: Range<u64>);

    /// Ends an address space and all that is in it.
    fn exit(&self, space: Space);

    /// Kernel memory, filled with its pattern.
    ///
    /// # Errors
    ///
    /// No memory of that kind.
    fn kernel_alloc(&self, request: KernelRequest) -> Result<KernelMemory, NoMemory>;

    /// Checks kernel memory and gives it back.
    fn kernel_free(&self, memory: KernelMemory, check: Check);
}

/// What the passes need beside the load's memory.
pub trait Stage: LoadMemory {
    /// A huge page of the probe, held.
    type Block: Send;

    /// One attempt of the probe.
    ///
    /// # Errors
    ///
    /// No huge page.
    fn attempt(&self) -> Result<Self::Block, NoMemory>;

    /// Gives back what an attempt got.
    fn release(&self, block: Self::Block);

    /// Sets the balloon's target, in frames.
    fn set_balloon_target(&self, frames: u64);

    /// The balloon's target, in frames.
    fn balloon_target(&self) -> u64;

    /// What the balloon holds, in frames.
    fn balloon_actual(&self) -> u64;

    /// Has the filler give everything back and never take anything again.
    fn drop_filler(&self);

    /// Sets the watermarks of a machine at rest.
    fn rest_watermarks(&self);

    /// A pass is about to begin.
    fn begin_pass(&self, pass: &PassPlan);

    /// A pass has ended; what it got is still held.
    fn end_pass(&self, pass: &PassPlan, result: &PassResult);
}
