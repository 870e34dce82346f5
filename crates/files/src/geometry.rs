//! Where the tables lie, and the header that says so.

use core::ops::Range;

use crate::{
    error::{FormatError, HeaderError},
    record::{INODES_PER_BLOCK, InodeId},
};

/// "dirgfile", read as a little-endian word.
const MAGIC: u64 = 0x656c_6966_6772_6964;
/// The version of the format.
pub(crate) const VERSION: u64 = 1;
/// Words of a block.
pub(crate) const BLOCK_WORDS: usize = 512;
/// Bits of a block.
pub(crate) const BLOCK_BITS: u64 = 64 * BLOCK_WORDS as u64;
/// The most blocks that a store can have, 16 TiB: first blocks of extents are numbers of 40 bits.
pub(crate) const MAX_BLOCKS: u64 = 1 << 32;
/// The most pages of a file, a page less than 64 GiB: lengths of extents are numbers of 24 bits.
pub(crate) const MAX_PAGES: u64 = (1 << 24) - 1;
/// The most inodes that a store can have.
pub(crate) const MAX_INODES: u32 = 1 << 24;

/// Words of a header that mean something; the last is the checksum.
pub(crate) const HEADER_WORDS: usize = 10;
/// The fields of a header in their order, for messages.
const FIELDS: [&str; HEADER_WORDS] = [
    "magic",
    "version",
    "blocks",
    "inodes",
    "first block of the block bitmap",
    "first block of the inode bitmap",
    "first block of the inodes",
    "first block of the files",
    "end of the files",
    "checksum",
];

/// The layout of a store; all of it follows from two sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Blocks of the store.
    pub blocks: u64,
    /// Inodes of the store; numbers from 1.
    pub inodes: u32,
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) table: u64,
    /// First block of files and directories.
    pub(crate) data: u64,
}

impl Geometry {
    /// The layout of a store of these sizes.
    ///
    /// # Errors
    ///
    /// It does not fit, or the numbers do not.
    pub fn new(blocks: u64, inodes: u32) -> Result<Self, FormatError> {
        if blocks > MAX_BLOCKS {
            return Err(FormatError::TooLarge { blocks });
        }
        if !(1..=MAX_INODES).contains(&inodes) {
            return Err(FormatError::Inodes { inodes });
        }
        let block_bitmap = 1;
        let inode_bitmap = block_bitmap + blocks.div_ceil(BLOCK_BITS);
        let table = inode_bitmap + (u64::from(inodes) + 1).div_ceil(BLOCK_BITS);
        let data = table + u64::from(inodes).div_ceil(INODES_PER_BLOCK);
        // A block for the root, and the second header.
        if data + 2 > blocks {
            return Err(FormatError::TooSmall { blocks, inodes });
        }
        Ok(Self {
            blocks,
            inodes,
            block_bitmap,
            inode_bitmap,
            table,
            data,
        })
    }

    /// The blocks that files and directories can have.
    pub const fn data(&self) -> Range<u64> {
        self.data..self.blocks - 1
    }

    /// The blocks of the header.
    pub(crate) const fn headers(&self) -> [u64; 2] {
        [0, self.blocks - 1]
    }

    /// Whether there is an inode of this number.
    pub(crate) const fn has_inode(&self, inode: InodeId) -> bool {
        inode.get() >= 1 && inode.get() <= self.inodes
    }

    /// The block and the first word of an inode that exists.
    pub(crate) fn place_of(&self, inode: InodeId) -> (u64, usize) {
        let index = u64::from(inode.get() - 1);
        let slot = (index % INODES_PER_BLOCK) as usize;
        (
            self.table + index / INODES_PER_BLOCK,
            slot * (BLOCK_WORDS / INODES_PER_BLOCK as usize),
        )
    }

    /// The header's words.
    pub(crate) fn to_header(self) -> [u64; HEADER_WORDS] {
        let mut words = [
            MAGIC,
            VERSION,
            self.blocks,
            self.inodes.into(),
            self.block_bitmap,
            self.inode_bitmap,
            self.table,
            self.data,
            self.data().end,
            0,
        ];
        words[HEADER_WORDS - 1] = checksum(&words[..HEADER_WORDS - 1]);
        words
    }

