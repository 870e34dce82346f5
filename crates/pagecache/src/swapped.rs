//! Pages of programs, on the part of the disk that is swap.
//!
//! A slot of swap says by itself what it is:
//!
//! | the table says | the slot |
//! |---|---|
//! | nothing | has no contents: it is free, or was just taken |
//! | a frame that is a page of the cache | its contents are in memory, and perhaps on the disk |
//! | a frame of another owner | its contents are *promised*: others wait |
//! | a stamp, or that a read failed | its contents are on the disk only |
//!
//! So nobody reads a slot after its contents were taken or forgotten: only a slot with contents is claimed for a read,
//! in one step. Pages of programs are never written to, only brought ([`PageCache::adopt`]) and taken
//! ([`PageCache::take`]).

use core::ops::Range;

use dirigible_frames::{
    AllocRequest, Event, FrameContents, FrameFlags, FrameState, Marks, OwnerId, Pfn,
};
use dirigible_reclaim::{Age, Evictable, Kind};

use crate::cache::PageCache;
use crate::pages::CacheError;
use crate::requests::Run;
use crate::slot::Slot;
use crate::writing::Begun;

/// The marks that a page of swap has for its use or its place, and that say nothing to whoever takes its frame.
const USE: FrameFlags = FrameFlags::REFERENCED
    .union(FrameFlags::ACTIVE)
    .union(FrameFlags::WORKINGSET);

