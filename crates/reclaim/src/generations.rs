//! Generations: which frames are old. (In the making.)

use dirigible_frames::{FrameAllocator, Pfn};

/// When a frame was reclaimed, on the clock of evictions; 30 bits, wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp(u32);

impl Stamp {
    /// The 30 bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The stamp with these bits; the lowest 30 count.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & ((1 << 30) - 1))
    }
}

/// Where a new frame begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// In the second oldest generation: read once, or ahead.
    New,
    /// In the youngest: known to be in use.
    Young,
}

/// The generations of all reclaimable frames of an allocator.
///
/// An owner calls [`add`](Self::add) when a frame comes onto its books, [`used`](Self::used) at each use,
/// [`remove`](Self::remove) before the frame leaves. Counts by block are hints.
pub struct Generations<'a> {
    frames: &'a FrameAllocator<'a>,
}

impl<'a> Generations<'a> {
    /// The generations of `frames`. Allocates its tables from the heap, four bits a block.
    pub fn new(frames: &'a FrameAllocator<'a>) -> Self {
        Self { frames }
    }

    /// `frame`, which its owner holds, can be reclaimed from now on.
    pub fn add(&self, frame: Pfn, age: Age) {
        let _ = (self.frames, frame, age);
    }

    /// `frame` is about to leave its owner's books.
    pub fn remove(&self, frame: Pfn) {
        let _ = frame;
    }

    /// `to` has taken the place of `from` (a migration): same generation and marks.
    pub fn moved(&self, from: Pfn, to: Pfn) {
        let _ = (from, to);
    }

    /// `frame` is used: the first time it is marked `REFERENCED`, then `ACTIVE`. Costs one load where nothing changes.
    pub fn used(&self, frame: Pfn) {
        let _ = frame;
    }

    /// `frame` has become dirty, or clean: for the counts by block.
    pub fn dirtied(&self, frame: Pfn, dirty: bool) {
        let _ = (frame, dirty);
    }

    /// Contents that reclaim took at `stamp` are wanted again. Gives whether they were in use: then the frame is added
    /// as [`Age::Young`] and marked `WORKINGSET`. Counts the events.
    pub fn refault(&self, stamp: Stamp) -> bool {
        let _ = stamp;
        false
    }
}
