//! A check of the whole store against its tables.

use alloc::{vec, vec::Vec};

use dirigible_frames::FrameContents;

use crate::{
    entry::Entry,
    error::Error,
    record::{InodeId, Kind, Record},
    store::FileStore,
};

/// What a store holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Files with a name.
    pub files: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Pages of all of these, and of removed files.
    pub pages: u64,
    /// Files that were removed and are still open, or were [closed at once](FileStore::close_at_once).
    pub removed: u64,
    /// Blocks in use that nothing refers to.
    pub lost_blocks: u64,
    /// Inodes in use that nothing refers to.
    pub lost_inodes: u64,
}

/// Why a store is not sound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// Something cannot be read, or cannot be.
    #[error("{inode:?}: {error}")]
    Inode {
        /// The inode, or the directory with the entry.
        inode: InodeId,
        /// What is wrong.
        error: Error,
    },
    /// A bitmap cannot be read.
    #[error("a bitmap: {0}")]
    Bitmap(Error),
    /// Two inodes have the same block.
    #[error("block {block} of {inode:?} is in use twice")]
    Shared {
        /// The block.
        block: u64,
        /// Who was found to have it, after another one.
        inode: InodeId,
    },
    /// An inode has a block that is free.
    #[error("block {block} of {inode:?} is free")]
    FreeBlock {
        /// The block.
        block: u64,
        /// Who has it.
        inode: InodeId,
    },
    /// An inode in use whose number is free.
    #[error("{inode:?} is in use and its number is free")]
    FreeInode {
        /// The inode.
        inode: InodeId,
    },
    /// An inode has two names.
    #[error("{inode:?} has two names")]
    TwoNames {
        /// The inode.
        inode: InodeId,
    },
    /// The sums in memory are not those of the bitmaps.
    #[error("{counted} are counted free, and {found} are")]
    Sums {
        /// As memory has it.
        counted: u64,
        /// As the bitmap has it.
        found: u64,
    },
}

/// A bit for each number.
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u64) -> Self {
        Self(vec![0; count.div_ceil(64) as usize])
    }

    /// Sets a bit; gives whether it was set.
    fn set(&mut self, at: u64) -> bool {
        let word = &mut self.0[at as usize / 64];
        let was = *word >> (at % 64) & 1 == 1;
        *word |= 1 << (at % 64);
        was
    }

    fn has(&self, at: u64) -> bool {
        self.0[at as usize / 64] >> (at % 64) & 1 == 1
    }
}

struct Walk<'s, 'a, P: FrameContents> {
    store: &'s FileStore<'a, P>,
    /// Blocks in use, as the bitmap says.
    used_blocks: Bits,
    used_inodes: Bits,
    /// Blocks and inodes that were met.
    blocks: Bits,
    inodes: Bits,
    audit: Audit,
    /// Directories that are still to be visited.
    todo: Vec<InodeId>,
}

impl<P: FrameContents> FileStore<'_, P> {
    /// Walks everything and compares it with the bitmaps. Allocates from the heap; no operation is under way.
    ///
    /// # Errors
    ///
    /// The first problem. What is only lost is none.
    pub fn audit(&self) -> Result<Audit, Problem> {
        let geometry = &self.geometry;
        let inodes = u64::from(geometry.inodes) + 1;
        let mut walk = Walk {
            store: self,
            used_blocks: Bits::new(geometry.blocks),
            used_inodes: Bits::new(inodes),
            blocks: Bits::new(geometry.blocks),
            inodes: Bits::new(inodes),
            audit: Audit::default(),
            todo: Vec::new(),
        };
        walk.read_bitmaps()?;
        walk.visit_tree()?;
        walk.visit_removed()?;
        walk.count_lost()?;
        Ok(walk.audit)
    }
}

