//! Requests that have ended.

use dirigible_disk::{Completion, DiskError};
use dirigible_frames::sync::Ordering;
use dirigible_frames::{Event, FrameContents, FrameFlags, FrameState, Marks, Pfn};
use dirigible_reclaim::{Age, Kind};

use crate::cache::PageCache;
use crate::requests::Run;
use crate::slot::Slot;

/// KiB in a frame.
const FRAME_KIB: u64 = 4;
/// Completions that are taken at once.
const BATCH: usize = 16;

/// Requests for a block, alone, that may be interrupted one after the other before they count as failed: the first and
/// five more, as Linux's disks have it (`SD_MAX_RETRIES`). A device that is reset loses all that it has in hand,
/// whoever was at fault.
pub(crate) const MOST_INTERRUPTED: u8 = 6;

/// What the slots of a read that failed say of the next attempt.
fn failed_slot(run: &Run, error: DiskError) -> Slot {
    let attempts = run.attempts + 1;
    match error {
        // Perhaps for another block of the run.
        _ if run.count > 1 => Slot::failed(0),
        DiskError::Interrupted if attempts < MOST_INTERRUPTED => Slot::failed(attempts),
        _ => Slot::UNREADABLE,
    }
}

impl<P: FrameContents> PageCache<'_, P> {
    /// Takes requests that have ended and finishes them; gives whether there were any. Does not wait. Costs one load
    /// while none is in flight. Everybody who waits for a page calls it; so should the disk's interrupt, or whoever is
    /// woken by it.
    pub fn poll(&self) -> bool {
        // Acquire: pairs with the release below. Of several only one takes completions: the others have nothing to do.
        if self.requests.is_idle() || self.polling.swap(true, Ordering::Acquire) {
            return false;
        }
        let mut some = false;
        loop {
            let mut ended = [Completion {
                token: 0,
                result: Ok(()),
            }; BATCH];
            let count = self.disk.completed(&mut ended).min(BATCH);
            for completion in &ended[..count] {
                self.finish(completion);
            }
            some |= count > 0;
            if count < BATCH {
                break;
            }
        }
        self.polling.store(false, Ordering::Release);
        some
    }

    fn finish(&self, completion: &Completion) {
        // A device that answers what it was not asked is ignored.
        let Some((place, run)) = self.requests.ended(completion.token) else {
            return;
        };
        self.requests.put(place);
        if run.write {
            self.finish_write(&run, completion.result);
        } else {
            self.finish_read(&run, completion.result);
        }
    }

    /// Puts what was read onto the books; or empties the slots, so that those who wait see that it failed.
    pub(crate) fn finish_read(&self, run: &Run, result: Result<(), DiskError>) {
        let frames = run.count as u64;
        let Err(error) = result else {
            self.count(Event::PgPgIn, frames * FRAME_KIB);
            if self.kind_of(run.block) == Kind::Anonymous {
                self.count_swapped_in(frames);
            }
            for &frame in run.frames() {
                self.add_age(frame);
                self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
            }
            return;
        };
        self.read_errors.fetch_add(frames, Ordering::Relaxed);
        let failed = failed_slot(run, error);
        for (block, frame) in run.pages() {
            self.set_slot(block, failed);
            self.pages.sub(self.kind_of(block), 1);
            if error == DiskError::Abandoned {
                self.abandon(frame);
            } else {
                self.free(frame);
            }
        }
    }

    /// Gives a new page, which is not listed yet, an age: before it can be isolated, as who removes it must find it
    /// added.
    pub(crate) fn add_age(&self, frame: Pfn) {
        let known = self.frames.flags(frame).contains(FrameFlags::WORKINGSET);
        let age = if known { Age::Young } else { Age::New };
        self.generations.add(frame, age);
    }

    fn finish_write(&self, run: &Run, result: Result<(), DiskError>) {
        let frames = run.count as u64;
        match result {
            Ok(()) => {
                self.count(Event::PgPgOut, frames * FRAME_KIB);
                self.write_done(self.kind_of(run.block));
                match self.kind_of(run.block) {
                    Kind::File => self.count(Event::NrWritten, frames),
                    Kind::Anonymous => self.count_swapped_out(frames),
                }
                for (block, frame) in run.pages() {
                    self.written(block, frame);
                }
            }
            Err(error) => {
                self.write_errors.fetch_add(frames, Ordering::Relaxed);
                if error == DiskError::Interrupted {
                    // Before the pages are dirty again: pairs with the acquire of `sync_range`.
                    self.interrupted_writes.fetch_add(1, Ordering::Release);
                }
                self.count_refusal(run);
                let mut marks = FrameFlags::DIRTY;
                if error == DiskError::Abandoned {
                    marks = marks.union(FrameFlags::ABANDONED);
                }
                for (block, frame) in run.pages() {
                    self.add_failed(block);
                    self.unwrite(block, frame, marks);
                    if error == DiskError::Abandoned {
                        // After the mark: whoever has it isolated finds that, and pins it.
                        self.frames.set_flags(frame, FrameFlags::PINNED);
                    }
                }
            }
        }
    }

    /// A page is on the disk. Until the mark `WRITEBACK` is gone nobody changes, moves or drops it.
    fn written(&self, block: u64, frame: Pfn) {
        self.unwritten.remove(block);
        self.aged.remove(block);
        self.remove_failed(block);
        self.generations.dirtied(frame, false);
        self.writeback.sub(self.kind_of(block), 1);
        // Reclaim may want it now that it is clean.
        self.generations.written(frame);
        self.frames.clear_flags(frame, FrameFlags::WRITEBACK);
    }

    /// A page is not being written any more, and gets `marks` (`DIRTY` among them) instead.
    pub(crate) fn unwrite(&self, block: u64, frame: Pfn, marks: FrameFlags) {
        let kind = self.kind_of(block);
        self.dirty.add(kind, 1);
        self.writeback.sub(kind, 1);
        let ended = match kind {
            Kind::File => FrameFlags::WRITEBACK.union(FrameFlags::RECLAIM),
            // It is still reclaim that wants it written.
            Kind::Anonymous => FrameFlags::WRITEBACK,
        };
        let _ = self.frames.update_marks(frame, |info| {
            Some(Marks {
                flags: info.flags.without(ended).union(marks),
                ..info.marks()
            })
        });
    }
}