    /// The layout that a header describes, on a disk of `disk` blocks.
    pub(crate) fn from_header(words: &[u64; HEADER_WORDS], disk: u64) -> Result<Self, HeaderError> {
        let [magic, version, blocks, inodes, .., found] = *words;
        if magic != MAGIC {
            return Err(HeaderError::Magic { found: magic });
        }
        if version != VERSION {
            return Err(HeaderError::Version { found: version });
        }
        let expected = checksum(&words[..HEADER_WORDS - 1]);
        if found != expected {
            return Err(HeaderError::Checksum { found, expected });
        }
        if blocks > disk {
            return Err(HeaderError::Size { blocks, disk });
        }
        let layout = |field| HeaderError::Layout { field };
        let inodes = u32::try_from(inodes).map_err(|_| layout(FIELDS[3]))?;
        let geometry = Self::new(blocks, inodes).map_err(|error| match error {
            FormatError::Inodes { .. } => layout(FIELDS[3]),
            _ => layout(FIELDS[2]),
        })?;
        // Everything else follows from the sizes, so that no field of a disk places a table.
        match geometry
            .to_header()
            .iter()
            .zip(words)
            .position(|(a, b)| a != b)
        {
            Some(field) => Err(layout(FIELDS[field])),
            None => Ok(geometry),
        }
    }
}

/// A checksum of words that changes with each bit and with their order.
fn checksum(words: &[u64]) -> u64 {
    words.iter().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, &word| {
        let mixed = (sum ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ mixed >> 32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_follow_each_other_and_nothing_overlaps() {
        for (blocks, inodes) in [(7, 1), (6000, 5000), (1 << 20, 100_000), (40_000, 32_768)] {
            let g = Geometry::new(blocks, inodes).unwrap();
            assert!(1 == g.block_bitmap && g.block_bitmap < g.inode_bitmap);
            assert!(g.inode_bitmap < g.table && g.table < g.data);
            assert!((g.inode_bitmap - g.block_bitmap) * BLOCK_BITS >= blocks);
            assert!((g.table - g.inode_bitmap) * BLOCK_BITS > u64::from(inodes));
            let (last, word) = g.place_of(InodeId::new(inodes));
            assert!(last < g.data && word + 16 <= BLOCK_WORDS);
            assert_eq!(Geometry::from_header(&g.to_header(), blocks), Ok(g));
        }
        assert!(matches!(
            Geometry::new(5, 1),
            Err(FormatError::TooSmall { .. })
        ));
        let large = Geometry::new(1 << 32, MAX_INODES).unwrap();
        assert_eq!(large.data().end, (1 << 32) - 1);
        assert!(matches!(
            Geometry::new(100, 0),
            Err(FormatError::Inodes { .. })
        ));
        assert!(matches!(
            Geometry::new((1 << 32) + 1, 1),
            Err(FormatError::TooLarge { .. })
        ));
    }

    #[test]
    fn each_changed_bit_of_a_header_is_found() {
        let g = Geometry::new(6000, 5000).unwrap();
        for word in 0..HEADER_WORDS {
            for bit in 0..64 {
                let mut words = g.to_header();
                words[word] ^= 1 << bit;
                assert!(Geometry::from_header(&words, 6000).is_err());
            }
        }
    }

    #[test]
    fn a_header_with_a_right_checksum_is_still_not_believed() {
        let g = Geometry::new(6000, 5000).unwrap();
        for word in 2..HEADER_WORDS - 1 {
            for value in [0, 1, 5999, u64::MAX, 1 << 32] {
                let mut words = g.to_header();
                if words[word] == value {
                    continue;
                }
                words[word] = value;
                words[HEADER_WORDS - 1] = checksum(&words[..HEADER_WORDS - 1]);
                assert!(
                    Geometry::from_header(&words, 6000).is_err(),
                    "{word} {value}"
                );
            }
        }
    }
}