impl<P: FrameContents> PageCache<'_, P> {
    /// The blocks that are swap.
    pub fn swap_blocks(&self) -> Range<u64> {
        self.swap.clone()
    }

    /// How many pages of programs there are, those that are being read and those that are promised among them.
    pub fn swap_pages(&self) -> u64 {
        self.pages.get(Kind::Anonymous)
    }

    /// Whether `block`, of swap, has contents: in memory, promised, or on the disk.
    pub fn has_contents(&self, block: u64) -> bool {
        self.swap.contains(&block) && self.slot(block) != Slot::ABSENT
    }

    pub(crate) fn kind_of(&self, block: u64) -> Kind {
        if self.swap.contains(&block) {
            Kind::Anonymous
        } else {
            Kind::File
        }
    }

    /// How many blocks files have.
    pub(crate) fn file_blocks(&self) -> u64 {
        if self.swap.is_empty() {
            self.block_count()
        } else {
            self.swap.start
        }
    }

    pub(crate) fn blocks_of(&self, kind: Kind) -> Range<u64> {
        match kind {
            Kind::File => 0..self.file_blocks(),
            Kind::Anonymous => self.swap.clone(),
        }
    }

    /// The contents of `block`, a block of swap without contents, are in `frame`, which somebody else has isolated. Who
    /// wants the block waits until [`adopt`](Self::adopt) or [`withdraw`](Self::withdraw). Gives whether that can be:
    /// the block has no contents, and the frame's number no more than 28 bits. Does not wait.
    #[must_use]
    pub fn promise(&self, block: u64, frame: Pfn) -> bool {
        let Some(slot) = Slot::present(frame).filter(|_| self.swap.contains(&block)) else {
            return false;
        };
        let promised = self.swap_slot(block, Slot::ABSENT, slot);
        if promised {
            self.pages.add(Kind::Anonymous, 1);
        }
        promised
    }

    /// Takes back a promise.
    pub fn withdraw(&self, block: u64, frame: Pfn) {
        let promised = Slot::present(frame).filter(|_| self.swap.contains(&block));
        if promised.is_some_and(|slot| self.swap_slot(block, slot, Slot::ABSENT)) {
            self.pages.sub(Kind::Anonymous, 1);
        }
    }

    /// Keeps a promise: `frame` is `Allocated`, in no generation, and the cache's from now on, as a dirty page of
    /// `block`. Does not wait.
    pub fn adopt(&self, block: u64, frame: Pfn) {
        if !self.swap.contains(&block) || self.slot(block).frame() != Some(frame) {
            debug_assert!(false, "{frame} was not promised to block {block}");
            return;
        }
        self.frames.set_owner(frame, self.owner, block);
        // Nobody else touches the frame until it is listed.
        self.will_be_dirty(block);
        let wanted = FrameFlags::DIRTY.union(FrameFlags::RECLAIM);
        let _ = self.frames.update_marks(frame, |info| {
            Some(Marks {
                flags: info.flags.without(USE).union(wanted),
                ..info.marks()
            })
        });
        self.generations.add(frame, Age::New);
        self.became_dirty(block, frame);
        self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
    }

    /// Begins to write those pages of `blocks` that are dirty. Does not wait: what the disk has no room for the flusher
    /// writes when there is.
    pub fn write_out(&self, blocks: impl IntoIterator<Item = u64>) {
        for block in blocks {
            // A look: most were written as neighbours of the first.
            let frame = self.slot_of_swap(block).frame();
            let dirty = frame.is_some_and(|frame| {
                let flags = self.frames.flags(frame);
                flags.contains(FrameFlags::DIRTY) && !flags.contains(FrameFlags::ABANDONED)
            });
            if dirty && self.begin_write_of(block) == Begun::NoRoom {
                self.wake_flusher();
                PageCache::poll(self);
                return;
            }
        }
    }

    /// Brings the contents of `block`, if it has any, into memory, with those of its neighbours that are on the disk: as
    /// far as they lie in its aligned group of 8 blocks, or fewer while what was read so is not used, and in one row
    /// with it. Waits until they can be [taken](Self::take); by then somebody else may have taken them. Waits for the
    /// disk and for memory.
    ///
    /// # Errors
    ///
    /// There is no frame; or the contents cannot be read.
    pub fn fetch(&self, block: u64) -> Result<(), CacheError> {
        if !self.swap.contains(&block) {
            return Err(CacheError::Beyond { block });
        }
        let mut waited = false;
        loop {
            let slot = self.slot(block);
            match slot {
                Slot::ABSENT => return Ok(()),
                Slot::UNREADABLE if waited => return Err(CacheError::Io { block }),
                Slot::UNREADABLE => self.begin_read_again(block, 0)?,
                _ => match slot.frame() {
                    None => match slot.attempts() {
                        Some(attempts) => self.begin_read_again(block, attempts)?,
                        None => self.begin_read(block, |run| self.read_around(run))?,
                    },
                    Some(frame) if self.is_abandoned(block, frame) => {
                        self.rescue(block, frame)?;
                    }
                    Some(frame) if self.is_at_rest(frame) => {
                        if !waited {
                            self.swap_window.hit();
                        }
                        return Ok(());
                    }
                    Some(_) => self.wait(),
                },
            }
            waited = true;
        }
    }

    /// Takes the contents of `block`, a block of swap, out of the cache: their frame, which is `Allocated`, has no owner
    /// and no marks, and is the caller's. The block has no contents afterwards. `None` if they are not in memory, or
    /// somebody has them in hand at this moment. Does not wait.
    pub fn take(&self, block: u64) -> Option<Pfn> {
        let frame = self.slot_of_swap(block).frame()?;
        // Isolated first, so that nobody else isolates the frame after it was taken off the books.
        self.frames.try_isolate(frame, self.owner).ok()?;
        let Some(flags) = self.lock(block, frame, FrameFlags::ABANDONED, true) else {
            self.put_back_frame(frame);
            return None;
        };
        self.unlink(block, frame, flags, Slot::ABSENT);
        self.must_transition(frame, FrameState::Isolated, FrameState::Allocated);
        let ended = USE
            .union(FrameFlags::DIRTY)
            .union(FrameFlags::RECLAIM)
            .union(FrameFlags::LOCKED);
        self.frames.clear_flags(frame, ended);
        self.frames.set_owner(frame, OwnerId::NONE, 0);
        Some(frame)
    }

    /// Drops the contents of those of `blocks` that are swap: they are not wanted any more. Waits for what is being read
    /// or written. Gives how many frames became free.
    pub fn forget_swap(&self, blocks: Range<u64>) -> u64 {
        let (start, end) = (self.swap.start, self.swap.end);
        self.forget_range(blocks.start.max(start)..blocks.end.min(end))
    }

    /// A device that cannot be stopped was told to write `frame`, a page of swap, and may read it still: copies the contents
    /// to another frame, which is the block's from now on. This one is nobody's.
    fn rescue(&self, block: u64, frame: Pfn) -> Result<(), CacheError> {
        let new = self.memory.alloc(AllocRequest::movable());
        let new = new.map_err(|_| CacheError::OutOfMemory)?;
        let Some(present) = Slot::present(new) else {
            self.free(new);
            return Err(CacheError::OutOfMemory);
        };
        let Some(flags) = self.lock(block, frame, FrameFlags::EMPTY, false) else {
            // It is somebody else's at this moment, or another page's.
            self.free(new);
            self.wait();
            return Ok(());
        };
        self.platform.copy_frames(frame, new, 1);
        // From one frame to the other in one step, as if the other had been promised: who wants the block waits.
        self.pages.add(Kind::Anonymous, 1);
        self.remove_locked(block, frame, flags, present);
        self.adopt(block, new);
        Ok(())
    }

    fn slot_of_swap(&self, block: u64) -> Slot {
        if self.swap.contains(&block) {
            self.slot(block)
        } else {
            Slot::ABSENT
        }
    }

    /// Whether the frame is a page that could be taken now.
    fn is_at_rest(&self, frame: Pfn) -> bool {
        let busy = FrameFlags::LOCKED.union(FrameFlags::WRITEBACK);
        self.frames.frame(frame).is_some_and(|info| {
            info.owner == self.owner
                && info.state == FrameState::Listed
                && info.refcount == 0
                && !info.flags.intersects(busy)
        })
    }

    fn is_abandoned(&self, block: u64, frame: Pfn) -> bool {
        self.frames.frame(frame).is_some_and(|info| {
            self.is_page(&info) && info.word == block && info.flags.contains(FrameFlags::ABANDONED)
        })
    }

    /// Adds to a run of one block those around it that have contents on the disk only.
    fn read_around(&self, run: &mut Run) {
        let window = self.swap_window.next(run.block);
        let offset = run.block - self.swap.start;
        let first = self.swap.start + (offset - offset % window);
        let end = (first + window).min(self.swap.end);
        // Those that could not be read once would spoil the request.
        let claim = |block: u64| {
            self.slot(block).stamp()?;
            self.claim_ahead(block)
        };
        while run.block > first
            && let Some(frame) = claim(run.block - 1)
        {
            run.block -= 1;
            run.push(frame);
        }
        run.frames[..run.count].reverse();
        while run.block + (run.count as u64) < end
            && let Some(frame) = claim(run.block + run.count as u64)
        {
            run.push(frame);
        }
    }

    /// A request has read `frames` pages of swap, one of which was wanted.
    pub(crate) fn count_swapped_in(&self, frames: u64) {
        self.count(Event::PswpIn, frames);
        self.count(Event::SwapAhead, frames.saturating_sub(1));
    }

    /// A request has written `frames` pages of swap. It is always reclaim that wanted it.
    pub(crate) fn count_swapped_out(&self, frames: u64) {
        self.count(Event::PswpOut, frames);
        self.count(Event::VmscanWrite, frames);
        self.generations.cost(Kind::Anonymous, frames);
    }
}
