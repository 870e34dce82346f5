//! A machine, and an owner of frames that keeps the naive books: for each frame what it is, beside the marks in its word.
#![allow(dead_code)]

pub mod programs;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock};

use dirigible_frames::{
    AllocRequest, Config, Cost, CpuId, Event, FrameAllocator, FrameFlags, FrameState, Marks, Order,
    OwnerId, Pfn, Platform, Watermark, Watermarks, ZoneConfig,
};
use dirigible_reclaim::{
    Age, Evictable, Generations, Kept, ReclaimConfig, Reclaimer, Shrinker, Shrunk, Stamp, Who,
};

pub const OWNER: OwnerId = OwnerId::new(3).unwrap();
pub const CPUS: u16 = 4;

thread_local! {
    static CPU: Cell<u16> = const { Cell::new(0) };
}

/// Makes the calling thread CPU `number`.
pub fn run_on(number: u16) {
    assert!(number < CPUS);
    CPU.set(number);
}

pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A machine whose clock goes by a millisecond at each `relax`.
#[derive(Default)]
pub struct Machine {
    pub clock: AtomicU64,
    pub relaxed: AtomicU64,
    pub scans: AtomicU64,
    pub reclaims: AtomicU64,
    /// Writes that end at each `relax`.
    pub ends: AtomicU64,
    pub cache: OnceLock<&'static Cache>,
    /// The caller is a program: others run while it waits.
    pub program: AtomicBool,
}

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.get())
    }
    fn caller(&self, cpu: CpuId) -> u64 {
        (u64::from(self.program.load(Relaxed)) << 32) + cpu.index() as u64 + 1
    }
    fn now(&self) -> u64 {
        self.clock.load(Relaxed)
    }
    fn relax(&self) {
        self.relaxed.fetch_add(1, Relaxed);
        self.clock.fetch_add(1_000_000, Relaxed);
        if let Some(cache) = self.cache.get() {
            cache.end_writes(self.ends.load(Relaxed) as usize);
        }
        std::thread::yield_now();
    }
    fn charge(&self, cost: Cost) {
        match cost {
            Cost::Scan(frames) => self.scans.fetch_add(frames.into(), Relaxed),
            Cost::Reclaim(frames) => self.reclaims.fetch_add(frames.into(), Relaxed),
            _ => 0,
        };
    }
}

/// What is true of a frame, by the owner's books.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Page {
    pub dirty: bool,
    pub writeback: bool,
    pub references: u8,
    /// Somebody else than reclaim has isolated it.
    pub isolated: bool,
}

impl Page {
    /// Whether reclaim may drop it.
    pub fn is_free_to_go(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Default)]
pub struct Books {
    pub pages: BTreeMap<Pfn, Page>,
    /// Frames that were dropped, with their stamps.
    pub dropped: Vec<(Pfn, Stamp)>,
    /// Frames whose writing reclaim began.
    pub written: u64,
}

/// A cache of file contents whose frames can be reclaimed.
pub struct Cache {
    pub frames: &'static FrameAllocator<'static>,
    pub generations: &'static Generations<'static>,
    pub machine: &'static Machine,
    books: Mutex<Books>,
    /// Requests that the disk still takes.
    pub room: AtomicU64,
    pub woken: AtomicU64,
    /// Writes end as soon as they have begun.
    pub quick: AtomicBool,
    /// Writes that each look for finished ones finds.
    pub finds: AtomicU64,
    pub harvests: AtomicU64,
    /// Direct reclaim runs: no write may begin.
    pub no_writes: AtomicBool,
    /// Refuse to drop as if each frame were in use.
    pub stubborn: AtomicBool,
    /// Frames in generations that are not this owner's.
    pub others: AtomicU64,
}

impl Cache {
    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// A new page; `None` if there is no free frame.
    pub fn add(&self, age: Age) -> Option<Pfn> {
        let request = AllocRequest::movable().with_watermark(Watermark::None);
        let frame = self.frames.alloc(self.machine.cpu(), request).ok()?;
        self.frames.set_owner(frame, OWNER, 0);
        self.books().pages.insert(frame, Page::default());
        self.generations.add(frame, age);
        self.go(frame, FrameState::Allocated, FrameState::Listed);
        Some(frame)
    }

