//! What the experiment needs of a machine: memory for the load, blocks for the probe, a balloon.
//!
//! [`System`](crate::system::System), the real machine, implements the traits. Compile jobs, kernel memory and the
//! passes are written against them, so tests can put another machine in its place.

use core::ops::Range;

use dirigible_frames::{Order, Pfn};

use crate::timeline::{PassPlan, PassResult};

/// The request found no memory: its requester waits or does without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

/// An address space of a compile job.
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

/// Kernel memory that was allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelMemory {
    /// The request that it serves.
    pub request: KernelRequest,
    /// The first frame.
    pub first: Pfn,
    /// Number of the contents: selects their pattern.
    pub serial: u64,
}

/// How much of the contents is checked when memory is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// The four lines that this random draw selects.
    Four(u32),
    /// Every line.
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

    /// Makes `page` of `space` present and fills new pages with their pattern. With `huge` the aligned 512 pages from
    /// `page` on may be mapped as one huge page. Returns how many pages from `page` on are present now: 1 or 512.
    ///
    /// # Errors
    ///
    /// No memory for the page or a page table.
    fn fault(&self, space: Space, page: u64, huge: bool) -> Result<u64, NoMemory>;

    /// Uses a page again, if it is present: checks the four lines that `draw` selects.
    fn reuse(&self, space: Space, page: u64, draw: u32);

    /// Checks the pages of the range that are present.
    fn check(&self, space: Space, pages: Range<u64>, check: Check);

    /// Gives back the pages of the range that are present.
    fn give_back(&self, space: Space, pages: Range<u64>);

    /// Destroys an address space and frees its pages.
    fn exit(&self, space: Space);

    /// Allocates kernel memory and fills it with its pattern.
    ///
    /// # Errors
    ///
    /// No memory of that kind.
    fn kernel_alloc(&self, request: KernelRequest) -> Result<KernelMemory, NoMemory>;

    /// Checks kernel memory and gives it back.
    fn kernel_free(&self, memory: KernelMemory, check: Check);
}

/// What the passes need of a machine, beside the load's memory.
pub trait PassMachine: LoadMemory {
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

    /// Sets the balloon's target, in frames.
    fn set_balloon_target(&self, frames: u64);

    /// The balloon's target, in frames.
    fn balloon_target(&self) -> u64;

    /// The balloon's size, in frames.
    fn balloon_actual(&self) -> u64;

    /// Makes the filler give all its frames back and take none again.
    fn drop_filler(&self);

    /// Sets the watermarks of a machine at rest.
    fn rest_watermarks(&self);

    /// Called before a pass begins, at `now`.
    fn begin_pass(&self, pass: &PassPlan, now: u64);

    /// Called many times in a second while a pass is under way.
    fn sample_pass(&self, now: u64);

    /// Called after each fault of the THP test: when it was begun, and whether it got a huge page.
    fn faulted(&self, at: u64, got: bool);

    /// Called when a pass has ended, while its huge pages are still held.
    fn end_pass(&self, pass: &PassPlan, result: &PassResult);
}
