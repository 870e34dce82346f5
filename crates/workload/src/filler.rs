//! The filler, a stand-in for the page cache.
//!
//! It takes whatever memory is free as single movable frames with checked contents, and gives them back least recently
//! used first. So memory is always full. Random touches move frames to the young end of the list, so the order of age
//! has little to do with the order of addresses, and the frames that become free are scattered.
//!
//! The books are two arrays indexed by frame and allocated once: the filler allocates nothing while it works.

use alloc::{boxed::Box, vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible_frames::{
    AllocRequest, BlockId, FRAMES_PER_BLOCK, FrameAllocator, FrameState, Order, OwnerId,
    PageTables, Pfn, Watermark,
};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use dirigible_paging::Reclaim;
use spin::Mutex;

use crate::{
    content::{ContentLog, Pattern, When},
    control::{Control, Stage},
    rng::{Rng, Source},
    tuning::FillerTuning,
};
use dirigible::schedule::{Actor, Next};

/// Key of the filler's pages in the patterns of their contents.
const PATTERN_KEY: u64 = 0xf111_e400_0000_0000;
/// Frames handled each time the lock is taken.
const BATCH: usize = 64;
/// Not in the list.
const OUT: u32 = u32::MAX;
/// End of the list.
const END: u32 = u32::MAX - 1;

/// The filler's memory. It is a [`MovableOwner`] of its frames and the guest's [`Reclaim`].
pub struct Filler<'a, P: PageTables> {
    frames: &'a FrameAllocator<'a>,
    platform: &'a P,
    owner: OwnerId,
    contents: &'a ContentLog,
    books: Mutex<Books>,
    dropped: AtomicBool,
    taken: AtomicU64,
    given: AtomicU64,
}

/// A list of frames from the oldest to the youngest, linked through arrays indexed by frame.
struct Books {
    base: u64,
    older: Box<[u32]>,
    younger: Box<[u32]>,
    oldest: u32,
    youngest: u32,
    held: u64,
    /// Number of the newest page; it makes the contents of each page unique.
    serial: u64,
}

impl Books {
    fn new(base: u64, span: usize) -> Self {
        Self {
            base,
            older: vec![OUT; span].into_boxed_slice(),
            younger: vec![OUT; span].into_boxed_slice(),
            oldest: END,
            youngest: END,
            held: 0,
            serial: 0,
        }
    }

    fn index(&self, frame: Pfn) -> u32 {
        (frame.get() - self.base) as u32
    }

    fn frame(&self, index: u32) -> Pfn {
        Pfn::new(self.base + u64::from(index))
    }

    fn holds(&self, index: u32) -> bool {
        self.older[index as usize] != OUT
    }

    /// Adds a frame at the young end.
    fn push(&mut self, index: u32) {
        self.older[index as usize] = self.youngest;
        self.younger[index as usize] = END;
        match self.youngest {
            END => self.oldest = index,
            before => self.younger[before as usize] = index,
        }
        self.youngest = index;
        self.held += 1;
    }

    fn unlink(&mut self, index: u32) {
        let (older, younger) = (self.older[index as usize], self.younger[index as usize]);
        match older {
            END => self.oldest = younger,
            older => self.younger[older as usize] = younger,
        }
        match younger {
            END => self.youngest = older,
            younger => self.older[younger as usize] = older,
        }
        self.older[index as usize] = OUT;
        self.younger[index as usize] = OUT;
        self.held -= 1;
    }

    /// Replaces `from` by `to` in the list: a move does not make a page younger.
    fn replace(&mut self, from: u32, to: u32) {
        let (older, younger) = (self.older[from as usize], self.younger[from as usize]);
        self.older[to as usize] = older;
        self.younger[to as usize] = younger;
        match older {
            END => self.oldest = to,
            older => self.younger[older as usize] = to,
        }
        match younger {
            END => self.youngest = to,
            younger => self.older[younger as usize] = to,
        }
        self.older[from as usize] = OUT;
        self.younger[from as usize] = OUT;
    }
}

impl<'a, P: PageTables> Filler<'a, P> {
    /// A filler that holds no frame yet. Its frames will be registered under `owner`.
    pub fn new(
        frames: &'a FrameAllocator<'a>,
        platform: &'a P,
        owner: OwnerId,
        contents: &'a ContentLog,
    ) -> Self {
        let base = frames.block_start(BlockId::new(0)).get();
        let span = frames.blocks().count() * FRAMES_PER_BLOCK;
        Self {
            frames,
            platform,
            owner,
            contents,
            books: Mutex::new(Books::new(base, span)),
            dropped: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            given: AtomicU64::new(0),
        }
    }

    /// Frames held now.
    pub fn held(&self) -> u64 {
        self.books.lock().held
    }

    // Sums for the report: Relaxed.

