//! Operations on directories: what makes and removes names.

use dirigible_frames::{FrameContents, sync::Ordering};

use crate::{
    entry::{Entry, Name},
    error::Error,
    held::Held,
    inodes::Hold,
    patience::Patience,
    record::{InodeId, Kind, Record},
    store::FileStore,
};

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// Makes an empty file and opens it.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::NoInodes`], [`Error::NoSpace`] if the directory cannot grow, and those of paths,
    /// memory and the disk.
    pub fn create(&self, path: &str) -> Result<InodeId, Error> {
        self.make(path, Kind::File)
    }

    /// Makes an empty directory.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn make_directory(&self, path: &str) -> Result<InodeId, Error> {
        self.make(path, Kind::Directory)
    }

    fn make(&self, path: &str, kind: Kind) -> Result<InodeId, Error> {
        if path.bytes().all(|byte| byte == b'/') {
            return Err(Error::Exists);
        }
        let (directory, name) = self.hold_parent(path, Hold::Alone)?;
        let look = self.look(&directory, &name)?;
        if look.found.is_some() {
            return Err(Error::Exists);
        }
        let taken = self.numbers.take(&self.disk, None, 1)?;
        let inode = InodeId::new(taken.ok_or(Error::NoInodes)?.start as u32);
        let made = match self.make_inode(inode, kind) {
            Ok(made) => made,
            Err(error) => {
                self.free_number(inode, &mut self.patience());
                return Err(error);
            }
        };
        if let Err(error) = self.add_entry(&directory, &name, inode, kind, look.room) {
            // Memory may be waited for: nobody else waits with it who wants another name of the directory.
            drop(directory);
            self.free_inode(made);
            return Err(error);
        }
        if kind == Kind::Directory {
            self.inodes.close(made.object());
        }
        Ok(inode)
    }

    /// Makes the inode with a number that was taken; locked alone and open.
    fn make_inode(&self, inode: InodeId, kind: Kind) -> Result<Held<'_, 'a, P>, Error> {
        let damaged = |what| Error::Damaged { what };
        let record = Record::new(kind);
        let object = self.inodes.object()?;
        if let Err(object) = self.inodes.insert_new(inode, object, &record) {
            self.inodes.release(object);
            return Err(damaged("an inode in use has a free number"));
        }
        let held = self.held(inode, object, Hold::Alone);
        let (block, first) = self.geometry.place_of(inode);
        let was_free = self.disk.change(block, |platform, frame| {
            let was_free = platform.read_word(frame, first) == 0;
            if was_free {
                for (index, &word) in record.0.iter().enumerate() {
                    platform.write_word(frame, first + index, word);
                }
            }
            was_free
        });
        match was_free {
            Ok(true) => Ok(held),
            Ok(false) => {
                held.forget();
                Err(damaged("an inode in use has a free number"))
            }
            Err(error) => {
                held.forget();
                Err(error)
            }
        }
    }

    fn free_number(&self, inode: InodeId, patience: &mut Patience<'_, P>) {
        let number = u64::from(inode.get());
        self.lose_inodes(self.numbers.put(&self.disk, number..number + 1, patience));
    }

    /// Frees an inode that has no name and is locked alone, and its blocks. What cannot be freed is lost.
    pub(crate) fn free_inode(&self, held: Held<'_, 'a, P>) {
        let (inode, record) = (held.inode, held.record());
        let patience = &mut self.patience();
        let freed = patience.insist(|| held.set_record(&Record::FREE));
        if freed.is_ok() {
            self.free_tail(inode, &record, &Record::FREE, patience);
        }
        held.forget();
        match freed {
            Ok(()) => self.free_number(inode, patience),
            Err(_) => {
                self.lose_inodes(1);
                self.lose_blocks(record.size() + u64::from(record.more().is_some()));
            }
        }
    }

    /// Removes the name of a file. The file lives until it is closed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::IsDirectory`], and those of paths, memory and the disk.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.unlink(path, Kind::File)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::NotEmpty`], and those of paths, memory and the disk.
    pub fn remove_directory(&self, path: &str) -> Result<(), Error> {
        self.unlink(path, Kind::Directory)
    }

    fn unlink(&self, path: &str, kind: Kind) -> Result<(), Error> {
        let (directory, name) = self.hold_parent(path, Hold::Alone)?;
        let target = self.look(&directory, &name)?.found.ok_or(Error::NotFound)?;
        match (kind, target.kind) {
            (Kind::File, Kind::Directory) => return Err(Error::IsDirectory),
            (Kind::Directory, Kind::File) => return Err(Error::NotDirectory),
            _ => {}
        }
        let held = self.hold_named(&directory, target.inode, target.kind, Hold::Alone)?;
        if kind == Kind::Directory {
            self.check_empty(&held)?;
        }
        self.remove_entry(&directory, &name, &target)?;
        if kind == Kind::Directory {
            // Release: pairs with the acquire of those who walk. Who came by before walks again, who begins now does not
            // find the name, and the number is not free yet.
            self.directories_removed.fetch_add(1, Ordering::Release);
        }
        // Memory may be waited for: nobody else waits with it who wants another name of the directory.
        drop(directory);
        if !self.inodes.remove_name(held.object()) {
            self.free_inode(held);
        }
        Ok(())
    }

    /// Locks an inode that an entry of a locked directory names.
    pub(crate) fn hold_named(
        &self,
        directory: &Held<'_, 'a, P>,
        inode: InodeId,
        kind: Kind,
        hold: Hold,
    ) -> Result<Held<'_, 'a, P>, Error> {
        let damaged = |what| Error::Damaged { what };
        // A loop in the tree would have this wait for what it holds itself.
        if inode == directory.inode || inode == InodeId::ROOT {
            return Err(damaged("a directory is inside of itself"));
        }
        let held = self.hold(inode, hold).map_err(|error| match error {
            Error::NotFound => damaged("an entry of a directory names a free inode"),
            other => other,
        })?;
        match held.record().kind() == Some(kind) {
            true => Ok(held),
            false => Err(damaged("an entry of a directory has another kind")),
        }
    }

    fn check_empty(&self, directory: &Held<'_, 'a, P>) -> Result<(), Error> {
        let record = directory.directory()?;
        self.for_each_entry(directory.inode, &record, &mut |_| Err(Error::NotEmpty))
    }

    /// Calls `with` for each entry of a directory, in no particular order. The directory is locked meanwhile: `with` does
    /// nothing with files.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotDirectory`], and those of paths, memory and the disk: some entries may have been
    /// given.
    pub fn list(&self, path: &str, with: &mut dyn FnMut(&Entry)) -> Result<(), Error> {
        let held = match self.hold_parent(path, Hold::Shared) {
            // The root.
            Err(Error::BadName) if path.bytes().all(|byte| byte == b'/') => {
                self.hold(InodeId::ROOT, Hold::Shared)?
            }
            Err(error) => return Err(error),
            Ok((directory, name)) => self.hold_child(&directory, &name)?,
        };
        let record = held.directory()?;
        self.for_each_entry(held.inode, &record, &mut |entry| {
            with(entry);
            Ok(())
        })
    }

    /// Locks what a name in a locked directory leads to, with others.
    pub(crate) fn hold_child(
        &self,
        directory: &Held<'_, 'a, P>,
        name: &Name,
    ) -> Result<Held<'_, 'a, P>, Error> {
        let target = self.look(directory, name)?.found.ok_or(Error::NotFound)?;
        self.hold_named(directory, target.inode, target.kind, Hold::Shared)
    }
}