    pub fn add_many(&self, count: usize, age: Age) -> Vec<Pfn> {
        (0..count).filter_map(|_| self.add(age)).collect()
    }

    pub fn go(&self, frame: Pfn, from: FrameState, to: FrameState) {
        assert_eq!(self.frames.transition(frame, from, to), Ok(()), "{frame}");
    }

    fn mark(&self, frame: Pfn, add: FrameFlags, remove: FrameFlags) {
        let done = self.frames.update_marks(frame, |info| {
            Some(Marks {
                flags: info.flags.union(add).without(remove),
                ..info.marks()
            })
        });
        assert!(done.is_ok());
    }

    pub fn dirty(&self, frame: Pfn) {
        let mut books = self.books();
        let page = books.pages.get_mut(&frame).unwrap();
        if !page.dirty {
            page.dirty = true;
            self.mark(frame, FrameFlags::DIRTY, FrameFlags::EMPTY);
            self.generations.dirtied(frame, true);
        }
    }

    pub fn hold(&self, frame: Pfn) {
        let mut books = self.books();
        if self.frames.get_ref(frame) {
            books.pages.get_mut(&frame).unwrap().references += 1;
        }
    }

    pub fn release(&self, frame: Pfn) {
        let mut books = self.books();
        let page = books.pages.get_mut(&frame).unwrap();
        if page.references > 0 {
            assert!(self.frames.put_ref(frame));
            page.references -= 1;
        }
    }

    /// Begins to write one page, as the flusher does.
    pub fn flush(&self, frame: Pfn) -> bool {
        let mut books = self.books();
        let page = books.pages.get_mut(&frame).unwrap();
        let begins = page.dirty && !page.writeback;
        if begins {
            *page = Page {
                dirty: false,
                writeback: true,
                ..*page
            };
            self.mark(frame, FrameFlags::WRITEBACK, FrameFlags::DIRTY);
            self.generations.dirtied(frame, false);
        }
        begins
    }

    pub fn end_writes(&self, count: usize) {
        let mut books = self.books();
        let ended: Vec<_> = books
            .pages
            .iter_mut()
            .filter(|(_, page)| page.writeback)
            .take(count)
            .map(|(frame, page)| {
                page.writeback = false;
                *frame
            })
            .collect();
        drop(books);
        for frame in ended {
            self.mark(frame, FrameFlags::EMPTY, FrameFlags::WRITEBACK);
            self.generations.written(frame);
        }
    }

    /// Takes a frame that was somebody else's, and begins to write it.
    pub fn adopt(&self, frame: Pfn) {
        self.frames.set_owner(frame, OWNER, 0);
        let page = Page {
            writeback: true,
            ..Page::default()
        };
        self.books().pages.insert(frame, page);
        let marks = FrameFlags::WRITEBACK.union(FrameFlags::RECLAIM);
        self.mark(frame, marks, FrameFlags::EMPTY);
        self.generations.add(frame, Age::New);
        self.go(frame, FrameState::Allocated, FrameState::Listed);
    }

    /// Takes a page off the books, if nobody has it in hand.
    pub fn remove(&self, frame: Pfn) -> bool {
        let mut books = self.books();
        let page = books.pages[&frame];
        if page.references > 0 || page.writeback || page.isolated {
            return false;
        }
        self.go(frame, FrameState::Listed, FrameState::Allocated);
        books.pages.remove(&frame);
        if page.dirty {
            self.generations.dirtied(frame, false);
        }
        self.generations.remove(frame);
        let freed = self.frames.free(self.machine.cpu(), frame, Order::BASE);
        assert_eq!(freed, Ok(()));
        true
    }

    /// As compaction isolates a frame.
    pub fn isolate(&self, frame: Pfn) -> bool {
        let mut books = self.books();
        let page = books.pages.get_mut(&frame).unwrap();
        let taken = self.frames.try_isolate(frame, OWNER).is_ok();
        page.isolated |= taken;
        taken
    }

    pub fn put_isolated_back(&self, frame: Pfn) {
        let mut books = self.books();
        let page = books.pages.get_mut(&frame).unwrap();
        if page.isolated {
            page.isolated = false;
            self.go(frame, FrameState::Isolated, FrameState::Listed);
        }
    }

