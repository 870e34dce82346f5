//! Inodes in memory: slab objects in a table, each with a lock that is waited for by letting others run.
//!
//! An object's words of control are protected by the table's lock, a leaf that is held for a few loads and stores. Its
//! copy of the inode is read by whoever holds the inode's lock in either way, and written by who holds it alone. What is
//! on the disk is the same: a change is written there first. So an inode that nobody locks and nobody has open can be
//! given up at any time.

use dirigible_frames::{FrameContents, OutOfMemory, sync::Mutex};
use dirigible_slab::{Object, SlabCache};

use crate::{
    chains::{Chains, Verdict},
    error::Error,
    record::{InodeId, RECORD_WORDS, Record},
};

/// Word: the inode's number, and marks.
const CONTROL: usize = 1;
/// Word: how often it is open (low half), and how many share its lock (high half).
const HOLDERS: usize = 2;
/// First word of the copy of the inode.
const COPY: usize = 3;
/// Words of an object.
pub(crate) const INODE_WORDS: usize = COPY + RECORD_WORDS;

/// Somebody has the lock alone.
const ALONE: u64 = 1 << 32;
/// The copy is not there yet: who has the lock reads it.
const LOADING: u64 = 1 << 33;
/// Somebody waits to have the lock alone: nobody else begins to share it.
const WANTED: u64 = 1 << 34;
/// It was used since the hand came by.
const USED: u64 = 1 << 35;
/// It has no name.
const REMOVED: u64 = 1 << 36;

const ONE_SHARE: u64 = 1 << 32;

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    /// With others, to read.
    Shared,
    /// Alone, to change.
    Alone,
}

struct Table {
    chains: Chains,
    /// Inodes that are open.
    open: u64,
}

/// What became of an attempt to lock an inode.
pub(crate) enum Attempt {
    /// It is locked.
    Locked(Object),
    /// It is locked alone, and the caller has to read it.
    ToLoad(Object),
    /// Somebody else has it.
    Busy,
    /// It is not in memory.
    Absent,
}

/// The inodes in memory.
pub(crate) struct Inodes<'a, P> {
    cache: SlabCache<'a, P>,
    table: Mutex<Table>,
}

impl<'a, P: FrameContents> Inodes<'a, P> {
    pub fn new(cache: SlabCache<'a, P>, chains: usize) -> Self {
        Self {
            cache,
            table: Mutex::new(Table {
                chains: Chains::new(chains),
                open: 0,
            }),
        }
    }

