//! The requests that are in flight: a fixed table.

use alloc::boxed::Box;

use dirigible_disk::MAX_REQUEST_FRAMES;
use dirigible_frames::Pfn;
use dirigible_frames::sync::{AtomicU64, Mutex, Ordering};

/// A run of blocks and their frames.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub write: bool,
    /// A read: how many have failed before, alone.
    pub attempts: u8,
    pub block: u64,
    pub count: usize,
    pub frames: [Pfn; MAX_REQUEST_FRAMES],
}

impl Run {
    pub fn new(write: bool, block: u64, frame: Pfn) -> Self {
        let mut frames = [Pfn::new(0); MAX_REQUEST_FRAMES];
        frames[0] = frame;
        Self {
            write,
            attempts: 0,
            block,
            count: 1,
            frames,
        }
    }

    /// Adds the frame of the next block. There is room.
    pub fn push(&mut self, frame: Pfn) {
        self.frames[self.count] = frame;
        self.count += 1;
    }

    pub fn is_full(&self) -> bool {
        self.count == MAX_REQUEST_FRAMES
    }

    pub fn frames(&self) -> &[Pfn] {
        &self.frames[..self.count]
    }

    /// The blocks and their frames.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Pfn)> + '_ {
        (self.block..).zip(self.frames().iter().copied())
    }
}

/// A place in the table; its number is the request's token.
#[derive(Debug)]
#[must_use]
pub(crate) struct Place(u32);

impl Place {
    pub const fn token(&self) -> u32 {
        self.0
    }
}

/// Up to 64 places.
pub(crate) struct Requests {
    /// Bit set: free. Taken and given back by one step.
    free: AtomicU64,
    all: u64,
    /// Places that writes leave to reads: dirty pages by the thousand must not hold up who waits for a block.
    for_reads: u32,
    /// By place. Locked for a copy, a leaf; only the holder of the place writes it.
    runs: Box<[Mutex<Run>]>,
}

impl Requests {
    /// `places` places, 1 to 64.
    pub fn new(places: usize) -> Self {
        let places = places.clamp(1, 64);
        let all = u64::MAX >> (64 - places);
        Self {
            free: AtomicU64::new(all),
            all,
            for_reads: places as u32 / 4,
            runs: (0..places)
                .map(|_| Mutex::new(Run::new(false, 0, Pfn::new(0))))
                .collect(),
        }
    }

    /// A free place, if there is one.
    pub fn take(&self, write: bool) -> Option<Place> {
        let spared = if write { self.for_reads } else { 0 };
        // Acquire: pairs with the release in `put`.
        self.free
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |free| {
                (free.count_ones() > spared).then(|| free & (free - 1))
            })
            .ok()
            .map(|free| Place(free.trailing_zeros()))
    }

    /// Gives a place back.
    pub fn put(&self, place: Place) {
        // Release: the next holder comes after this one.
        self.free.fetch_or(1 << place.0, Ordering::Release);
    }

    /// Writes down what the request in `place` is, before it is sent.
    pub fn fill(&self, place: &Place, run: &Run) {
        *self.runs[place.0 as usize].lock() = *run;
    }

    /// The place and the run of a request that has ended; `None` if no request has this token.
    pub fn ended(&self, token: u32) -> Option<(Place, Run)> {
        let run = self.runs.get(token as usize)?;
        let taken = self.free.load(Ordering::Acquire) & 1 << token == 0;
        taken.then(|| (Place(token), *run.lock()))
    }

    /// Whether no request is in flight, nor being made.
    pub fn is_idle(&self) -> bool {
        self.free.load(Ordering::Relaxed) == self.all
    }
}
