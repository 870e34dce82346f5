//! Operations on open files.

use core::ops::Range;

use dirigible_frames::{FrameContents, Pfn};

use crate::{
    error::Error,
    extents::Growth,
    geometry::MAX_PAGES,
    held::Held,
    inodes::Hold,
    record::{InodeId, Kind, Record},
    store::FileStore,
};

impl<'a, P: FrameContents> FileStore<'a, P> {
    /// Opens a file. Each open has its [`close`](Self::close).
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::IsDirectory`], and those of paths, memory and the disk.
    pub fn open(&self, path: &str) -> Result<InodeId, Error> {
        // While the directory is locked nobody removes the name, and the number is this file's.
        let (directory, name) = match self.hold_parent(path, Hold::Shared) {
            Err(Error::BadName) if path.bytes().all(|byte| byte == b'/') => {
                return Err(Error::IsDirectory);
            }
            held => held?,
        };
        let held = self.hold_child(&directory, &name)?;
        held.file()?;
        self.inodes.open(held.object())?;
        Ok(held.inode)
    }

    /// Ends an open. A removed file ends with its last one.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`].
    pub fn close(&self, inode: InodeId) -> Result<(), Error> {
        let held = self.hold_open(inode, Hold::Alone)?;
        if self.inodes.close(held.object()) {
            self.free_inode(held);
        }
        Ok(())
    }

    /// Ends an open without waiting for anybody: for a program that is unwound, while others that have something locked
    /// may never run again. A removed file ends with its last open as well, but what it has is given back by
    /// [`unmount`](Self::unmount) or [`give_all_back`](Self::give_all_back).
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`].
    pub fn close_at_once(&self, inode: InodeId) -> Result<(), Error> {
        self.inodes.close_at_once(inode).ok_or(Error::NotOpen)
    }

    /// How many pages an open file has.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`].
    pub fn size_pages(&self, inode: InodeId) -> Result<u64, Error> {
        Ok(self.hold_open(inode, Hold::Shared)?.record().size())
    }

    /// Calls `with` for pages of an open file and their frames, in order. Others may read it at the same time. `with`
    /// touches the frame and nothing else.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`]; [`Error::Beyond`], before anything is read; and those of memory and the disk, after the pages
    /// before were given.
    pub fn read(
        &self,
        inode: InodeId,
        pages: Range<u64>,
        with: &mut dyn FnMut(u64, Pfn),
    ) -> Result<(), Error> {
        let held = self.hold_open(inode, Hold::Shared)?;
        let record = held.file()?;
        if pages.end > record.size() {
            return Err(Error::Beyond);
        }
        self.read_pages(inode, &record, pages, with)
    }

    fn read_pages(
        &self,
        inode: InodeId,
        record: &Record,
        pages: Range<u64>,
        with: &mut dyn FnMut(u64, Pfn),
    ) -> Result<(), Error> {
        let (end, size) = (pages.end, record.size());
        // Runs go on to the end of the file: what follows may be read ahead.
        let runs = pages.start..size;
        let mut done = pages.start;
        let result = self.for_each_run(inode, record, runs, |first, run| {
            for block in run.clone() {
                let page = first + (block - run.start);
                if page >= end {
                    // Enough: the error ends the walk over the extents.
                    return Err(Error::Beyond);
                }
                let ahead = block + 1..run.end;
                let show = &mut |frame| with(page, frame);
                self.disk.pages.read(block, ahead, show)?;
                done = page + 1;
            }
            Ok(())
        });
        match result {
            Err(_) if done >= end => Ok(()),
            other => other,
        }
    }

    /// Writes whole pages of an open file, over those that it has and after its end: calls `change` for each page and its
    /// frame, in order, and `change` writes all of it.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`]; [`Error::Beyond`] if there would be a hole; [`Error::NoSpace`] with nothing written; those of
    /// memory and the disk, after the pages before were written: the file ends with these.
    pub fn write(
        &self,
        inode: InodeId,
        pages: Range<u64>,
        change: &mut dyn FnMut(u64, Pfn),
    ) -> Result<(), Error> {
        let held = self.hold_open(inode, Hold::Alone)?;
        let record = held.file()?;
        let size = record.size();
        if pages.start > size || pages.end > self.geometry.blocks.min(MAX_PAGES) {
            return Err(if pages.start > size {
                Error::Beyond
            } else {
                Error::NoSpace
            });
        }
        if pages.end <= size {
            return self.write_pages(inode, &record, pages, &mut 0, change);
        }
        let growth = self.grow(inode, &record, pages.end - size)?;
        let mut larger = growth.record;
        larger.set_size(growth.pages);
        let mut written = pages.start;
        let result = self.write_pages(inode, &larger, pages, &mut written, change);
        let set = match result {
            Ok(()) => self.settle(&held, &record, &growth, &larger),
            Err(_) => self.settle_short(&held, &record, &growth, &larger, written),
        };
        result.and(set)
    }

    fn write_pages(
        &self,
        inode: InodeId,
        record: &Record,
        pages: Range<u64>,
        written: &mut u64,
        change: &mut dyn FnMut(u64, Pfn),
    ) -> Result<(), Error> {
        self.for_each_run(inode, record, pages, |first, run| {
            for block in run.clone() {
                let page = first + (block - run.start);
                let change = &mut |frame| change(page, frame);
                self.disk.pages.write(block, true, change)?;
                *written = page + 1;
            }
            Ok(())
        })
    }

    /// Makes the inode as large as it has grown, or undoes that.
    fn settle(
        &self,
        held: &Held<'_, 'a, P>,
        before: &Record,
        growth: &Growth,
        larger: &Record,
    ) -> Result<(), Error> {
        let set = held.set_record(larger);
        if set.is_err() {
            self.abandon(held.inode, before, growth);
        }
        set
    }

    /// Makes the inode as large as what was written before a page failed.
    fn settle_short(
        &self,
        held: &Held<'_, 'a, P>,
        before: &Record,
        growth: &Growth,
        larger: &Record,
        written: u64,
    ) -> Result<(), Error> {
        if written <= before.size() {
            self.abandon(held.inode, before, growth);
            return Ok(());
        }
        let short = self.shortened(held.inode, larger, written);
        match short.and_then(|short| held.set_record(&short).map(|()| short)) {
            Ok(short) => {
                self.free_tail(held.inode, larger, &short, &mut self.patience());
                Ok(())
            }
            Err(error) => {
                self.abandon(held.inode, before, growth);
                Err(error)
            }
        }
    }

    /// Cuts an open file off after `pages` pages.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`]; [`Error::Beyond`] if it has fewer; and those of memory and the disk.
    pub fn truncate(&self, inode: InodeId, pages: u64) -> Result<(), Error> {
        let held = self.hold_open(inode, Hold::Alone)?;
        let record = held.file()?;
        if pages > record.size() {
            return Err(Error::Beyond);
        }
        if pages == record.size() {
            return Ok(());
        }
        let short = self.shortened(inode, &record, pages)?;
        held.set_record(&short)?;
        self.free_tail(inode, &record, &short, &mut self.patience());
        Ok(())
    }

    /// Writes an open file to the disk, with what leads to its pages, and waits. Its name is in its directory's pages:
    /// [`sync_all`](Self::sync_all) writes these too.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`], and the first of the disk.
    pub fn sync(&self, inode: InodeId) -> Result<(), Error> {
        // With others: pages that are written over at the same time are in the cache in any case.
        let held = self.hold_open(inode, Hold::Shared)?;
        let record = held.record();
        debug_assert_eq!(record.kind(), Some(Kind::File));
        self.for_each_run(inode, &record, 0..record.size(), |_, run| {
            Ok(self.disk.pages.sync(run)?)
        })?;
        if let Some(block) = record.more() {
            self.disk.pages.sync(block..block + 1)?;
        }
        let (block, _) = self.geometry.place_of(inode);
        Ok(self.disk.pages.sync(block..block + 1)?)
    }
}