    pub fn slab(&self) -> &SlabCache<'a, P> {
        &self.cache
    }

    /// Inodes in memory, and those among them that are open.
    pub fn counts(&self) -> (u64, u64) {
        let table = self.table.lock();
        (table.chains.len(), table.open)
    }

    /// An object for [`try_lock`](Self::try_lock) to fill. May reclaim.
    pub fn object(&self) -> Result<Object, OutOfMemory> {
        self.cache.alloc()
    }

    /// Gives an object back that is in no table.
    pub fn release(&self, object: Object) {
        let freed = self.cache.free(object);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    fn control(&self, object: Object) -> u64 {
        self.cache.read(object, CONTROL)
    }

    fn find(&self, table: &Table, inode: InodeId) -> Option<Object> {
        let number = u64::from(inode.get());
        let is = |object| self.control(object) & u64::from(u32::MAX) == number;
        table.chains.find(&self.cache, number, is)
    }

    /// Tries to lock an inode. If it is not in memory and there is a `spare` object, that one is put into the table.
    pub fn try_lock(&self, inode: InodeId, hold: Hold, spare: &mut Option<Object>) -> Attempt {
        let mut table = self.table.lock();
        let Some(object) = self.find(&table, inode) else {
            let Some(object) = spare.take() else {
                return Attempt::Absent;
            };
            self.insert(&mut table, object, inode, 0);
            return Attempt::ToLoad(object);
        };
        let control = self.control(object);
        let holders = self.cache.read(object, HOLDERS);
        let busy = match hold {
            Hold::Shared => control & (ALONE | WANTED) != 0,
            Hold::Alone => control & ALONE != 0 || holders >= ONE_SHARE,
        };
        if busy {
            if hold == Hold::Alone && control & WANTED == 0 {
                self.cache.write(object, CONTROL, control | WANTED);
            }
            return Attempt::Busy;
        }
        match hold {
            Hold::Shared => {
                self.cache.write(object, HOLDERS, holders + ONE_SHARE);
                if control & USED == 0 {
                    self.cache.write(object, CONTROL, control | USED);
                }
            }
            Hold::Alone => {
                let control = control & !WANTED | ALONE | USED;
                self.cache.write(object, CONTROL, control);
            }
        }
        Attempt::Locked(object)
    }

    /// The same of an inode that is open. `None` if it is not.
    pub fn try_lock_open(&self, inode: InodeId, hold: Hold) -> Option<Attempt> {
        {
            let table = self.table.lock();
            let object = self.find(&table, inode)?;
            if self.cache.read(object, HOLDERS) as u32 == 0 {
                // The caller may have waited to have it alone. Others who do say so again.
                let control = self.control(object) & !WANTED;
                self.cache.write(object, CONTROL, control);
                return None;
            }
        }
        // It stays open: the caller is one of those who have it open.
        Some(self.try_lock(inode, hold, &mut None))
    }

    fn insert(&self, table: &mut Table, object: Object, inode: InodeId, open: u64) {
        let number = u64::from(inode.get());
        let control = number | ALONE | LOADING | USED;
        self.cache.write(object, CONTROL, control);
        self.cache.write(object, HOLDERS, open);
        table.chains.insert(&self.cache, number, object);
        table.open += u64::from(open != 0);
    }

    /// Puts a new inode into the table, locked alone and open once. Gives the object back if the inode is there already.
    pub fn insert_new(
        &self,
        inode: InodeId,
        object: Object,
        record: &Record,
    ) -> Result<(), Object> {
        let mut table = self.table.lock();
        if self.find(&table, inode).is_some() {
            return Err(object);
        }
        self.insert(&mut table, object, inode, 1);
        self.set_record(object, record);
        let control = self.control(object);
        self.cache.write(object, CONTROL, control & !LOADING);
        Ok(())
    }

    /// The copy of the inode has been set: the lock is held as `hold` from now on.
    pub fn loaded(&self, object: Object, hold: Hold) {
        let _table = self.table.lock();
        let mut control = self.control(object) & !LOADING;
        if hold == Hold::Shared {
            control &= !ALONE;
            let holders = self.cache.read(object, HOLDERS);
            self.cache.write(object, HOLDERS, holders + ONE_SHARE);
        }
        self.cache.write(object, CONTROL, control);
    }

    /// Takes an object out of the table that the caller has locked alone, and frees it.
    pub fn forget(&self, object: Object) {
        let mut table = self.table.lock();
        let number = self.control(object) & u64::from(u32::MAX);
        let found = table
            .chains
            .remove(&self.cache, number, |other| other == object);
        debug_assert_eq!(found, Some(object));
        if self.cache.read(object, HOLDERS) as u32 != 0 {
            table.open -= 1;
        }
        drop(table);
        self.release(object);
    }

    /// Ends a hold.
    pub fn unlock(&self, object: Object, hold: Hold) {
        let _table = self.table.lock();
        match hold {
            Hold::Shared => {
                let holders = self.cache.read(object, HOLDERS);
                self.cache.write(object, HOLDERS, holders - ONE_SHARE);
            }
            Hold::Alone => {
                let control = self.control(object) & !ALONE;
                self.cache.write(object, CONTROL, control);
            }
        }
    }

    /// Opens a locked inode once more.
    pub fn open(&self, object: Object) -> Result<(), Error> {
        let mut table = self.table.lock();
        let holders = self.cache.read(object, HOLDERS);
        if holders as u32 == u32::MAX {
            return Err(Error::NoMemory);
        }
        table.open += u64::from(holders as u32 == 0);
        self.cache.write(object, HOLDERS, holders + 1);
        Ok(())
    }

    /// Closes a locked inode once. Gives whether it was removed and is not open any more.
    pub fn close(&self, object: Object) -> bool {
        let mut table = self.table.lock();
        self.close_in(&mut table, object) && self.control(object) & REMOVED != 0
    }

    /// Closes an inode once, whoever has it locked; `None` if it is not open. If it was removed it stays in memory, for
    /// [`clear`](Self::clear).
    pub fn close_at_once(&self, inode: InodeId) -> Option<()> {
        let mut table = self.table.lock();
        let object = self.find(&table, inode)?;
        if self.cache.read(object, HOLDERS) as u32 == 0 {
            return None;
        }
        self.close_in(&mut table, object);
        Some(())
    }

    /// Gives whether it is not open any more.
    fn close_in(&self, table: &mut Table, object: Object) -> bool {
        let holders = self.cache.read(object, HOLDERS);
        debug_assert_ne!(holders as u32, 0);
        self.cache.write(object, HOLDERS, holders - 1);
        let last = holders as u32 == 1;
        table.open -= u64::from(last);
        last
    }

    /// A locked inode has no name from now on. Gives whether it is open, and so lives on.
    pub fn remove_name(&self, object: Object) -> bool {
        let _table = self.table.lock();
        let control = self.control(object);
        self.cache.write(object, CONTROL, control | REMOVED);
        self.cache.read(object, HOLDERS) as u32 != 0
    }

    /// The number of a locked inode.
    pub fn number(&self, object: Object) -> InodeId {
        InodeId::new(self.control(object) as u32)
    }

    /// The copy of a locked inode.
    pub fn record(&self, object: Object) -> Record {
        let mut words = [0; INODE_WORDS];
        self.cache.read_all(object, &mut words);
        let mut record = Record::FREE;
        record.0.copy_from_slice(&words[COPY..]);
        record
    }

    /// Replaces the copy of an inode that is locked alone.
    pub fn set_record(&self, object: Object, record: &Record) {
        for (index, &word) in record.0.iter().enumerate() {
            self.cache.write(object, COPY + index, word);
        }
    }

    /// Looks at up to `objects` inodes, takes these off it, and gives the copy of one that was not used: it is not in
    /// memory any more, but its object is still to be released. `all` does not ask whether it was used.
    pub fn sweep(&self, objects: &mut u64, all: bool) -> Option<(Object, Record)> {
        let mut table = self.table.lock();
        let taken = table.chains.sweep(&self.cache, objects, |object| {
            let control = self.control(object);
            // A removed one that nobody closed in order has still to be freed.
            if control & (ALONE | REMOVED) != 0 || self.cache.read(object, HOLDERS) != 0 {
                return Verdict::Keep;
            }
            if control & USED != 0 && !all {
                self.cache.write(object, CONTROL, control & !USED);
                return Verdict::Keep;
            }
            Verdict::Take
        })?;
        Some((taken, self.record(taken)))
    }

    /// Takes everything out of the table that nobody has locked, whether it is open or not. Gives one inode that was
    /// removed while it was open, locked alone: the caller frees it, and asks again.
    pub fn clear(&self) -> Option<Object> {
        loop {
            let mut table = self.table.lock();
            let mut removed = None;
            let mut objects = table.chains.len();
            let taken = table.chains.sweep(&self.cache, &mut objects, |object| {
                let control = self.control(object);
                if control & ALONE != 0 || self.cache.read(object, HOLDERS) >= ONE_SHARE {
                    return Verdict::Keep;
                }
                if control & REMOVED != 0 {
                    removed.get_or_insert(object);
                    return Verdict::Keep;
                }
                Verdict::Take
            });
            if let Some(object) = taken {
                if self.cache.read(object, HOLDERS) != 0 {
                    table.open -= 1;
                }
                drop(table);
                self.release(object);
                continue;
            }
            if let Some(object) = removed {
                let control = self.control(object);
                self.cache.write(object, CONTROL, control | ALONE);
            }
            return removed;
        }
    }

    /// Calls `with` for each inode that has no name and is not freed. For a check at rest.
    pub fn for_each_removed(&self, mut with: impl FnMut(InodeId)) {
        let table = self.table.lock();
        table.chains.for_each(&self.cache, |object| {
            let control = self.control(object);
            if control & REMOVED != 0 {
                with(InodeId::new(control as u32));
            }
        });
    }
}
