//! An inode that is locked, until it is dropped.

use dirigible_frames::FrameContents;
use dirigible_slab::Object;

use crate::{
    error::Error,
    inodes::{Attempt, Hold},
    record::{InodeId, Kind, Record},
    store::FileStore,
};

/// A locked inode.
pub(crate) struct Held<'s, 'a, P: FrameContents> {
    store: &'s FileStore<'a, P>,
    object: Object,
    hold: Hold,
    /// Its number.
    pub inode: InodeId,
}

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// Locks an inode, and reads it from the disk if it is not in memory. Waits, with no lock held that others spin on.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the inode is not in use.
    pub(crate) fn hold(&self, inode: InodeId, hold: Hold) -> Result<Held<'_, 'a, P>, Error> {
        if !self.geometry.has_inode(inode) {
            return Err(Error::NotFound);
        }
        let mut spare = None;
        let locked = loop {
            match self.inodes.try_lock(inode, hold, &mut spare) {
                Attempt::Locked(object) => break self.held(inode, object, hold),
                Attempt::ToLoad(object) => return self.load(inode, object, hold),
                Attempt::Busy => self.disk.platform.relax(),
                Attempt::Absent => spare = Some(self.inodes.object()?),
            }
        };
        if let Some(object) = spare {
            self.inodes.release(object);
        }
        Ok(locked)
    }

    /// Locks an inode that is open.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`] if it is not.
    pub(crate) fn hold_open(&self, inode: InodeId, hold: Hold) -> Result<Held<'_, 'a, P>, Error> {
        loop {
            let attempt = self.inodes.try_lock_open(inode, hold);
            match attempt.ok_or(Error::NotOpen)? {
                Attempt::Locked(object) => return Ok(self.held(inode, object, hold)),
                _ => self.disk.platform.relax(),
            }
        }
    }

    pub(crate) fn held(&self, inode: InodeId, object: Object, hold: Hold) -> Held<'_, 'a, P> {
        Held {
            store: self,
            object,
            hold,
            inode,
        }
    }

    fn load(&self, inode: InodeId, object: Object, hold: Hold) -> Result<Held<'_, 'a, P>, Error> {
        let loaded = self.read_record(inode).and_then(|record| {
            if record.is_free() {
                return Err(Error::NotFound);
            }
            record.check(&self.geometry).map(|_| record)
        });
        match loaded {
            Ok(record) => {
                self.inodes.set_record(object, &record);
                self.inodes.loaded(object, hold);
                Ok(self.held(inode, object, hold))
            }
            Err(error) => {
                self.inodes.forget(object);
                Err(error)
            }
        }
    }

    /// An inode as it is on the disk.
    pub(crate) fn read_record(&self, inode: InodeId) -> Result<Record, Error> {
        let (block, word) = self.geometry.place_of(inode);
        let mut record = Record::FREE;
        self.disk.read_words(block, word, &mut record.0)?;
        Ok(record)
    }
}

impl<'a, P: FrameContents> Held<'_, 'a, P> {
    pub fn object(&self) -> Object {
        self.object
    }

    /// The inode as it is now.
    pub fn record(&self) -> Record {
        self.store.inodes.record(self.object)
    }

    /// The inode, which must be a file.
    pub fn file(&self) -> Result<Record, Error> {
        let record = self.record();
        match record.kind() {
            Some(Kind::File) => Ok(record),
            _ => Err(Error::IsDirectory),
        }
    }

    /// The inode, which must be a directory.
    pub fn directory(&self) -> Result<Record, Error> {
        let record = self.record();
        match record.kind() {
            Some(Kind::Directory) => Ok(record),
            _ => Err(Error::NotDirectory),
        }
    }

    /// Writes the inode, which is locked alone, to the disk and then to memory.
    pub fn set_record(&self, record: &Record) -> Result<(), Error> {
        debug_assert_eq!(self.hold, Hold::Alone);
        let (block, word) = self.store.geometry.place_of(self.inode);
        self.store.disk.write_words(block, word, &record.0)?;
        self.store.inodes.set_record(self.object, record);
        Ok(())
    }

    /// Ends the hold by taking the inode, which is locked alone, out of memory.
    pub fn forget(self) {
        debug_assert_eq!(self.hold, Hold::Alone);
        self.store.inodes.forget(self.object);
        core::mem::forget(self);
    }
}

impl<P: FrameContents> Drop for Held<'_, '_, P> {
    fn drop(&mut self) {
        self.store.inodes.unlock(self.object, self.hold);
    }
}
