//! A process's files: open ones, and what is read and written.

use alloc::vec::Vec;
use core::ops::Range;

use dirigible_files::{Error, InodeId, Kind};
use dirigible_frames::{Cost, PageTables};

use super::process::Process;
use crate::{
    calls::{Check, Failure, File},
    content::{Pattern, When},
};

/// Pages that are read or written between two looks whether the program is being killed.
const STRIDE: u64 = 32;
/// Key of files in their patterns, beside their own.
const KEY: u64 = 0x6669_6c65_0000_0000;

/// The open files of a process.
#[derive(Default)]
pub(super) struct OpenFiles(Vec<Option<InodeId>>);

impl OpenFiles {
    fn add(&mut self, inode: InodeId) -> File {
        let place = self.0.iter().position(Option::is_none).unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[place] = Some(inode);
        File(place as u32)
    }

    fn get(&self, file: File) -> Result<InodeId, Failure> {
        let open = self.0.get(file.0 as usize).copied().flatten();
        open.ok_or(Failure::NotFound)
    }
}

impl<P: PageTables> Process<'_, '_, '_, P> {
    /// What a failure of the file store means for the program.
    fn failure(&self, error: Error) -> Failure {
        match error {
            Error::NoMemory => self.starve(),
            Error::NoSpace | Error::NoInodes => Failure::NoSpace,
            Error::Exists | Error::NotEmpty => Failure::Exists,
            Error::NotFound | Error::NotDirectory | Error::IsDirectory | Error::NotOpen => {
                Failure::NotFound
            }
            _ => Failure::Io,
        }
    }

    fn done<T>(&self, done: Result<T, Error>) -> Result<T, Failure> {
        let done = done.map_err(|error| self.failure(error))?;
        self.served();
        Ok(done)
    }

    pub(super) fn create_file(&self, path: &str) -> Result<File, Failure> {
        self.enter()?;
        let files = self.processes.system.parts().files;
        let inode = self.done(files.create(path))?;
        Ok(self.open.borrow_mut().add(inode))
    }

    pub(super) fn open_file(&self, path: &str) -> Result<File, Failure> {
        self.enter()?;
        let files = self.processes.system.parts().files;
        let inode = self.done(files.open(path))?;
        Ok(self.open.borrow_mut().add(inode))
    }

    pub(super) fn file_pages(&self, file: File) -> Result<u64, Failure> {
        self.enter()?;
        let inode = self.open.borrow().get(file)?;
        let files = self.processes.system.parts().files;
        self.done(files.size_pages(inode))
    }

    pub(super) fn write_file(
        &self,
        file: File,
        pages: Range<u64>,
        key: u64,
    ) -> Result<(), Failure> {
        let inode = self.open.borrow().get(file)?;
        let parts = self.processes.system.parts();
        let mut at = pages.start;
        while at < pages.end {
            self.enter()?;
            let end = pages.end.min(at + STRIDE);
            let done = parts.files.write(inode, at..end, &mut |page, frame| {
                Pattern::new(KEY ^ key, page).write(parts.platform, frame);
                parts.platform.charge(Cost::FillFrame);
            });
            self.done(done)?;
            at = end;
        }
        Ok(())
    }

    pub(super) fn read_file(
        &self,
        file: File,
        pages: Range<u64>,
        key: u64,
        check: Check,
    ) -> Result<(), Failure> {
        let inode = self.open.borrow().get(file)?;
        let system = self.processes.system;
        let parts = system.parts();
        let mut at = pages.start;
        while at < pages.end {
            self.enter()?;
            let end = pages.end.min(at + STRIDE);
            let done = parts.files.read(inode, at..end, &mut |page, frame| {
                let note = (When::Used, "file", page);
                system.check_frame(frame, Pattern::new(KEY ^ key, page), check, note);
                parts.platform.charge(Cost::CopyFrame(1));
            });
            self.done(done)?;
            at = end;
        }
        Ok(())
    }

    pub(super) fn sync_file(&self, file: File) -> Result<(), Failure> {
        self.enter()?;
        let inode = self.open.borrow().get(file)?;
        let files = self.processes.system.parts().files;
        self.done(files.sync(inode))
    }

    pub(super) fn close_file(&self, file: File) {
        let slot = self
            .open
            .borrow_mut()
            .0
            .get_mut(file.0 as usize)
            .and_then(Option::take);
        if let Some(inode) = slot {
            // A deleted file's blocks are freed now; if the disk does not let that happen, they are lost to it.
            let _ = self.processes.system.parts().files.close(inode);
        }
    }

    pub(super) fn close_all(&self) {
        let count = self.open.borrow().0.len() as u32;
        (0..count).for_each(|file| self.close_file(File(file)));
    }

    /// Closes what is still open without waiting for others.
    pub(super) fn close_at_once(&self) {
        for inode in self.open.take().0.into_iter().flatten() {
            // It is open: this cannot fail.
            let _ = self.processes.system.parts().files.close_at_once(inode);
        }
    }

    pub(super) fn delete_file(&self, path: &str) -> Result<(), Failure> {
        self.enter()?;
        self.done(self.processes.system.parts().files.remove(path))
    }

    pub(super) fn make_folder(&self, path: &str) -> Result<(), Failure> {
        self.enter()?;
        self.done(self.processes.system.parts().files.make_directory(path))?;
        Ok(())
    }

    pub(super) fn remove_folder(&self, path: &str) -> Result<(), Failure> {
        self.enter()?;
        self.done(self.processes.system.parts().files.remove_directory(path))
    }

    pub(super) fn list_folder(
        &self,
        path: &str,
        with: &mut dyn FnMut(&str, bool),
    ) -> Result<(), Failure> {
        self.enter()?;
        let files = self.processes.system.parts().files;
        self.done(files.list(path, &mut |entry| {
            // A name that is no text is none of the load's.
            if let Ok(name) = core::str::from_utf8(entry.name()) {
                with(name, entry.kind == Kind::Directory);
            }
        }))
    }
}
