//! Dirty pages: marking them, writing them in runs, waiting for them.

use core::ops::Range;

use dirigible_disk::{MAX_REQUEST_FRAMES, SubmitError};
use dirigible_frames::sync::Ordering;
use dirigible_frames::{Event, FrameContents, FrameFlags, Marks, Pfn};
use dirigible_reclaim::Kind;

use crate::cache::{PageCache, Seize};
use crate::finish::MOST_INTERRUPTED;
use crate::pages::CacheError;
use crate::requests::Run;

/// How an attempt to write a page ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begun {
    /// So many pages are being written now, it and its neighbours.
    Pages(usize),
    /// It is not dirty, or in use at this moment.
    Not,
    /// The disk has no room for the request.
    NoRoom,
    /// The disk takes no requests any more. The page counts as one that could not be written.
    Failed,
}

impl<P: FrameContents> PageCache<'_, P> {
    /// Marks a page dirty that the caller has changed, and drops the caller's reference. After the change: whoever
    /// clears the mark to write the page must find it whole, and does so only without references.
    pub(crate) fn dirty_and_drop(&self, block: u64, frame: Pfn) {
        // Under the reference and before the mark: a second writer who finds the mark may rely on it.
        self.will_be_dirty(block);
        let mut was_dirty = false;
        let _ = self.frames.update_marks(frame, |info| {
            was_dirty = info.flags.contains(FrameFlags::DIRTY);
            // Wanted again: no reason to free it as soon as it is written.
            let flags = info.flags.without(FrameFlags::RECLAIM);
            Some(Marks {
                flags: flags.union(FrameFlags::DIRTY),
                refcount: info.refcount - u8::from(was_dirty),
                ..info.marks()
            })
        });
        if !was_dirty {
            // Under the reference, so that nobody writes or drops the page in between.
            self.became_dirty(block, frame);
            self.drop_reference(frame);
        }
    }

    /// Before the mark `DIRTY` is set on a page that the caller holds.
    pub(crate) fn will_be_dirty(&self, block: u64) {
        if !self.unwritten.contains(block) {
            self.unwritten.insert(block);
        }
    }

    /// Counts a page that has the mark `DIRTY` since now, and that the caller holds.
    pub(crate) fn became_dirty(&self, block: u64, frame: Pfn) {
        self.generations.dirtied(frame, true);
        let kind = self.kind_of(block);
        let dirty = self.dirty.add(kind, 1);
        if kind == Kind::File {
            self.count(Event::NrDirtied, 1);
            self.watch_dirty(dirty);
        }
    }

    /// Begins to write the page of `block`, if it is dirty, with its dirty neighbours on the disk. Does not wait.
    pub(crate) fn begin_write_of(&self, block: u64) -> Begun {
        // AcqRel, here and below: see `begin_writes`.
        self.open_writes.fetch_add(1, Ordering::AcqRel);
        let begun = self.try_write_of(block);
        self.open_writes.fetch_sub(1, Ordering::AcqRel);
        begun
    }

    fn try_write_of(&self, block: u64) -> Begun {
        let Some(place) = self.requests.take(true) else {
            return Begun::NoRoom;
        };
        let Some(frame) = self.freeze(block) else {
            self.requests.put(place);
            return Begun::Not;
        };
        let mut run = Run::new(true, block, frame);
        // A page that could not be written goes alone, so that it spoils no other request.
        if !self.failed.contains(block) {
            self.join_neighbours(&mut run);
        }
        self.requests.fill(&place, &run);
        // Counted before the request can end.
        let error = match self.submit(&place, &run) {
            Ok(()) => return Begun::Pages(run.count),
            Err(error) => error,
        };
        self.requests.put(place);
        let failed = error != SubmitError::Busy;
        if !failed {
            // Before the pages are dirty again: see `begin_writes`.
            self.refused.fetch_add(1, Ordering::AcqRel);
        }
        if failed {
            self.count_refusal(&run);
        }
        for (block, frame) in run.pages() {
            if failed {
                self.add_failed(block);
            }
            self.unwrite(block, frame, FrameFlags::DIRTY);
        }
        if failed {
            self.write_errors
                .fetch_add(run.count as u64, Ordering::Relaxed);
            return Begun::Failed;
        }
        Begun::NoRoom
    }

    fn join_neighbours(&self, run: &mut Run) {
        // What a request carries is counted as one kind.
        let kind = self.kind_of(run.block);
        let joins = |block: u64| {
            let wanted = self.unwritten.contains(block)
                && !self.failed.contains(block)
                && self.kind_of(block) == kind;
            wanted.then(|| self.freeze(block)).flatten()
        };
        // Backwards first, then forwards from where it began; half of the room at most for what lies before.
        let mut before = 0;
        while before < MAX_REQUEST_FRAMES / 2
            && run.block > 0
            && let Some(frame) = joins(run.block - 1)
        {
            run.block -= 1;
            run.push(frame);
            before += 1;
        }
        run.frames[..run.count].reverse();
        while !run.is_full()
            && run.block + (run.count as u64) < self.block_count()
            && let Some(frame) = joins(run.block + run.count as u64)
        {
            run.push(frame);
        }
    }

    /// Takes the page of `block` from dirty to being written, if it is dirty and nobody uses it.
    fn freeze(&self, block: u64) -> Option<Pfn> {
        let frame = self.slot(block).frame()?;
        let how = Seize {
            needed: FrameFlags::DIRTY,
            barred: FrameFlags::WRITEBACK.union(FrameFlags::LOCKED),
            removed: FrameFlags::DIRTY,
            added: FrameFlags::WRITEBACK,
            isolated: true,
        };
        self.seize(block, frame, &how).ok()?;
        let kind = self.kind_of(block);
        self.dirty.sub(kind, 1);
        self.writeback.add(kind, 1);
        Some(frame)
    }

    /// Whether the page of `block` is being written now.
    pub(crate) fn is_being_written(&self, block: u64) -> bool {
        let frame = self.slot(block).frame();
        frame.is_some_and(|frame| self.frames.flags(frame).contains(FrameFlags::WRITEBACK))
    }

    /// Writes all pages of files in the range that are dirty now and waits for them. Those that failed it tries again,
    /// alone, and again as long as fewer of them fail each time, or, a few times, if a reset of the disk interrupted
    /// them.
    pub(crate) fn sync_range(&self, blocks: Range<u64>) -> Result<(), CacheError> {
        let end = blocks.end.min(self.file_blocks());
        self.begin_writes(blocks.start, end);
        self.wait_for_writes(blocks.start, end);
        let mut failed_before = u64::MAX;
        let mut vain_rounds = 0;
        loop {
            let interrupted = self.interrupted_writes.load(Ordering::Acquire);
            let (failed, first) = self.write_failed(blocks.start, end);
            let Some(block) = first else {
                return Ok(());
            };
            if failed >= failed_before {
                vain_rounds += 1;
                let interrupted = self.interrupted_writes.load(Ordering::Acquire) != interrupted;
                if !interrupted || vain_rounds == MOST_INTERRUPTED {
                    return Err(CacheError::Io { block });
                }
            }
            failed_before = failed;
        }
    }

    /// Writes those pages of `at..end` that could not be written, each alone. How many failed again, and the first.
    fn write_failed(&self, mut at: u64, end: u64) -> (u64, Option<u64>) {
        let (mut failed, mut first) = (0, None);
        while let Some(block) = self.failed.next_of_all(at, end) {
            self.begin_writes(block, block + 1);
            self.wait_for_writes(block, block + 1);
            if self.failed.contains(block) {
                failed += 1;
                first = first.or(Some(block));
            }
            at = block + 1;
        }
        (failed, first)
    }

    /// Begins to write each page of `at..end` that is dirty; waits for room, and for those who use a page.
    ///
    /// A page that somebody else is writing is on its way with its contents as they are, for nobody changes it; but the
    /// disk may still refuse that request, and nobody would write the page then. A refusal is counted before the page
    /// is dirty again, and within an open write. So if no write was open before the page was looked at, none is open
    /// after that, and none was refused in between, then the disk has taken the request; else the page is looked at
    /// again. Who changes the page over and over does not hold this up: only refusals and writes that open do.
    fn begin_writes(&self, mut at: u64, end: u64) {
        while let Some(block) = self.unwritten.next_of_all(at, end) {
            let refused = self.refused.load(Ordering::Acquire);
            let open = self.open_writes.load(Ordering::Acquire) > 0;
            match self.begin_write_of(block) {
                Begun::Pages(_) | Begun::Failed => {}
                Begun::NoRoom => {
                    self.wait();
                    continue;
                }
                Begun::Not if self.is_being_written(block) => {
                    while self.open_writes.load(Ordering::Acquire) > 0 {
                        self.wait();
                    }
                    if open || self.refused.load(Ordering::Acquire) != refused {
                        continue;
                    }
                }
                Begun::Not if self.unwritten.contains(block) => {
                    self.wait();
                    continue;
                }
                Begun::Not => {}
            }
            at = block + 1;
        }
    }

    fn wait_for_writes(&self, mut at: u64, end: u64) {
        while let Some(block) = self.unwritten.next_of_all(at, end) {
            while self.is_being_written(block) {
                self.wait();
            }
            at = block + 1;
        }
    }
}
