//! Finding a store on a disk.

use dirigible_frames::{FrameClass, FrameContents, sync::AtomicU64};
use dirigible_slab::{SlabCache, SlabConfig};

use crate::{
    disk::Disk,
    error::{Error, HeaderError, MountError},
    format::write_header,
    geometry::{Geometry, HEADER_WORDS},
    inodes::{INODE_WORDS, Inodes},
    names::{NAME_OBJECT_WORDS, Names},
    record::{InodeId, Kind, Record},
    space::Space,
    store::{FileStore, Parts, StoreConfig},
};

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// The store on a disk. Reads its header and its bitmaps, and allocates its tables from the heap.
    ///
    /// If the first header is damaged the second one counts, and the first is written anew.
    ///
    /// # Errors
    ///
    /// What is wrong with the headers, or why the tables cannot be read.
    pub fn mount(parts: Parts<'a, P>, config: StoreConfig) -> Result<Self, MountError> {
        let disk = Disk {
            pages: parts.pages,
            platform: parts.platform,
        };
        let (geometry, from_copy) = read_headers(&disk)?;
        if from_copy {
            write_header(&disk, &geometry, 0).map_err(MountError::Read)?;
        }
        let slab = |name, object_words| {
            let config = SlabConfig {
                object_words,
                class: FrameClass::Reclaimable,
                name,
            };
            SlabCache::new(parts.frames, parts.platform, parts.source, config)
                .map_err(|_| MountError::Read(Error::NoMemory))
        };
        let load = || {
            let numbers = 2..u64::from(geometry.inodes) + 1;
            let blocks = Space::load(&disk, geometry.block_bitmap, geometry.data())?;
            let numbers = Space::load(&disk, geometry.inode_bitmap, numbers)?;
            Ok((blocks, numbers))
        };
        let (blocks, numbers) = load().map_err(MountError::Read)?;
        let store = Self {
            frames: parts.frames,
            disk,
            geometry,
            blocks,
            numbers,
            inodes: Inodes::new(slab("inodes", INODE_WORDS)?, config.inode_chains),
            names: Names::new(slab("names", NAME_OBJECT_WORDS)?, config.name_chains),
            directories_removed: AtomicU64::new(0),
            lost_blocks: AtomicU64::new(0),
            lost_inodes: AtomicU64::new(0),
            from_copy,
        };
        store.check_root().map_err(MountError::Read)?;
        Ok(store)
    }

    fn check_root(&self) -> Result<(), Error> {
        let root: Record = self.read_record(InodeId::ROOT)?;
        match root.check(&self.geometry)? {
            Kind::Directory => Ok(()),
            Kind::File => Err(Error::Damaged {
                what: "the root is no directory",
            }),
        }
    }
}

/// The layout that one of the headers describes, and whether it is the second one.
fn read_headers<P: FrameContents>(disk: &Disk<'_, P>) -> Result<(Geometry, bool), MountError> {
    let first = match read_header(disk, 0) {
        Ok(geometry) => return Ok((geometry, false)),
        Err(error) => error,
    };
    let last = disk.pages.blocks().saturating_sub(1);
    match read_header(disk, last) {
        Ok(geometry) => Ok((geometry, true)),
        Err(second) => Err(MountError::Header { first, second }),
    }
}

fn read_header<P: FrameContents>(disk: &Disk<'_, P>, block: u64) -> Result<Geometry, HeaderError> {
    let mut words = [0; HEADER_WORDS];
    disk.read_words(block, 0, &mut words)
        .map_err(HeaderError::Unreadable)?;
    Geometry::from_header(&words, disk.pages.blocks())
}
