//! Why an operation failed.

use dirigible_frames::OutOfMemory;
use dirigible_pagecache::CacheError;

/// Why an operation on files failed. Unless the operation says otherwise, nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// No block is free, or the file is in too many pieces.
    #[error("no space left")]
    NoSpace,
    /// No inode is free.
    #[error("no inode left")]
    NoInodes,
    /// No frame for a page, an inode or a name.
    #[error("out of memory")]
    NoMemory,
    /// The disk failed.
    #[error("the disk cannot read or write block {block}")]
    Io {
        /// The block.
        block: u64,
    },
    /// A part of the path, or what the operation is for, is not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The operation is for files.
    #[error("is a directory")]
    IsDirectory,
    /// A name of more than 55 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// An empty name, `.` or `..`, or the root where an entry of a directory is meant.
    #[error("this cannot be a name")]
    BadName,
    /// The inode is not open.
    #[error("the file is not open")]
    NotOpen,
    /// Pages beyond the end of the file.
    #[error("beyond the end of the file")]
    Beyond,
    /// The disk holds what cannot be.
    #[error("damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::OutOfMemory => Self::NoMemory,
            CacheError::Io { block } => Self::Io { block },
            CacheError::Beyond { .. } => Self::Damaged {
                what: "a block beyond the end of the disk",
            },
        }
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::NoMemory
    }
}

/// Why a disk could not be formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The tables and one block for the root do not fit.
    #[error("{blocks} blocks are too few for {inodes} inodes")]
    TooSmall {
        /// Blocks of the disk.
        blocks: u64,
        /// Inodes asked for.
        inodes: u32,
    },
    /// More blocks than a store can have.
    #[error(
        "a disk of {blocks} blocks is too large: a store has at most {}",
        crate::geometry::MAX_BLOCKS
    )]
    TooLarge {
        /// Blocks of the disk.
        blocks: u64,
    },
    /// There must be an inode for the root, and numbers must fit.
    #[error("{inodes} inodes: 1 to {} are possible", crate::geometry::MAX_INODES)]
    Inodes {
        /// Inodes asked for.
        inodes: u32,
    },
    /// The disk or memory failed.
    #[error("{0}")]
    Write(Error),
}

/// Why there is no store on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MountError {
    /// The first header is damaged, and the second too.
    #[error("the header is damaged: {first}; its copy in the last block: {second}")]
    Header {
        /// What is wrong with the header in block 0.
        first: HeaderError,
        /// What is wrong with the one in the last block.
        second: HeaderError,
    },
    /// The tables cannot be read, or hold what cannot be.
    #[error("{0}")]
    Read(Error),
}

/// What is wrong with a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Its block cannot be read.
    #[error("it cannot be read ({0})")]
    Unreadable(Error),
    /// No store was ever here.
    #[error("its magic number is {found:#x}")]
    Magic {
        /// The number found.
        found: u64,
    },
    /// A store of another time.
    #[error("its version is {found}, and {} is known", crate::geometry::VERSION)]
    Version {
        /// The version found.
        found: u64,
    },
    /// Its contents have changed.
    #[error("its checksum is {found:#x} and should be {expected:#x}")]
    Checksum {
        /// The checksum found.
        found: u64,
        /// The checksum of what was found.
        expected: u64,
    },
    /// The store was made for a larger disk.
    #[error("it is of a store of {blocks} blocks, and the disk has {disk}")]
    Size {
        /// Blocks of the store.
        blocks: u64,
        /// Blocks of the disk.
        disk: u64,
    },
    /// The tables are not where a store of its size has them.
    #[error("its field '{field}' does not fit its sizes")]
    Layout {
        /// The field.
        field: &'static str,
    },
}