    /// Moves a frame, as compaction does; gives the new one.
    pub fn migrate(&self, from: Pfn) -> Option<Pfn> {
        let page = self.books().pages[&from];
        if page.references > 0 || page.writeback || page.isolated {
            return None;
        }
        let cpu = self.machine.cpu();
        let to = self.frames.alloc(cpu, AllocRequest::movable()).ok()?;
        if self.frames.try_isolate(from, OWNER).is_err() {
            self.frames.free(cpu, to, Order::BASE).unwrap();
            return None;
        }
        self.frames.set_owner(to, OWNER, 0);
        self.generations.moved(from, to);
        let mut books = self.books();
        let page = books.pages.remove(&from).unwrap();
        books.pages.insert(to, page);
        self.go(to, FrameState::Allocated, FrameState::Listed);
        self.go(from, FrameState::Isolated, FrameState::Allocated);
        self.frames.free(cpu, from, Order::BASE).unwrap();
        Some(to)
    }

    pub fn listed(&self) -> Vec<Pfn> {
        self.books().pages.keys().copied().collect()
    }

    pub fn count(&self) -> usize {
        self.books().pages.len()
    }

    /// The books, the frames' words, the counts, the tallies and the index agree.
    pub fn check(&self) {
        self.frames.verify().unwrap();
        let audit = self.generations.verify().unwrap();
        let books = self.books();
        let others = self.others.load(Relaxed);
        let all = books.pages.len() as u64 + others;
        assert_eq!(audit.sizes.iter().sum::<u64>(), all);
        assert_eq!(audit.sizes, self.generations.sizes());
        let dirty = books.pages.values().filter(|page| page.dirty).count();
        assert_eq!(audit.dirty, dirty as u64);
        let tallied: u32 = self
            .frames
            .blocks()
            .map(|block| {
                dirigible_reclaim::Tally::from_bits(self.frames.block_tally(block)).dirty()
            })
            .sum();
        assert_eq!(u64::from(tallied), audit.dirty);
    }
}

impl Evictable for Cache {
    fn drop_clean(&self, frame: Pfn, stamp: Stamp) -> Result<(), Kept> {
        assert_eq!(self.frames.state(frame), FrameState::Isolated);
        let mut books = self.books();
        let page = books.pages[&frame];
        assert!(!page.isolated, "isolated twice");
        if page.references > 0 || self.stubborn.load(Relaxed) {
            return Err(Kept::InUse);
        } else if page.writeback {
            return Err(Kept::Writeback);
        } else if page.dirty {
            return Err(Kept::Dirty);
        }
        books.pages.remove(&frame);
        books.dropped.push((frame, stamp));
        self.go(frame, FrameState::Isolated, FrameState::Allocated);
        Ok(())
    }

    fn begin_write(&self, frame: Pfn) -> usize {
        assert!(!self.no_writes.load(Relaxed), "a request writes");
        assert_eq!(self.frames.state(frame), FrameState::Isolated);
        if self.room.load(Relaxed) == 0 {
            return 0;
        }
        self.room.fetch_sub(1, Relaxed);
        if !self.flush(frame) {
            return 0;
        }
        self.books().written += 1;
        if self.quick.load(Relaxed) {
            self.end_writes(1);
        }
        1
    }

    fn put_back(&self, frame: Pfn) {
        self.go(frame, FrameState::Isolated, FrameState::Listed);
    }

    fn wake_flusher(&self) {
        self.woken.fetch_add(1, Relaxed);
    }

    fn poll(&self) {
        self.end_writes(self.finds.load(Relaxed) as usize);
    }

    fn dirty_and_writeback(&self) -> (u64, u64) {
        let books = self.books();
        let count = |test: fn(&Page) -> bool| books.pages.values().filter(|p| test(p)).count();
        (count(|p| p.dirty) as u64, count(|p| p.writeback) as u64)
    }

    fn harvest(&self) {
        self.harvests.fetch_add(1, Relaxed);
    }
}

/// Objects of which 16 fill a frame; none is freed before the second look.
pub struct Objects {
    pub old: AtomicU64,
    pub young: AtomicU64,
    pub calls: Mutex<Vec<(u64, Who)>>,
}

impl Objects {
    pub fn new(count: u64) -> &'static Self {
        leak(Self {
            old: AtomicU64::new(0),
            young: AtomicU64::new(count),
            calls: Mutex::default(),
        })
    }
}

