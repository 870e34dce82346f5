//! Names in memory: which inode a name in a directory has, and where its entry is.
//!
//! A name is put in by somebody who has its directory locked, and taken out by who has it locked alone and removes the
//! entry; so what is found is true for whoever has the directory locked. Without that lock it was true a moment ago.

use dirigible_frames::{FrameContents, sync::Mutex};
use dirigible_slab::{Object, SlabCache};

use crate::{
    chains::{Chains, Verdict},
    entry::{NAME_WORDS, Name},
    record::{InodeId, Kind},
};

/// Word: the directory (high half) and the inode.
const INODES: usize = 1;
/// Word: hash (high half), place of the entry, kind, length.
const WHAT: usize = 2;
/// Word: the page of the entry.
const PAGE: usize = 3;
/// First word of the name.
const NAME: usize = 4;
/// Words of an object.
pub(crate) const NAME_OBJECT_WORDS: usize = NAME + NAME_WORDS;

const HASH_SHIFT: u32 = 32;
/// It was used since the hand came by.
const USED: u64 = 1 << 24;
const SLOT_SHIFT: u32 = 16;
const KIND_SHIFT: u32 = 8;

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub inode: InodeId,
    pub kind: Kind,
    /// The directory's page with the entry.
    pub page: u64,
    /// The entry's place in that page.
    pub slot: usize,
}

/// The names in memory.
pub(crate) struct Names<'a, P> {
    cache: SlabCache<'a, P>,
    table: Mutex<Chains>,
}

impl<'a, P: FrameContents> Names<'a, P> {
    pub fn new(cache: SlabCache<'a, P>, chains: usize) -> Self {
        Self {
            cache,
            table: Mutex::new(Chains::new(chains)),
        }
    }

    pub fn slab(&self) -> &SlabCache<'a, P> {
        &self.cache
    }

    pub fn len(&self) -> u64 {
        self.table.lock().len()
    }

    /// Whether `object` is `name` in `directory`.
    fn is(&self, object: Object, directory: InodeId, name: &Name, hash: u32) -> bool {
        let what = self.cache.read(object, WHAT);
        let mine = u64::from(hash) << HASH_SHIFT | name.len as u64;
        let mask = u64::from(u32::MAX) << HASH_SHIFT | 0xff;
        what & mask == mine
            && self.cache.read(object, INODES) >> 32 == u64::from(directory.get())
            && name
                .used()
                .iter()
                .enumerate()
                .all(|(index, &word)| self.cache.read(object, NAME + index) == word)
    }

    /// What `name` in `directory` leads to, if it is in memory.
    pub fn find(&self, directory: InodeId, name: &Name) -> Option<Target> {
        let hash = name.hash();
        let table = self.table.lock();
        let object = table.find(&self.cache, key(directory, hash), |object| {
            self.is(object, directory, name, hash)
        })?;
        let what = self.cache.read(object, WHAT);
        if what & USED == 0 {
            self.cache.write(object, WHAT, what | USED);
        }
        Some(Target {
            inode: InodeId::new(self.cache.read(object, INODES) as u32),
            kind: Kind::from_bits(what >> KIND_SHIFT & 0xff)?,
            page: self.cache.read(object, PAGE),
            slot: (what >> SLOT_SHIFT & 0xff) as usize,
        })
    }

    /// Keeps a name, if there is memory for it. The directory is locked. May reclaim.
    pub fn keep(&self, directory: InodeId, name: &Name, target: Target) {
        let Ok(object) = self.cache.alloc() else {
            return;
        };
        let hash = name.hash();
        let mut words = [0; NAME_OBJECT_WORDS];
        words[INODES] = u64::from(directory.get()) << 32 | u64::from(target.inode.get());
        words[WHAT] = u64::from(hash) << HASH_SHIFT
            | USED
            | (target.slot as u64) << SLOT_SHIFT
            | (target.kind as u64) << KIND_SHIFT
            | name.len as u64;
        words[PAGE] = target.page;
        words[NAME..].copy_from_slice(&name.words);
        self.cache.write_all(object, &words);

        let mut table = self.table.lock();
        let key = key(directory, hash);
        // Another one who shares the directory's lock may have come first.
        let is = |other| self.is(other, directory, name, hash);
        if table.find(&self.cache, key, is).is_none() {
            table.insert(&self.cache, key, object);
            return;
        }
        drop(table);
        self.release(object);
    }

    /// Drops a name whose entry is being removed.
    pub fn remove(&self, directory: InodeId, name: &Name) {
        let hash = name.hash();
        let mut table = self.table.lock();
        let taken = table.remove(&self.cache, key(directory, hash), |object| {
            self.is(object, directory, name, hash)
        });
        drop(table);
        if let Some(object) = taken {
            self.release(object);
        }
    }

    /// Drops all names.
    pub fn clear(&self) {
        let mut objects = u64::MAX;
        while self.sweep(&mut objects, true) {}
    }

    /// Looks at up to `objects` names, takes these off it, and gives one up that was not used since the last look. `all`
    /// does not ask whether it was used.
    pub fn sweep(&self, objects: &mut u64, all: bool) -> bool {
        let mut table = self.table.lock();
        let taken = table.sweep(&self.cache, objects, |object| {
            let what = self.cache.read(object, WHAT);
            if what & USED != 0 && !all {
                self.cache.write(object, WHAT, what & !USED);
                return Verdict::Keep;
            }
            Verdict::Take
        });
        drop(table);
        taken.map(|object| self.release(object)).is_some()
    }

    fn release(&self, object: Object) {
        let freed = self.cache.free(object);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

/// Where a name in a directory is looked for.
fn key(directory: InodeId, hash: u32) -> u64 {
    u64::from(hash) ^ u64::from(directory.get()).wrapping_mul(0xff51_afd7_ed55_8ccd)
}