    /// Frames taken so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Frames given back so far.
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// Frames that may be taken now: down to the high watermark, and never from the whole-block reserve.
    fn headroom(&self) -> u64 {
        self.frames
            .zones()
            .map(|zone| {
                let kept = u64::from(self.frames.reserve_blocks(zone)) * FRAMES_PER_BLOCK as u64;
                let floor = self.frames.watermarks(zone).high + kept;
                self.frames.zone_free_frames(zone).saturating_sub(floor)
            })
            .sum()
    }

    /// Takes up to `count` frames within the headroom. Returns how many.
    pub fn fill(&self, count: u64) -> u64 {
        let request = AllocRequest::movable().with_watermark(Watermark::High);
        let mut out = [Pfn::new(0); BATCH];
        let mut left = count.min(self.headroom());
        let mut taken = 0;
        while left > 0 && !self.dropped.load(Ordering::Relaxed) {
            let wanted = left.min(BATCH as u64) as usize;
            let got = self
                .frames
                .alloc_bulk(self.platform.cpu(), request, &mut out[..wanted]);
            if got == 0 {
                break;
            }
            self.take_in(&out[..got]);
            taken += got as u64;
            left -= got as u64;
        }
        self.taken.fetch_add(taken, Ordering::Relaxed);
        taken
    }

    fn take_in(&self, frames: &[Pfn]) {
        let first = {
            let mut books = self.books.lock();
            books.serial += frames.len() as u64;
            books.serial - frames.len() as u64
        };
        for (serial, &frame) in (first..).zip(frames) {
            Pattern::new(PATTERN_KEY, serial).write(self.platform, frame);
            self.frames.set_owner(frame, self.owner, serial);
            self.platform.charge(dirigible_frames::Cost::FillFrame);
        }
        let mut books = self.books.lock();
        for &frame in frames {
            let index = books.index(frame);
            books.push(index);
            self.must_transition(frame, FrameState::Allocated, FrameState::Listed);
        }
    }

    /// Uses the page in the frame that `draw` selects, if it is the filler's: checks four lines and makes it the
    /// youngest.
    pub fn touch(&self, draw: u64) {
        // The lock is held during the check, so that the page is neither moved nor given back meanwhile.
        let mut books = self.books.lock();
        let index = (draw % books.older.len() as u64) as u32;
        if !books.holds(index) {
            return;
        }
        let frame = books.frame(index);
        if self.frames.state(frame) != FrameState::Listed {
            return;
        }
        let serial = self.frames.owner_word(frame);
        let note = (When::Used, "filler", serial);
        let pattern = Pattern::new(PATTERN_KEY, serial);
        self.contents
            .check_four(self.platform, frame, pattern, (draw >> 32) as u32, note);
        books.unlink(index);
        books.push(index);
    }

    /// Takes up to `out.len()` of the oldest frames off the books. Isolated frames are skipped.
    fn take_oldest(&self, out: &mut [Pfn]) -> usize {
        let mut books = self.books.lock();
        let mut taken = 0;
        let mut at = books.oldest;
        while taken < out.len() && at != END {
            let next = books.younger[at as usize];
            let frame = books.frame(at);
            if self
                .frames
                .transition(frame, FrameState::Listed, FrameState::Allocated)
                .is_ok()
            {
                books.unlink(at);
                out[taken] = frame;
                taken += 1;
            }
            at = next;
        }
        taken
    }

    fn give_back(&self, count: usize, whole: bool) -> usize {
        let mut out = [Pfn::new(0); BATCH];
        let mut given = 0;
        while given < count {
            let wanted = (count - given).min(BATCH);
            let taken = self.take_oldest(&mut out[..wanted]);
            for &frame in &out[..taken] {
                let serial = self.frames.owner_word(frame);
                let pattern = Pattern::new(PATTERN_KEY, serial);
                let note = (When::Ended, "filler", serial);
                if whole {
                    self.contents
                        .check_whole(self.platform, frame, pattern, note);
                } else {
                    let draw = crate::rng::mix(serial) as u32;
                    self.contents
                        .check_four(self.platform, frame, pattern, draw, note);
                }
            }
            let freed = self.frames.free_bulk(self.platform.cpu(), &out[..taken]);
            debug_assert!(freed.is_ok(), "the filler's own frames: {freed:?}");
            given += taken;
            if taken < wanted {
                break;
            }
        }
        self.given.fetch_add(given as u64, Ordering::Relaxed);
        given
    }

    /// Checks all frames and gives them back; from then on the filler takes none. Frames that are isolated during the
    /// call stay until another call.
    pub fn drop_all(&self) {
        self.dropped.store(true, Ordering::Relaxed);
        self.give_back(usize::MAX, true);
    }

