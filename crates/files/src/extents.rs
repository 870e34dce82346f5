//! Which blocks the pages of a file are in.
//!
//! A file's blocks are the first ones of its extents, as many as it has pages. What its last extent has beyond that is not
//! the file's: an operation that failed in the middle may leave it so.

use core::ops::Range;

use dirigible_frames::FrameContents;

use crate::{
    error::Error,
    patience::Patience,
    record::{Extent, INLINE, InodeId, MORE, Record},
    store::FileStore,
};

/// The word of a block of extents that says whose it is.
const WHOSE: usize = 0;
/// "extents", over the number of the inode.
const MARK: u64 = 0x6578_7400_0000_0000;

/// What a file's new last pages are made of, until it is written to the disk.
#[derive(Clone, Copy)]
pub(crate) struct Growth {
    /// The inode with its new extents and its old size.
    pub record: Record,
    /// Pages that have a block.
    pub pages: u64,
}

impl<P: FrameContents> FileStore<'_, P> {
    /// Extent `index` of an inode.
    fn extent(&self, inode: InodeId, record: &Record, index: usize) -> Result<Extent, Error> {
        if index < INLINE {
            return Extent::from_bits(record.inline(index), &self.geometry);
        }
        let damaged = |what| Error::Damaged { what };
        let block = record
            .more()
            .ok_or(damaged("an inode without its block of extents"))?;
        let (whose, bits) = self.disk.view(block, 0..0, |platform, frame| {
            let bits = platform.read_word(frame, 1 + index - INLINE);
            (platform.read_word(frame, WHOSE), bits)
        })?;
        if whose != MARK | u64::from(inode.get()) {
            return Err(damaged("a block of extents is not its inode's"));
        }
        Extent::from_bits(bits, &self.geometry)
    }

    fn set_extent(
        &self,
        inode: InodeId,
        record: &mut Record,
        index: usize,
        extent: Extent,
    ) -> Result<(), Error> {
        if index < INLINE {
            record.set_inline(index, extent);
            return Ok(());
        }
        let index = 1 + index - INLINE;
        if let Some(block) = record.more() {
            return self.disk.write_words(block, index, &[extent.bits()]);
        }
        let Some(taken) = self.blocks.take(&self.disk, None, 1)? else {
            return Err(Error::NoSpace);
        };
        let block = taken.start;
        let written = self.disk.write_block(block, |word| match word {
            WHOSE => MARK | u64::from(inode.get()),
            word if word == index => extent.bits(),
            _ => 0,
        });
        if let Err(error) = written {
            self.free_blocks(taken);
            return Err(error);
        }
        record.set_more(Some(block));
        Ok(())
    }

    /// Calls `with` for each run of blocks that holds pages of the range, with its first page; in order.
    pub(crate) fn for_each_run(
        &self,
        inode: InodeId,
        record: &Record,
        pages: Range<u64>,
        mut with: impl FnMut(u64, Range<u64>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut page = 0;
        for index in 0..record.extents() {
            if page >= pages.end {
                return Ok(());
            }
            let extent = self.extent(inode, record, index)?;
            let from = pages.start.clamp(page, page + extent.len);
            let to = pages.end.clamp(page, page + extent.len);
            if from < to {
                let start = extent.start + (from - page);
                with(from, start..start + (to - from))?;
            }
            page += extent.len;
        }
        if page < pages.end {
            return Err(Error::Damaged {
                what: "an inode with fewer blocks than pages",
            });
        }
        Ok(())
    }

    /// The block of a page that the file has.
    pub(crate) fn block_of(
        &self,
        inode: InodeId,
        record: &Record,
        page: u64,
    ) -> Result<u64, Error> {
        let mut block = None;
        self.for_each_run(inode, record, page..page + 1, |_, blocks| {
            block = Some(blocks.start);
            Ok(())
        })?;
        block.ok_or(Error::Beyond)
    }

    /// Takes the last extents off that no page of a file with `size` pages is in, and what the last one has beyond it.
    /// Gives the last one, and whether it was longer.
    fn clip(
        &self,
        inode: InodeId,
        record: &mut Record,
        size: u64,
    ) -> Result<Option<(Extent, bool)>, Error> {
        let (mut page, mut count) = (0, 0);
        let mut last = None;
        while page < size {
            if count == record.extents() {
                return Err(Error::Damaged {
                    what: "an inode with fewer blocks than pages",
                });
            }
            let mut extent = self.extent(inode, record, count)?;
            let longer = page + extent.len > size;
            if longer {
                extent.len = size - page;
                // In the other block the size alone says so, until the file grows again.
                if count < INLINE {
                    record.set_inline(count, extent);
                }
            }
            page += extent.len;
            count += 1;
            last = Some((extent, longer));
        }
        record.set_extents(count);
        Ok(last)
    }

    /// Takes blocks for `more` pages at the end of a file, in as few extents as possible.
    ///
    /// # Errors
    ///
    /// Nothing was taken.
    pub(crate) fn grow(&self, inode: InodeId, record: &Record, more: u64) -> Result<Growth, Error> {
        let mut growth = Growth {
            record: *record,
            pages: record.size(),
        };
        match self.grow_to(inode, &mut growth, record.size() + more) {
            Ok(()) => Ok(growth),
            Err(error) => {
                self.abandon(inode, record, &growth);
                Err(error)
            }
        }
    }

    fn grow_to(&self, inode: InodeId, growth: &mut Growth, end: u64) -> Result<(), Error> {
        let clipped = self.clip(inode, &mut growth.record, growth.pages)?;
        let mut last = clipped.map(|(extent, _)| extent);
        if let Some((extent, true)) = clipped
            && growth.record.extents() > INLINE
        {
            let index = growth.record.extents() - 1;
            self.set_extent(inode, &mut growth.record, index, extent)?;
        }
        while growth.pages < end {
            let after = last.map(|extent| extent.start + extent.len);
            let want = end - growth.pages;
            let taken = self.blocks.take(&self.disk, after, want)?;
            let taken = taken.ok_or(Error::NoSpace)?;
            match self.append(inode, &mut growth.record, last, taken.clone()) {
                Ok(extent) => last = Some(extent),
                Err(error) => {
                    self.free_blocks(taken);
                    return Err(error);
                }
            }
            growth.pages += taken.end - taken.start;
        }
        Ok(())
    }

    /// Adds blocks to the end of an inode's extents, whose last one is `last`. Gives the one that is the last now.
    fn append(
        &self,
        inode: InodeId,
        record: &mut Record,
        last: Option<Extent>,
        blocks: Range<u64>,
    ) -> Result<Extent, Error> {
        let count = record.extents();
        let len = blocks.end - blocks.start;
        if let Some(last) = last
            && last.start + last.len == blocks.start
        {
            let longer = Extent {
                start: last.start,
                len: last.len + len,
            };
            self.set_extent(inode, record, count - 1, longer)?;
            return Ok(longer);
        }
        if count == INLINE + MORE {
            return Err(Error::NoSpace);
        }
        let extent = Extent {
            start: blocks.start,
            len,
        };
        self.set_extent(inode, record, count, extent)?;
        record.set_extents(count + 1);
        Ok(extent)
    }

    /// Gives back what `growth` took beyond what `record`, the inode as it is, has.
    pub(crate) fn abandon(&self, inode: InodeId, record: &Record, growth: &Growth) {
        let patience = &mut self.patience();
        let surplus = record.size()..growth.pages;
        self.free_runs(inode, &growth.record, surplus, patience);
        if growth.record.more() != record.more()
            && let Some(block) = growth.record.more()
        {
            self.free_run(block..block + 1, patience);
        }
    }

    /// The inode with `size` pages, fewer than it has or as many. What it loses is given back by
    /// [`free_tail`](Self::free_tail) afterwards.
    pub(crate) fn shortened(
        &self,
        inode: InodeId,
        record: &Record,
        size: u64,
    ) -> Result<Record, Error> {
        let mut short = *record;
        self.clip(inode, &mut short, size)?;
        short.set_size(size);
        if short.extents() <= INLINE {
            short.set_more(None);
        }
        Ok(short)
    }

    /// Gives back the blocks that `before` has and `after` has no more. Blocks that cannot be given back are lost.
    pub(crate) fn free_tail(
        &self,
        inode: InodeId,
        before: &Record,
        after: &Record,
        patience: &mut Patience<'_, P>,
    ) {
        self.free_runs(inode, before, after.size()..before.size(), patience);
        if after.more().is_none()
            && let Some(block) = before.more()
        {
            self.free_run(block..block + 1, patience);
        }
    }

    fn free_runs(
        &self,
        inode: InodeId,
        record: &Record,
        pages: Range<u64>,
        patience: &mut Patience<'_, P>,
    ) {
        let mut at = pages.start;
        loop {
            let freed = self.for_each_run(inode, record, at..pages.end, |first, blocks| {
                at = first + (blocks.end - blocks.start);
                self.free_run(blocks, patience);
                Ok(())
            });
            match freed {
                Ok(()) => return,
                Err(error) if patience.again(error) => {}
                Err(_) => return self.lose_blocks(pages.end.saturating_sub(at)),
            }
        }
    }

    /// Gives back blocks that nothing refers to.
    pub(crate) fn free_blocks(&self, blocks: Range<u64>) {
        self.free_run(blocks, &mut self.patience());
    }

    fn free_run(&self, blocks: Range<u64>, patience: &mut Patience<'_, P>) {
        // First the pages: who is given the blocks next must not meet them.
        self.disk.pages.forget(blocks.clone());
        self.lose_blocks(self.blocks.put(&self.disk, blocks, patience));
    }
}
