//! Blocks that are not in memory: claimed, read, waited for.

use core::ops::Range;

use dirigible_disk::{DiskRequest, SubmitError};
use dirigible_frames::sync::Ordering;
use dirigible_frames::{AllocRequest, FrameContents, FrameFlags, Pfn, Watermark};

use crate::cache::PageCache;
use crate::pages::CacheError;
use crate::requests::{Place, Run};
use crate::slot::Slot;

impl<P: FrameContents> PageCache<'_, P> {
    /// Begins to read `block`, which had no frame, and blocks of `ahead` that follow it. Somebody else may have begun
    /// before: the caller looks again.
    ///
    /// # Errors
    ///
    /// There is no memory, and the block still has no frame.
    pub(crate) fn begin_read(&self, block: u64, ahead: Range<u64>) -> Result<(), CacheError> {
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
        self.read_ahead(&mut run, ahead);
        self.send_read(place, &run);
        Ok(())
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
        loop {
            let slot = self.slot(block);
            if slot.is_present() {
                return false;
            }
            if self.swap_slot(block, slot, present) {
                self.pages.fetch_add(1, Ordering::Relaxed);
                let stamp = slot.stamp().filter(|_| read);
                let kind = self.kind_of(block);
                let cpu = self.platform.cpu();
                if stamp.is_some_and(|stamp| self.generations.refault(cpu, stamp, kind)) {
                    self.frames.set_flags(frame, FrameFlags::WORKINGSET);
                }
                return true;
            }
        }
    }

    /// Adds blocks that follow the run and have no frame, as far as `ahead` and the stream allow and frames are there.
    fn read_ahead(&self, run: &mut Run, ahead: Range<u64>) {
        let end = ahead.end.min(self.block_count());
        let first = run.block + 1;
        if ahead.start > first || end <= first {
            return;
        }
        let (least, most) = (self.config.ahead_first, self.config.ahead_most);
        let stream = self.streams.find(run.block, least, most);
        let end = end.min(run.block + stream.window as u64);
        let request = AllocRequest::movable().with_watermark(Watermark::Low);
        let mut next = first;
        // What is read ahead is not worth a wait, nor the last free frames; nor what a request that is refused costs:
        // it empties the caches of all CPUs first.
        while next < end && !self.slot(next).is_present() && self.has_more_than_low() {
            let Ok(frame) = self.frames.alloc(self.platform.cpu(), request) else {
                break;
            };
            self.frames.set_owner(frame, self.owner, next);
            if !self.claim(next, frame, true) {
                self.free(frame);
                break;
            }
            run.push(frame);
            next += 1;
        }
        self.streams.advance(stream, next);
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