impl Shrinker for Objects {
    fn count(&self) -> u64 {
        self.old.load(Relaxed) + self.young.load(Relaxed)
    }

    fn shrink(&self, objects: u64, who: Who) -> Shrunk {
        self.calls.lock().unwrap().push((objects, who));
        let freed = objects.min(self.old.load(Relaxed));
        self.old.fetch_sub(freed, Relaxed);
        let aged = (objects - freed).min(self.young.load(Relaxed));
        self.young.fetch_sub(aged, Relaxed);
        self.old.fetch_add(aged, Relaxed);
        Shrunk {
            scanned: freed + aged,
            freed,
            frames: freed / 16,
        }
    }
}

pub struct World {
    pub machine: &'static Machine,
    pub frames: &'static FrameAllocator<'static>,
    pub generations: &'static Generations<'static>,
    pub reclaimer: &'static Reclaimer<'static, Machine>,
    pub cache: &'static Cache,
}

impl World {
    pub fn event(&self, event: Event) -> u64 {
        self.frames.events().get(event)
    }

    /// Allocates frames that nobody can reclaim until `left` are free.
    pub fn fill(&self, left: u64) -> Vec<Pfn> {
        let mut taken = Vec::new();
        let request = AllocRequest::movable().with_watermark(Watermark::None);
        while self.frames.free_frames() > left {
            let cpu = self.machine.cpu();
            taken.push(self.frames.alloc(cpu, request).unwrap());
            self.frames.drain_cpu_caches();
        }
        taken
    }

    pub fn free(&self, frames: Vec<Pfn>) {
        for frame in frames {
            let freed = self.frames.free(self.machine.cpu(), frame, Order::BASE);
            assert_eq!(freed, Ok(()));
        }
        self.frames.drain_cpu_caches();
    }
}

/// A machine of `blocks` blocks.
pub fn world(blocks: u64, watermarks: Watermarks) -> World {
    world_with(blocks, watermarks, ReclaimConfig::default())
}

pub fn world_with(blocks: u64, watermarks: Watermarks, config: ReclaimConfig) -> World {
    let first = Pfn::new(1024);
    let ranges = [first..first.plus(blocks * 512)];
    world_of(
        &[ZoneConfig {
            name: "Normal",
            ranges: &ranges,
            watermarks,
            reserve_blocks: 0,
        }],
        config,
    )
}

/// Two zones of `blocks` blocks each, with the same watermarks.
pub fn world_of_two(blocks: u64, watermarks: Watermarks) -> World {
    let frames = blocks * 512;
    let low = [Pfn::new(1024)..Pfn::new(1024 + frames)];
    let high = [Pfn::new(1024 + frames)..Pfn::new(1024 + 2 * frames)];
    let zones = [("DMA32", &low), ("Normal", &high)].map(|(name, ranges)| ZoneConfig {
        name,
        ranges,
        watermarks,
        reserve_blocks: 0,
    });
    world_of(&zones, ReclaimConfig::default())
}

fn world_of(zones: &[ZoneConfig<'_>], config: ReclaimConfig) -> World {
    let frame_config = Config {
        zones,
        cpus: CPUS,
        ..Config::default()
    };
    let bytes = FrameAllocator::metadata_bytes(&frame_config).unwrap();
    let metadata = Box::leak(vec![0; bytes].into_boxed_slice());
    let frames = leak(FrameAllocator::new(&frame_config, metadata).unwrap());
    let machine: &Machine = leak(Machine::default());
    let generations = leak(Generations::new(frames));
    let reclaimer = leak(Reclaimer::new(generations, machine, config));
    let cache = leak(Cache {
        frames,
        generations,
        machine,
        books: Mutex::default(),
        room: AtomicU64::new(u64::MAX),
        woken: AtomicU64::new(0),
        finds: AtomicU64::new(0),
        quick: AtomicBool::new(false),
        harvests: AtomicU64::new(0),
        no_writes: AtomicBool::new(false),
        stubborn: AtomicBool::new(false),
        others: AtomicU64::new(0),
    });
    let _ = machine.cache.set(cache);
    reclaimer.register(OWNER, cache).unwrap();
    World {
        machine,
        frames,
        generations,
        reclaimer,
        cache,
    }
}

pub const NO_MARKS: Watermarks = Watermarks {
    min: 0,
    low: 0,
    high: 0,
};
