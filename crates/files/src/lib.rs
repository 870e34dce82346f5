//! A small file store on a disk, over the page cache.
//!
//! Everything goes through [`BlockPages`](dirigible_pagecache::BlockPages): files, directories and the store's own
//! tables are blocks of one disk. Inodes and names that were met stay in memory, as slab objects of reclaimable frames,
//! and two shrinkers ([`FileStore::inode_shrinker`], [`FileStore::name_shrinker`]) give them up.
//!
//! # On the disk
//!
//! In blocks of 4 KiB, whose words are little-endian as the machine's:
//!
//! | blocks | what |
//! |---|---|
//! | 0 | the header: sizes, and a checksum |
//! | next | a bit for each block: set if it is used |
//! | next | a bit for each inode |
//! | next | the inodes, 128 bytes each |
//! | next | files and directories |
//! | the last one | the header again |
//!
//! A file is a list of *extents* (first block, length): 12 in its inode and 511 in one more block. A directory is a file
//! of entries of 64 bytes.
//!
//! # Words
//!
//! An inode is *open* as often as it was opened and not closed. A *removed* inode has no name and lives until it is
//! closed. Blocks and inodes that an operation could not give back, because the disk failed it in the middle, are *lost*:
//! nothing refers to them, and [`FileStore::audit`] counts them. Memory that is short is waited for, ten minutes; if
//! there is none then, they are lost too.
//!
//! # What it does not do
//!
//! There is no journal: after a crash the disk has what the cache had written. No rename, no holes, no links.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod audit;
mod bitmap;
mod chains;
mod directory;
mod disk;
mod entry;
mod error;
mod extents;
mod files;
mod format;
mod geometry;
mod held;
mod inodes;
mod mount;
mod names;
mod path;
mod patience;
mod record;
mod shrink;
mod sleep;
mod space;
mod store;
mod tree;

pub use audit::{Audit, Problem};
pub use entry::{Entry, NAME_BYTES};
pub use error::{Error, FormatError, HeaderError, MountError};
pub use geometry::Geometry;
pub use record::{InodeId, Kind};
pub use shrink::{InodeShrinker, NameShrinker};
pub use store::{FileStore, Parts, StoreConfig, Usage};
