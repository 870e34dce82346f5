//! Paths.

use dirigible_frames::{FrameContents, sync::Ordering};

use crate::{
    entry::Name,
    error::Error,
    held::Held,
    inodes::Hold,
    record::{InodeId, Kind},
    store::FileStore,
};

/// The parts of a path; empty ones do not count.
fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// Goes one name on. Names in memory are found without a lock and without the disk.
    fn step(&self, directory: InodeId, name: &Name) -> Result<(InodeId, Kind), Error> {
        if let Some(target) = self.names.find(directory, name) {
            return Ok((target.inode, target.kind));
        }
        let held = self.hold(directory, Hold::Shared)?;
        let target = self.look(&held, name)?.found.ok_or(Error::NotFound)?;
        Ok((target.inode, target.kind))
    }

    fn walk<'p>(&self, parts: impl Iterator<Item = &'p str>) -> Result<(InodeId, Kind), Error> {
        let mut at = (InodeId::ROOT, Kind::Directory);
        for part in parts {
            if at.1 != Kind::Directory {
                return Err(Error::NotDirectory);
            }
            at = self.step(at.0, &Name::new(part.as_bytes())?)?;
        }
        Ok(at)
    }

    /// Does `walk` again if a directory was removed meanwhile: its number may be another one's now.
    fn steadily<R>(&self, mut walk: impl FnMut() -> Result<R, Error>) -> Result<R, Error> {
        loop {
            // Acquire: pairs with the release of who removes a directory, which it does before its number is free.
            let before = self.directories_removed.load(Ordering::Acquire);
            let result = walk();
            if self.directories_removed.load(Ordering::Acquire) == before {
                return result;
            }
        }
    }

    /// What a path leads to at the moment.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotDirectory`], and those of the disk.
    pub fn lookup(&self, path: &str) -> Result<(InodeId, Kind), Error> {
        self.steadily(|| self.walk(parts(path)))
    }

    /// Locks the directory that the last name of a path is in, and gives the name.
    pub(crate) fn hold_parent(
        &self,
        path: &str,
        hold: Hold,
    ) -> Result<(Held<'_, 'a, P>, Name), Error> {
        let last = parts(path).next_back().ok_or(Error::BadName)?;
        let name = Name::new(last.as_bytes())?;
        // The directory cannot be removed once it is locked.
        let held = self.steadily(|| {
            let mut above = parts(path);
            above.next_back();
            let (inode, kind) = self.walk(above)?;
            if kind != Kind::Directory {
                return Err(Error::NotDirectory);
            }
            let held = self.hold(inode, hold)?;
            held.directory()?;
            Ok(held)
        })?;
        Ok((held, name))
    }
}
