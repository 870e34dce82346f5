//! Index spaces: frame numbers, pageblocks, orders, CPUs and zones, each a type of its own.

use core::fmt;

/// Bytes in a page frame.
pub const FRAME_SIZE: usize = 4096;
/// log2 of [`FRAME_SIZE`].
pub const FRAME_SHIFT: u32 = 12;
/// Frames in a pageblock (2 MiB).
pub const FRAMES_PER_BLOCK: usize = 512;
/// log2 of [`FRAMES_PER_BLOCK`].
pub const BLOCK_SHIFT: u32 = 9;

/// A page frame number: a physical address divided by [`FRAME_SIZE`].
///
/// Holding one proves nothing about the frame: it may be a hole, free, or somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// The frame with number `number`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The physical address of the frame's first byte.
    pub const fn address(self) -> u64 {
        self.0 << FRAME_SHIFT
    }

    /// The frame that holds physical address `address`.
    pub const fn containing(address: u64) -> Self {
        Self(address >> FRAME_SHIFT)
    }

    /// The frame `frames` further up.
    pub const fn plus(self, frames: u64) -> Self {
        Self(self.0 + frames)
    }

    /// The position inside its pageblock, 0 to 511.
    pub const fn offset_in_block(self) -> usize {
        (self.0 & (FRAMES_PER_BLOCK as u64 - 1)) as usize
    }

    /// The first frame of its pageblock.
    pub const fn block_base(self) -> Self {
        Self(self.0 & !(FRAMES_PER_BLOCK as u64 - 1))
    }

    /// Whether a run of `order` may begin here.
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.frames() as u64 - 1) == 0
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn:{:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A pageblock of one allocator: its position in the allocator's tables, zone by zone, in the order in which memory was
/// given.
///
/// It is not an absolute block number, and there may be a hole between a block and the next:
/// see [`block_above`](crate::FrameAllocator::block_above).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockId(u32);

impl BlockId {
    /// The block with index `index`.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The index, for table look-ups.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block:{}", self.0)
    }
}

/// The size of a run of frames: 2^order frames, aligned to their size. 0 to 10.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One frame.
    pub const BASE: Self = Self(0);
    /// One pageblock, a huge page.
    pub const HUGE: Self = Self(BLOCK_SHIFT as u8);
    /// The largest order that can be asked for.
    pub const MAX: Self = Self(10);

    /// The order `order`, or `None` above [`Order::MAX`].
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 {
            Some(Self(order))
        } else {
            None
        }
    }

    /// The exponent.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Frames in a run of this order.
    pub const fn frames(self) -> usize {
        1 << self.0
    }
}

/// A processor, as numbered by the platform from 0 without gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct CpuId(u16);

impl CpuId {
    /// The processor with number `number`.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number, for table look-ups.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A zone of one allocator, in the order of [`Config::zones`](crate::Config::zones).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ZoneId(u8);

impl ZoneId {
    /// Zone number `index`.
    pub const fn new(index: u8) -> Self {
        Self(index)
    }

    /// The position in [`Config::zones`](crate::Config::zones).
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