    fn must_transition(&self, frame: Pfn, from: FrameState, to: FrameState) {
        let moved = self.frames.transition(frame, from, to);
        debug_assert!(moved.is_ok(), "{frame} is {moved:?}, not {from:?}");
    }
}

impl<P: PageTables> Reclaim for Filler<'_, P> {
    fn reclaim(&self, frames: usize, _: Order) -> usize {
        let freed = self.give_back(frames, false);
        self.platform
            .charge(dirigible_frames::Cost::Reclaim(freed as u32));
        freed
    }
}

impl<P: PageTables> MovableOwner for Filler<'_, P> {
    fn isolate(&self, frame: Pfn) -> bool {
        // The frame keeps its place in the list: reclaim skips isolated frames.
        if self
            .frames
            .transition(frame, FrameState::Listed, FrameState::Isolated)
            .is_err()
        {
            return false;
        }
        let ours = self
            .frames
            .frame(frame)
            .is_some_and(|info| info.owner == self.owner);
        if !ours {
            // Its owner has changed since compaction read it.
            self.must_transition(frame, FrameState::Isolated, FrameState::Listed);
        }
        ours
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        for pair in pairs {
            let serial = self.frames.owner_word(pair.from);
            self.platform.copy_frames(pair.from, pair.to, 1);
            self.platform.charge(dirigible_frames::Cost::MoveFrame(1));
            let note = (When::Moved, "filler", serial);
            let pattern = Pattern::new(PATTERN_KEY, serial);
            self.contents
                .check_whole(self.platform, pair.to, pattern, note);
            self.frames.set_owner(pair.to, self.owner, serial);
            let mut books = self.books.lock();
            let (from, to) = (books.index(pair.from), books.index(pair.to));
            books.replace(from, to);
            self.must_transition(pair.to, FrameState::Allocated, FrameState::Listed);
            self.must_transition(pair.from, FrameState::Isolated, FrameState::Allocated);
            pair.outcome = Outcome::Moved;
        }
    }

    fn putback(&self, frame: Pfn) {
        self.must_transition(frame, FrameState::Isolated, FrameState::Listed);
    }
}

/// The actor that fills memory and touches pages at a steady pace.
pub struct FillerLoad<'a, P: PageTables> {
    filler: &'a Filler<'a, P>,
    control: &'a Control,
    tuning: FillerTuning,
    rng: Rng,
    due: u64,
    acknowledged: Stage,
}

impl<'a, P: PageTables> FillerLoad<'a, P> {
    /// The actor of `filler`.
    pub fn new(
        filler: &'a Filler<'a, P>,
        control: &'a Control,
        tuning: FillerTuning,
        seed: u64,
    ) -> Self {
        let rng = Rng::stream(seed, Source::Touches);
        Self {
            filler,
            control,
            tuning,
            rng,
            due: 0,
            acknowledged: Stage::Loaded,
        }
    }
}

impl<P: PageTables> Actor for FillerLoad<'_, P> {
    fn step(&mut self, now: u64) -> Next {
        let stage = self.control.stage();
        if stage != self.acknowledged {
            self.acknowledged = stage;
            self.control.acknowledge();
        }
        match stage {
            Stage::Loaded => {}
            Stage::Rested => return Next::At(now + self.tuning.tick),
            Stage::Over => return Next::Done,
        }
        self.due = self.due.max(now.saturating_sub(self.tuning.tick)) + self.tuning.tick;
        self.filler.fill(self.tuning.fill);
        for _ in 0..self.tuning.touches {
            self.filler.touch(self.rng.bits());
        }
        Next::At(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(books: &Books) -> alloc::vec::Vec<u32> {
        let mut order = alloc::vec::Vec::new();
        let mut at = books.oldest;
        while at != END {
            order.push(at);
            at = books.younger[at as usize];
        }
        let mut back = alloc::vec::Vec::new();
        let mut at = books.youngest;
        while at != END {
            back.push(at);
            at = books.older[at as usize];
        }
        back.reverse();
        assert_eq!(order, back);
        assert_eq!(order.len() as u64, books.held);
        order
    }

    #[test]
    fn the_list_keeps_order_through_touches_and_moves() {
        let mut books = Books::new(0, 16);
        for index in [3, 7, 1, 9] {
            books.push(index);
        }
        assert_eq!(order(&books), [3, 7, 1, 9]);
        books.unlink(7);
        books.push(7);
        assert_eq!(order(&books), [3, 1, 9, 7]);
        books.replace(3, 12);
        books.replace(7, 0);
        books.replace(9, 3);
        assert_eq!(order(&books), [12, 1, 3, 0]);
        for index in [12, 0, 1, 3] {
            assert!(books.holds(index));
            books.unlink(index);
            assert!(!books.holds(index));
        }
        assert_eq!(order(&books), [0u32; 0]);
        books.push(5);
        assert_eq!(order(&books), [5]);
    }
}
