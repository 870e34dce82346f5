//! What a page cache is made of, and its constants.

use core::ops::Range;

use dirigible_disk::{BlockDevice, MAX_REQUEST_FRAMES};
use dirigible_frames::{FrameAllocator, OwnerId, PageSource, Pfn};
use dirigible_reclaim::Generations;

/// Is told of each page that has moved: for checks of contents.
pub trait MoveObserver: Sync {
    /// The contents of `block` have been copied from `from` to `to`, which takes its place. Nobody uses either frame
    /// during the call.
    fn moved(&self, block: u64, from: Pfn, to: Pfn);
}

/// What a page cache stands on.
pub struct CacheParts<'a, P> {
    /// The allocator of its frames.
    pub frames: &'a FrameAllocator<'a>,
    /// The machine.
    pub platform: &'a P,
    /// Its number among the owners of frames.
    pub owner: OwnerId,
    /// The disk whose blocks it holds.
    pub disk: &'a dyn BlockDevice,
    /// Where frames come from, and where they go.
    pub memory: &'a dyn PageSource,
    /// The ages of its frames.
    pub generations: &'a Generations<'a>,
    /// The blocks of the disk that are swap: pages of programs. Files have the blocks before them. May be empty: then
    /// files have all.
    pub swap: Range<u64>,
}

/// Constants of a page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheConfig {
    /// Whoever makes pages dirty is held up above this share of free and cached frames, in percent. Default 20.
    pub dirty_percent: u8,
    /// The flusher begins above this share, in percent. Default 10.
    pub background_percent: u8,
    /// Blocks that the first read of a stream takes, the demanded one among them. Default 4.
    pub ahead_first: usize,
    /// Blocks that one read takes at most. Default and limit: [`MAX_REQUEST_FRAMES`].
    pub ahead_most: usize,
    /// Requests in flight at most, 1 to 64; never more than the disk's depth. Default 64.
    pub requests: usize,
    /// What has been dirty for one to two of these is written, in nanoseconds. Default 15 s.
    pub age_ns: u64,
    /// Time between two looks of the flusher for what is old, in nanoseconds. Default 5 s.
    pub period_ns: u64,
    /// Time between two looks of the flusher whether there is too much, in nanoseconds. Default 20 ms.
    pub look_ns: u64,
    /// Time between two steps of the flusher while the disk has no room, in nanoseconds. Default 1 ms.
    pub busy_ns: u64,
    /// How long whoever makes pages dirty is held up at most, in nanoseconds. Default 200 ms.
    pub throttle_ns: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            dirty_percent: 20,
            background_percent: 10,
            ahead_first: 4,
            ahead_most: MAX_REQUEST_FRAMES,
            requests: 64,
            age_ns: 15_000_000_000,
            period_ns: 5_000_000_000,
            look_ns: 20_000_000,
            busy_ns: 1_000_000,
            throttle_ns: 200_000_000,
        }
    }
}

/// How many pages there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheCounts {
    /// Blocks that have a frame, those that are being read among them.
    pub pages: u64,
    /// Pages that differ from the disk and are not being written.
    pub dirty: u64,
    /// Pages that are being written.
    pub writeback: u64,
    /// Frames that are lost, because a device that cannot be stopped may still use them.
    pub abandoned: u64,
    /// Pages that could not be read, each time counted.
    pub read_errors: u64,
    /// Pages that could not be written, each time counted.
    pub write_errors: u64,
}
