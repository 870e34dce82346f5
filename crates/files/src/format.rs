//! Making an empty store.

use dirigible_frames::FrameContents;

use crate::{
    disk::Disk,
    error::{Error, FormatError},
    geometry::{BLOCK_BITS, Geometry, HEADER_WORDS},
    record::{InodeId, Kind, Record},
    store::{FileStore, Parts},
};

impl<P: FrameContents> FileStore<'_, P> {
    /// Makes an empty store of `inodes` inodes on the whole disk. What was there is lost.
    ///
    /// # Errors
    ///
    /// The sizes do not fit, or the disk or memory fails: then there is no store.
    pub fn format(parts: &Parts<'_, P>, inodes: u32) -> Result<Geometry, FormatError> {
        let disk = Disk {
            pages: parts.pages,
            platform: parts.platform,
        };
        let geometry = Geometry::new(disk.pages.blocks(), inodes)?;
        write_all(&disk, &geometry).map_err(FormatError::Write)?;
        Ok(geometry)
    }
}

fn write_all<P: FrameContents>(disk: &Disk<'_, P>, geometry: &Geometry) -> Result<(), Error> {
    // Until everything is there, there is no store.
    for block in geometry.headers() {
        disk.write_block(block, |_| 0)?;
        disk.pages.sync(block..block + 1)?;
    }
    let data = geometry.data();
    write_bitmap(disk, geometry.block_bitmap..geometry.inode_bitmap, |bit| {
        !data.contains(&bit)
    })?;
    write_bitmap(disk, geometry.inode_bitmap..geometry.table, |bit| {
        bit < 2 || bit > geometry.inodes.into()
    })?;
    for block in geometry.table..geometry.data {
        disk.write_block(block, |_| 0)?;
    }
    let (block, first) = geometry.place_of(InodeId::ROOT);
    disk.write_words(block, first, &Record::new(Kind::Directory).0)?;
    disk.pages.sync(geometry.block_bitmap..geometry.data)?;
    for block in geometry.headers() {
        write_header(disk, geometry, block)?;
        disk.pages.sync(block..block + 1)?;
    }
    Ok(())
}

fn write_bitmap<P: FrameContents>(
    disk: &Disk<'_, P>,
    blocks: core::ops::Range<u64>,
    is_used: impl Fn(u64) -> bool,
) -> Result<(), Error> {
    for (index, block) in blocks.enumerate() {
        let base = index as u64 * BLOCK_BITS;
        disk.write_block(block, |word| {
            let first = base + word as u64 * 64;
            (0..64).fold(0, |bits, bit| bits | u64::from(is_used(first + bit)) << bit)
        })?;
    }
    Ok(())
}

/// Writes the header into one of its blocks.
pub(crate) fn write_header<P: FrameContents>(
    disk: &Disk<'_, P>,
    geometry: &Geometry,
    block: u64,
) -> Result<(), Error> {
    let header = geometry.to_header();
    debug_assert_eq!(header.len(), HEADER_WORDS);
    disk.write_block(block, |word| header.get(word).copied().unwrap_or(0))
}
