//! Blocks that are not in memory: claimed, read, waited for.

use core::ops::Range;

use dirigible_disk::{DiskRequest, SubmitError};
use dirigible_frames::{AllocRequest, FrameContents, FrameFlags, Pfn, Watermark};
use dirigible_reclaim::Kind;

use crate::cache::PageCache;
use crate::pages::CacheError;
use crate::requests::{Place, Run};
use crate::slot::Slot;

impl<P: FrameContents> PageCache<'_, P> {
    /// Begins to read `block`, which had no frame, and what `ahead` adds to the run. Somebody else may have begun
    /// before: the caller looks again.
    ///
    /// # Errors
    ///
    /// There is no memory, and the block still has no frame.
    pub(crate) fn begin_read(
        &self,
        block: u64,
        ahead: impl FnOnce(&mut Run),
    ) -> Result<(), CacheError> {
        let Some(frame) = self.new_frame(block)? else {
            return Ok(());
        };
        // Nothing of ours is waited for by others yet: a place may take its time.
        let place = self.place_for_read();
        if !self.claim(block, frame, true) {
            self.requests.put(place);
            self.free(frame);
            return Ok(());
        }
        let mut run = Run::new(false, block, frame);
        ahead(&mut run);
        self.send_read(place, &run);
        Ok(())
    }

    /// Begins to read `block` alone, after `attempts` that have failed alone.
    ///
    /// # Errors
    ///
    /// As [`begin_read`](Self::begin_read).
    pub(crate) fn begin_read_again(&self, block: u64, attempts: u8) -> Result<(), CacheError> {
        self.begin_read(block, |run| run.attempts = attempts)
    }

    /// A frame for `block`, after all that can be done to get one; `None` if the block has one by now.
    pub(crate) fn new_frame(&self, block: u64) -> Result<Option<Pfn>, CacheError> {
        match self.memory.alloc(AllocRequest::movable()) {
            Ok(frame) if Slot::present(frame).is_some() => {
                self.frames.set_owner(frame, self.owner, block);
                return Ok(Some(frame));
            }
            Ok(frame) => self.free(frame),
            Err(_) => {}
        }
        if self.slot(block).is_present() {
            return Ok(None);
        }
        Err(CacheError::OutOfMemory)
    }

    /// Puts `frame`, which is `Allocated` and the caller's, into the slot of `block`; `false` if another is there.
    /// From now on others wait until it is listed, or the slot is empty again. If it is to be `read`, contents that
    /// reclaim took come back: a refault.
    pub(crate) fn claim(&self, block: u64, frame: Pfn, read: bool) -> bool {
        let Some(present) = Slot::present(frame) else {
            return false;
        };
        let kind = self.kind_of(block);
        loop {
            let slot = self.slot(block);
            // An empty slot of swap has no contents: whoever wants to read it has come too late.
            if slot.is_present() || kind == Kind::Anonymous && slot == Slot::ABSENT {
                return false;
            }
            if self.swap_slot(block, slot, present) {
                self.pages.add(kind, 1);
                let stamp = slot.stamp().filter(|_| read);
                let cpu = self.platform.cpu();
                if stamp.is_some_and(|stamp| self.generations.refault(cpu, stamp, kind)) {
                    self.frames.set_flags(frame, FrameFlags::WORKINGSET);
                }
                return true;
            }
        }
    }

    /// Adds blocks that follow the run and have no frame, as far as `ahead` and the stream allow and frames are there.
    pub(crate) fn read_ahead(&self, run: &mut Run, ahead: Range<u64>) {
        let end = ahead.end.min(self.file_blocks());
        let first = run.block + 1;
        if ahead.start > first || end <= first {
            return;
        }
        let (least, most) = (self.config.ahead_first, self.config.ahead_most);
        let stream = self.streams.find(run.block, least, most);
        let end = end.min(run.block + stream.window as u64);
        let mut next = first;
        while next < end
            && !self.slot(next).is_present()
            && let Some(frame) = self.claim_ahead(next)
        {
            run.push(frame);
            next += 1;
        }
        self.streams.advance(stream, next);
    }

    /// A frame in the slot of `block`, which had none and is read ahead.
    pub(crate) fn claim_ahead(&self, block: u64) -> Option<Pfn> {
        // What is read ahead is not worth a wait, nor the last free frames; nor what a request that is refused costs:
        // it empties the caches of all CPUs first.
        if !self.has_more_than_low() {
            return None;
        }
        let request = AllocRequest::movable().with_watermark(Watermark::Low);
        let frame = self.frames.alloc(self.platform.cpu(), request).ok()?;
        self.frames.set_owner(frame, self.owner, block);
        if !self.claim(block, frame, true) {
            self.free(frame);
            return None;
        }
        Some(frame)
    }

    /// Whether a zone has more free than its low watermark.
    fn has_more_than_low(&self) -> bool {
        let frames = self.frames;
        frames
            .zones()
            .any(|zone| frames.zone_free_frames(zone) > frames.watermarks(zone).low)
    }

    fn place_for_read(&self) -> Place {
        loop {
            if let Some(place) = self.requests.take(false) {
                return place;
            }
            self.wait();
        }
    }

    fn send_read(&self, place: Place, run: &Run) {
        self.requests.fill(&place, run);
        while let Err(error) = self.submit(&place, run) {
            if error == SubmitError::Busy {
                self.wait();
                continue;
            }
            self.requests.put(place);
            self.finish_read(run, Err(dirigible_disk::DiskError::Io));
            return;
        }
    }

    /// Sends a request that is written down in its place.
    pub(crate) fn submit(&self, place: &Place, run: &Run) -> Result<(), SubmitError> {
        let request = DiskRequest {
            token: place.token(),
            write: run.write,
            block: run.block,
            frames: run.frames(),
        };
        self.disk.submit(request)
    }
}
