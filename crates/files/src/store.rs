//! The store as a whole.

use dirigible_frames::{
    FrameAllocator, FrameContents, PageSource,
    sync::{AtomicU64, Ordering},
};
use dirigible_pagecache::BlockPages;

use crate::{
    disk::Disk, error::Error, geometry::Geometry, inodes::Hold, inodes::Inodes, names::Names,
    patience::Patience, space::Space,
};

/// What a store is put on.
pub struct Parts<'a, P> {
    /// The allocator, for the events.
    pub frames: &'a FrameAllocator<'a>,
    /// The machine.
    pub platform: &'a P,
    /// Where the frames of inodes and names come from. It may reclaim, and call the store's own shrinkers.
    pub source: &'a dyn PageSource,
    /// The disk, in pages.
    pub pages: &'a dyn BlockPages,
}

impl<P> Clone for Parts<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P> Copy for Parts<'_, P> {}

/// What a store keeps in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// Chains of the table of inodes, a word each on the heap: about as many as inodes are expected in memory.
    pub inode_chains: usize,
    /// The same of names.
    pub name_chains: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            inode_chains: 4096,
            name_chains: 8192,
        }
    }
}

/// How full a store and its memory are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Blocks for files and directories.
    pub blocks: u64,
    /// Of these, free ones.
    pub free_blocks: u64,
    /// Inodes.
    pub inodes: u64,
    /// Of these, free ones.
    pub free_inodes: u64,
    /// Blocks that could not be given back since the mount.
    pub lost_blocks: u64,
    /// Inodes that could not be given back since the mount.
    pub lost_inodes: u64,
    /// Inodes in memory.
    pub cached_inodes: u64,
    /// Of these, open ones.
    pub open_inodes: u64,
    /// Names in memory.
    pub cached_names: u64,
    /// Frames of inodes in memory.
    pub inode_frames: u64,
    /// Frames of names in memory.
    pub name_frames: u64,
}

/// A store of files on a disk.
///
/// A store that is dropped without [`unmount`](Self::unmount) leaves the frames of its inodes and names allocated.
///
/// All operations may be called from several programs and CPUs at once. They wait for pages, for memory and for each other
/// by letting others run (`Platform::relax`): the caller holds no lock that others spin on.
///
/// Locks, in this order: a directory, the inode of one of its entries (deeper in the tree), a bitmap. These are waited for
/// with `relax`. The tables of inodes and names are leaves, and held over no page.
pub struct FileStore<'a, P: FrameContents> {
    pub(crate) frames: &'a FrameAllocator<'a>,
    pub(crate) disk: Disk<'a, P>,
    pub(crate) geometry: Geometry,
    /// Which blocks are free.
    pub(crate) blocks: Space,
    /// Which inodes are free.
    pub(crate) numbers: Space,
    pub(crate) inodes: Inodes<'a, P>,
    pub(crate) names: Names<'a, P>,
    /// Directories removed so far.
    pub(crate) directories_removed: AtomicU64,
    pub(crate) lost_blocks: AtomicU64,
    pub(crate) lost_inodes: AtomicU64,
    /// Which header the store was mounted from.
    pub(crate) from_copy: bool,
}

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// The sizes of the store.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether the header in block 0 was damaged when the store was mounted. It has been written anew from the other one.
    pub fn was_repaired(&self) -> bool {
        self.from_copy
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let data = self.geometry.data();
        let (cached_inodes, open_inodes) = self.inodes.counts();
        // Relaxed: counts for reports.
        Usage {
            blocks: data.end - data.start,
            free_blocks: self.blocks.free(),
            inodes: self.geometry.inodes.into(),
            free_inodes: self.numbers.free(),
            lost_blocks: self.lost_blocks.load(Ordering::Relaxed),
            lost_inodes: self.lost_inodes.load(Ordering::Relaxed),
            cached_inodes,
            open_inodes,
            cached_names: self.names.len(),
            inode_frames: self.inodes.slab().frames(),
            name_frames: self.names.slab().frames(),
        }
    }

    pub(crate) fn lose_blocks(&self, blocks: u64) {
        // Relaxed: a count for reports.
        self.lost_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(crate) fn lose_inodes(&self, inodes: u64) {
        // Relaxed: a count for reports.
        self.lost_inodes.fetch_add(inodes, Ordering::Relaxed);
    }

    /// The patience of an operation that gives something back.
    pub(crate) fn patience(&self) -> Patience<'a, P> {
        Patience::new(self.disk.platform)
    }

    /// Writes everything to the disk and waits.
    ///
    /// # Errors
    ///
    /// The first of the disk. What could not be written stays dirty.
    pub fn sync_all(&self) -> Result<(), Error> {
        Ok(self.disk.pages.sync(0..self.geometry.blocks)?)
    }

    /// Ends the store: files that are open are closed, everything is written, and the memory of inodes and names is given
    /// back. No operation is under way.
    ///
    /// # Errors
    ///
    /// The first of the disk. The memory is given back in any case.
    pub fn unmount(self) -> Result<(), Error> {
        self.give_all_back()
    }

    /// The same for a store that others still refer to: closes all files, writes everything and gives all memory back. It
    /// can be used again afterwards, as one that was just mounted.
    ///
    /// # Errors
    ///
    /// As [`unmount`](Self::unmount).
    pub fn give_all_back(&self) -> Result<(), Error> {
        self.give_up_memory();
        self.sync_all()
    }

    fn give_up_memory(&self) {
        while let Some(object) = self.inodes.clear() {
            let inode = self.inodes.number(object);
            self.free_inode(self.held(inode, object, Hold::Alone));
        }
        self.names.clear();
        self.inodes.slab().shrink();
        self.names.slab().shrink();
    }
}