impl<P: FrameContents> Walk<'_, '_, P> {
    fn read_bitmaps(&mut self) -> Result<(), Problem> {
        let store = self.store;
        let tables = [
            (&store.blocks, &mut self.used_blocks),
            (&store.numbers, &mut self.used_inodes),
        ];
        for (space, used) in tables {
            let found = space
                .recount(&store.disk, &mut |bit| {
                    used.set(bit);
                })
                .map_err(Problem::Bitmap)?;
            let counted = space.free();
            if counted != found {
                return Err(Problem::Sums { counted, found });
            }
        }
        self.used_inodes.set(InodeId::ROOT.get().into());
        Ok(())
    }

    fn visit_tree(&mut self) -> Result<(), Problem> {
        let root = self.visit(InodeId::ROOT, Kind::Directory)?;
        self.enter(InodeId::ROOT, &root);
        while let Some(directory) = self.todo.pop() {
            let record = self.read(directory)?;
            let mut entries = Vec::new();
            let mut keep = |entry: &Entry| {
                entries.push(*entry);
                Ok(())
            };
            self.store
                .for_each_entry(directory, &record, &mut keep)
                .map_err(|error| problem(directory, error))?;
            for entry in &entries {
                let record = self.visit(entry.inode, entry.kind)?;
                self.enter(entry.inode, &record);
            }
        }
        Ok(())
    }

    fn enter(&mut self, inode: InodeId, record: &Record) {
        match record.kind() {
            Some(Kind::Directory) => {
                self.audit.directories += 1;
                self.todo.push(inode);
            }
            _ => self.audit.files += 1,
        }
    }

    fn visit_removed(&mut self) -> Result<(), Problem> {
        let mut removed = Vec::new();
        self.store
            .inodes
            .for_each_removed(|inode| removed.push(inode));
        for inode in removed {
            let record = self.read(inode)?;
            let kind = record.kind().unwrap_or(Kind::File);
            self.visit(inode, kind)?;
            self.audit.removed += 1;
        }
        Ok(())
    }

    fn read(&self, inode: InodeId) -> Result<Record, Problem> {
        let record = self.store.read_record(inode);
        record.map_err(|error| problem(inode, error))
    }

    /// Marks an inode and its blocks.
    fn visit(&mut self, inode: InodeId, kind: Kind) -> Result<Record, Problem> {
        let store = self.store;
        if self.inodes.set(inode.get().into()) {
            return Err(Problem::TwoNames { inode });
        }
        if !self.used_inodes.has(inode.get().into()) {
            return Err(Problem::FreeInode { inode });
        }
        let record = self.read(inode)?;
        let found = record.check(&store.geometry);
        if found.map_err(|error| problem(inode, error))? != kind {
            let what = "an entry of a directory has another kind";
            return Err(problem(inode, Error::Damaged { what }));
        }
        let mut runs = Vec::new();
        store
            .for_each_run(inode, &record, 0..record.size(), |_, run| {
                runs.push(run);
                Ok(())
            })
            .map_err(|error| problem(inode, error))?;
        runs.extend(record.more().map(|block| block..block + 1));
        for block in runs.into_iter().flatten() {
            if self.blocks.set(block) {
                return Err(Problem::Shared { block, inode });
            }
            if !self.used_blocks.has(block) {
                return Err(Problem::FreeBlock { block, inode });
            }
        }
        self.audit.pages += record.size();
        Ok(record)
    }

    fn count_lost(&mut self) -> Result<(), Problem> {
        let geometry = &self.store.geometry;
        for block in geometry.data() {
            let lost = self.used_blocks.has(block) && !self.blocks.has(block);
            self.audit.lost_blocks += u64::from(lost);
        }
        for number in 1..=geometry.inodes {
            let met = self.inodes.has(number.into());
            let used = self.used_inodes.has(number.into());
            self.audit.lost_inodes += u64::from(used && !met);
            // A free number whose inode is in use would be refused when it is handed out.
            let inode = InodeId::new(number);
            if !used && !self.read(inode)?.is_free() {
                return Err(Problem::FreeInode { inode });
            }
        }
        Ok(())
    }
}

fn problem(inode: InodeId, error: Error) -> Problem {
    Problem::Inode { inode, error }
}
