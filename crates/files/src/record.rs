//! An inode as it is on the disk, and as its copy in memory is.

use core::fmt;

use crate::{error::Error, geometry::Geometry};

/// Words of an inode.
pub(crate) const RECORD_WORDS: usize = 16;
/// Inodes in a block.
pub(crate) const INODES_PER_BLOCK: u64 = 32;
/// Extents in the inode itself.
pub(crate) const INLINE: usize = 12;
/// Extents in the block of more of them, whose first word says whose they are.
pub(crate) const MORE: usize = 511;

const KIND: usize = 0;
const SIZE: usize = 1;
const EXTENTS: usize = 2;
const MORE_BLOCK: usize = 3;
const FIRST_EXTENT: usize = 4;

/// An inode's number, from 1 on. It names an inode while it is open; later it may be another one's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct InodeId(u32);

impl InodeId {
    /// The directory that all paths begin in.
    pub const ROOT: Self = Self(1);

    /// The inode with number `number`.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode:{}", self.0)
    }
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Pages.
    File = 1,
    /// Names.
    Directory = 2,
}

impl Kind {
    pub(crate) const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            1 => Some(Self::File),
            2 => Some(Self::Directory),
            _ => None,
        }
    }
}

/// Blocks that follow each other: 40 bits of the first one, 24 bits of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub start: u64,
    pub len: u64,
}

impl Extent {
    pub const fn bits(self) -> u64 {
        self.start << 24 | self.len
    }

    /// The extent with these bits, which come from a disk.
    pub fn from_bits(bits: u64, geometry: &Geometry) -> Result<Self, Error> {
        let (start, len) = (bits >> 24, bits & ((1 << 24) - 1));
        let data = geometry.data();
        if len == 0 || start < data.start || start + len > data.end {
            return Err(Error::Damaged {
                what: "an extent lies outside of the blocks of files",
            });
        }
        Ok(Self { start, len })
    }
}

/// An inode's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record(pub [u64; RECORD_WORDS]);

impl Record {
    /// An inode that is not in use.
    pub const FREE: Self = Self([0; RECORD_WORDS]);

    pub fn new(kind: Kind) -> Self {
        let mut record = Self::FREE;
        record.0[KIND] = kind as u64;
        record
    }

    /// What it is; `None` if it is not in use, or damaged.
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_bits(self.0[KIND])
    }

    /// Whether it is not in use.
    pub fn is_free(&self) -> bool {
        self.0[KIND] == 0
    }

    pub fn size(&self) -> u64 {
        self.0[SIZE]
    }

    pub fn set_size(&mut self, pages: u64) {
        self.0[SIZE] = pages;
    }

    /// How many extents it has.
    pub fn extents(&self) -> usize {
        self.0[EXTENTS] as usize
    }

    pub fn set_extents(&mut self, count: usize) {
        self.0[EXTENTS] = count as u64;
    }

    /// The block of more extents.
    pub fn more(&self) -> Option<u64> {
        (self.0[MORE_BLOCK] != 0).then_some(self.0[MORE_BLOCK])
    }

    pub fn set_more(&mut self, block: Option<u64>) {
        self.0[MORE_BLOCK] = block.unwrap_or(0);
    }

    /// The bits of extent `index`, which is in the inode itself.
    pub fn inline(&self, index: usize) -> u64 {
        self.0[FIRST_EXTENT + index]
    }

    pub fn set_inline(&mut self, index: usize, extent: Extent) {
        self.0[FIRST_EXTENT + index] = extent.bits();
    }

    /// Checks what was read from a disk: an inode in use whose numbers are within bounds. Extents in the other block are
    /// checked when they are read.
    pub fn check(&self, geometry: &Geometry) -> Result<Kind, Error> {
        let damaged = |what| Error::Damaged { what };
        let kind = self.kind().ok_or(damaged("an inode of no known kind"))?;
        let data = geometry.data();
        if self.size() > data.end - data.start {
            return Err(damaged("an inode larger than the disk"));
        }
        if self.0[EXTENTS] > (INLINE + MORE) as u64 {
            return Err(damaged("an inode with too many extents"));
        }
        let mut pages = 0;
        for index in 0..self.extents().min(INLINE) {
            pages += Extent::from_bits(self.inline(index), geometry)?.len;
        }
        match self.more() {
            Some(block) if !data.contains(&block) => {
                return Err(damaged("an inode's block of extents lies outside"));
            }
            None if self.extents() > INLINE => {
                return Err(damaged("an inode without its block of extents"));
            }
            _ => {}
        }
        if self.extents() <= INLINE && pages < self.size() {
            return Err(damaged("an inode with fewer blocks than pages"));
        }
        Ok(kind)
    }
}
