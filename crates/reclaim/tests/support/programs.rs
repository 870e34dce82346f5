//! An owner of anonymous frames, whose swap is the cache.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use dirigible_frames::{AllocRequest, FrameState, Order, OwnerId, Pfn, Platform, Watermark};
use dirigible_reclaim::{Age, Evictable, Kept, Kind, Stamp};

use super::{Cache, World, leak};

pub const PROGRAMS: OwnerId = OwnerId::new(5).unwrap();

pub struct Programs {
    cache: &'static Cache,
    pub pages: Mutex<BTreeSet<Pfn>>,
    /// Slots that are free.
    pub slots: AtomicU64,
    /// How many frames each call got.
    pub batches: Mutex<Vec<usize>>,
    /// It keeps all.
    pub stubborn: AtomicBool,
}

impl Programs {
    /// Programs of `w`, with `slots` slots of swap.
    pub fn new(w: &World, slots: u64) -> &'static Self {
        Self::with_id(w, PROGRAMS, slots)
    }

    pub fn with_id(w: &World, id: OwnerId, slots: u64) -> &'static Self {
        let programs = leak(Self {
            cache: w.cache,
            pages: Mutex::default(),
            slots: AtomicU64::new(slots),
            batches: Mutex::default(),
            stubborn: AtomicBool::new(false),
        });
        w.reclaimer.register(id, programs).unwrap();
        programs
    }

    pub fn add(&self, id: OwnerId, age: Age, order: Order) -> Option<Pfn> {
        let request = AllocRequest {
            order,
            ..AllocRequest::movable().with_watermark(Watermark::None)
        };
        let frames = self.cache.frames;
        let frame = frames.alloc(self.cache.machine.cpu(), request).ok()?;
        self.list(frame, id, age);
        Some(frame)
    }

    fn list(&self, frame: Pfn, id: OwnerId, age: Age) {
        self.cache.frames.set_owner(frame, id, 0);
        self.cache.generations.add(frame, age);
        self.cache
            .go(frame, FrameState::Allocated, FrameState::Listed);
        self.pages.lock().unwrap().insert(frame);
        self.cache.others.fetch_add(1, Relaxed);
    }

    pub fn add_many(&self, count: usize) -> Vec<Pfn> {
        let add = |_| self.add(PROGRAMS, Age::New, Order::BASE);
        (0..count).filter_map(add).collect()
    }

    pub fn count(&self) -> usize {
        self.pages.lock().unwrap().len()
    }

    fn unlist(&self, frame: Pfn) {
        assert!(self.pages.lock().unwrap().remove(&frame));
        self.cache.others.fetch_sub(1, Relaxed);
        self.cache
            .go(frame, FrameState::Isolated, FrameState::Allocated);
        self.cache.generations.remove(frame);
    }
}

impl Evictable for Programs {
    fn kind(&self) -> Kind {
        Kind::Anonymous
    }

    fn has_swap(&self) -> bool {
        self.slots.load(Relaxed) > 0
    }

    fn swap_out(&self, frames: &[Pfn]) -> usize {
        assert!((1..=32).contains(&frames.len()));
        self.batches.lock().unwrap().push(frames.len());
        let mut given = 0;
        for &frame in frames {
            assert_eq!(self.cache.frames.state(frame), FrameState::Isolated);
            let id = self.cache.frames.owner(frame);
            if self.stubborn.load(Relaxed) || !self.has_swap() {
                self.put_back(frame);
            } else if self.cache.frames.order(frame) == Order::HUGE {
                self.unlist(frame);
                self.cache.frames.split(frame).unwrap();
                (0..512).for_each(|at| self.list(frame.plus(at), id, Age::New));
            } else {
                self.unlist(frame);
                self.slots.fetch_sub(1, Relaxed);
                self.cache.adopt(frame);
                given += 1;
            }
        }
        given
    }

    fn drop_clean(&self, _: Pfn, _: Stamp) -> Result<(), Kept> {
        panic!("contents that are nowhere else");
    }

    fn begin_write(&self, _: Pfn) -> usize {
        panic!("no file");
    }

    fn put_back(&self, frame: Pfn) {
        self.cache
            .go(frame, FrameState::Isolated, FrameState::Listed);
    }

    fn wake_flusher(&self) {}

    fn dirty_and_writeback(&self) -> (u64, u64) {
        (0, 0)
    }
}
