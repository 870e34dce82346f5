//! What a file store asks of the page cache.

use core::ops::Range;

use dirigible_frames::Pfn;

/// Why a block is not in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CacheError {
    /// No frame for it.
    #[error("out of memory")]
    OutOfMemory,
    /// The disk could not read or write it.
    #[error("the disk cannot read or write block {block}")]
    Io {
        /// The block.
        block: u64,
    },
    /// No such block.
    #[error("block {block} is beyond the end of the disk")]
    Beyond {
        /// The block.
        block: u64,
    },
}

/// Disk blocks in memory. The calls may wait for the disk and for memory (`Platform::relax`): the caller holds no lock
/// that others spin on. The functions that they are given touch the frame and nothing else; they do not wait.
pub trait BlockPages: Sync {
    /// How many blocks files have: the disk's, up to where swap begins.
    fn blocks(&self) -> u64;

    /// Reads `block` from the disk, if it is not there, and calls `with` with its frame. Blocks of `ahead` that follow
    /// may be read with it.
    ///
    /// # Errors
    ///
    /// `with` was not called.
    fn read(
        &self,
        block: u64,
        ahead: Range<u64>,
        with: &mut dyn FnMut(Pfn),
    ) -> Result<(), CacheError>;

    /// Calls `change` with the frame of `block` and marks it dirty. With `whole` the frame's contents before are
    /// meaningless: `change` writes all of it, and nothing is read from the disk.
    ///
    /// # Errors
    ///
    /// `change` was not called.
    fn write(&self, block: u64, whole: bool, change: &mut dyn FnMut(Pfn))
    -> Result<(), CacheError>;

    /// Drops the blocks of the range, dirty or not: their contents are no longer wanted. Waits for what is being read
    /// or written. Gives how many frames became free.
    fn forget(&self, blocks: Range<u64>) -> u64;

    /// Drops the clean blocks of the range that nobody uses, without waiting; gives how many.
    fn drop_clean(&self, blocks: Range<u64>) -> u64;

    /// Writes the dirty blocks of the range and waits for them.
    ///
    /// # Errors
    ///
    /// The first block that could not be written; it stays dirty.
    fn sync(&self, blocks: Range<u64>) -> Result<(), CacheError>;
}
