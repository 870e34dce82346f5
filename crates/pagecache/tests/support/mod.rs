//! A page cache on the machine of `machine.rs` and the disk of `disk.rs`. All is leaked, as the parts refer to each
//! other.
#![allow(dead_code, unused_imports)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use dirigible_frames::{
    AllocRequest, Config, Event, Fallback, FrameAllocator, FrameContents, FrameFlags, FrameState,
    Order, OutOfMemory, OwnerId, PageSource, Pfn, Placement, Platform, Watermarks, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility, MovableOwner, MovePair, Outcome};
use dirigible_pagecache::{
    BlockPages, CacheAudit, CacheConfig, CacheError, CacheParts, MoveObserver, PageCache,
};
use dirigible_reclaim::{Evictable, Generations, Kept, Stamp, Tally};

pub mod disk;
pub mod machine;

pub use disk::{MockDisk, Words, factory, set_words, words_of};
pub use machine::{BASE, CPUS, Machine, run_on};

pub const OWNER: OwnerId = OwnerId::new(3).unwrap();

pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// The allocator's free frames, and nothing if the test says so.
pub struct Source {
    frames: &'static FrameAllocator<'static>,
    machine: &'static Machine,
    pub empty: AtomicBool,
}

impl PageSource for Source {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        if self.empty.load(Ordering::Relaxed) {
            return Err(OutOfMemory);
        }
        self.frames
            .alloc(self.machine.cpu(), request)
            .map_err(|_| OutOfMemory)
    }

    fn free(&self, frame: Pfn, order: Order) {
        self.frames.free(self.machine.cpu(), frame, order).unwrap();
    }
}

/// Records each migration.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<(u64, Pfn)>>);

impl MoveObserver for Notes {
    fn moved(&self, block: u64, _: Pfn, frame: Pfn) {
        self.0.lock().unwrap().push((block, frame));
    }
}

pub type Cache = PageCache<'static, Machine>;

#[derive(Clone, Copy)]
pub struct World {
    pub machine: &'static Machine,
    pub disk: &'static MockDisk,
    pub frames: &'static FrameAllocator<'static>,
    pub mobility: &'static Mobility<'static, Machine>,
    pub source: &'static Source,
    pub cache: &'static Cache,
    pub notes: &'static Notes,
    pub generations: &'static Generations<'static>,
}

/// How a world is made.
pub struct Build {
    /// Blocks of memory.
    pub memory: u64,
    /// Blocks of the disk.
    pub disk: u64,
    /// Blocks of these, the last ones, that are swap.
    pub swap: u64,
    pub depth: usize,
    pub min: u64,
    pub config: CacheConfig,
    pub compaction: CompactionConfig,
}

impl Default for Build {
    fn default() -> Self {
        Self {
            memory: 2,
            disk: 4096,
            swap: 0,
            depth: 8,
            min: 0,
            config: CacheConfig::default(),
            compaction: CompactionConfig::default(),
        }
    }
}

pub fn world() -> World {
    build(Build::default())
}

pub fn build(how: Build) -> World {
    let range = Pfn::new(BASE)..Pfn::new(BASE + how.memory * 512);
    let layout = Config {
        zones: &[ZoneConfig {
            name: "test",
            ranges: &[range],
            watermarks: Watermarks {
                min: how.min,
                low: how.min + how.min / 4,
                high: how.min + how.min / 2,
            },
            reserve_blocks: 0,
        }],
        reserved: &[],
        cpus: CPUS,
        placement: Placement::LowestFirst,
        fallback: Fallback::Steal,
        ..Config::default()
    };
    let metadata = vec![0u8; FrameAllocator::metadata_bytes(&layout).unwrap()].leak();
    let frames = leak(FrameAllocator::new(&layout, metadata).unwrap());
    let machine = leak(Machine::new(how.memory as usize * 512));
    let disk = leak(MockDisk::new(machine, how.disk, how.depth));
    let mobility = leak(Mobility::new(frames, machine, how.compaction));
    let notes = leak(Notes::default());
    let source = leak(Source {
        frames,
        machine,
        empty: AtomicBool::new(false),
    });
    let generations = leak(Generations::new(frames));
    let parts = CacheParts {
        frames,
        platform: machine,
        owner: OWNER,
        disk,
        memory: source,
        generations,
        swap: how.disk - how.swap..how.disk,
    };
    let cache = leak(PageCache::new(parts, how.config).observed_by(notes));
    mobility.register(OWNER, cache).unwrap();
    World {
        machine,
        disk,
        frames,
        mobility,
        source,
        cache,
        notes,
        generations,
    }
}

impl World {
    pub fn read(&self, block: u64) -> Result<Words, CacheError> {
        self.read_ahead(block, 0)
    }

    /// Reads a block, and lets up to `ahead` more be read.
    pub fn read_ahead(&self, block: u64, ahead: u64) -> Result<Words, CacheError> {
        let mut words = None;
        self.cache
            .read(block, block + 1..block + 1 + ahead, &mut |frame| {
                assert!(words.replace(words_of(self.machine, frame)).is_none());
            })?;
        Ok(words.expect("called"))
    }

    pub fn write(&self, block: u64, words: Words) -> Result<(), CacheError> {
        self.put(block, words, true)
    }

    pub fn put(&self, block: u64, words: Words, whole: bool) -> Result<(), CacheError> {
        self.cache.write(block, whole, &mut |frame| {
            set_words(self.machine, frame, words)
        })
    }

    /// The frame of a block.
    pub fn frame(&self, block: u64) -> Option<Pfn> {
        let mut frames = (BASE..BASE + self.frames.managed_frames()).map(Pfn::new);
        frames.find(|&frame| {
            self.frames.frame(frame).is_some_and(|info| {
                info.owner == OWNER
                    && info.word == block
                    && matches!(info.state, FrameState::Listed | FrameState::Isolated)
                    && !info.flags.contains(FrameFlags::LOCKED)
            })
        })
    }

    pub fn has(&self, block: u64, flags: FrameFlags) -> bool {
        self.frame(block)
            .is_some_and(|frame| self.frames.flags(frame).contains(flags))
    }

    pub fn event(&self, event: Event) -> u64 {
        self.frames.events().get(event)
    }

    pub fn free(&self, frame: Pfn) {
        self.source.free(frame, Order::BASE);
    }

    pub fn isolate(&self, frame: Pfn) -> bool {
        self.frames.try_isolate(frame, OWNER).is_ok()
    }

    /// What reclaim does with a clean page.
    pub fn evict(&self, frame: Pfn, stamp: u32) -> Result<(), Kept> {
        assert!(self.isolate(frame));
        let dropped = self
            .cache_as_evictable()
            .drop_clean(frame, Stamp::from_bits(stamp));
        match dropped {
            Ok(()) => self.free(frame),
            Err(_) => self.cache_as_evictable().put_back(frame),
        }
        dropped
    }

    /// What reclaim does with a dirty page.
    pub fn write_out(&self, frame: Pfn) -> usize {
        assert!(self.isolate(frame));
        let begun = self.cache.begin_write(frame);
        self.cache.put_back(frame);
        begun
    }

    pub fn cache_as_evictable(&self) -> &'static dyn Evictable {
        self.cache
    }

    /// Moves a frame through mobility; `None` if it could not be isolated.
    pub fn move_frame(&self, from: Pfn) -> Option<Outcome> {
        let to = self
            .frames
            .alloc(self.machine.cpu(), AllocRequest::movable());
        let to = to.ok()?;
        if !self.mobility.isolate(from) {
            self.free(to);
            return None;
        }
        let mut pairs = [MovePair::base(from, to)];
        self.mobility.migrate_frames(&mut pairs);
        Some(pairs[0].outcome)
    }

    /// Lets the disk end all requests.
    pub fn settle(&self) {
        while self.disk.in_flight() > 0 {
            self.disk.answer(1);
            self.cache.poll();
        }
        self.cache.poll();
    }

    /// Checks that all books agree, and that nobody uses a page.
    pub fn check(&self) -> CacheAudit {
        let audit = self.cache.audit().unwrap();
        assert_eq!((audit.held, audit.locked), (0, 0), "{audit:?}");
        self.frames.verify().unwrap();
        self.mobility.verify().unwrap();
        let ages = self.generations.verify().unwrap();
        let listed = audit.counts.pages - audit.reading;
        assert_eq!(
            ages.sizes.iter().sum::<u64>(),
            listed,
            "pages without an age"
        );
        let unwritten = self
            .frames
            .blocks()
            .map(|block| Tally::from_bits(self.frames.block_tally(block)).dirty() as u64);
        let counts = audit.counts;
        assert_eq!(unwritten.sum::<u64>(), counts.dirty + counts.writeback);
        audit
    }

    /// Forgets everything and checks that no frame is lost but `abandoned`.
    pub fn end(&self, abandoned: u64) {
        self.settle();
        let blocks = self.cache.blocks();
        self.cache.forget(0..blocks);
        self.cache.forget_swap(self.cache.swap_blocks());
        let audit = self.check();
        assert_eq!(
            (audit.counts.pages, audit.counts.dirty, audit.detached),
            (0, 0, 0)
        );
        assert_eq!(audit.counts.abandoned, abandoned);
        self.frames.drain_cpu_caches();
        let counts = self.frames.class_frames();
        assert_eq!(
            counts.movable + counts.unmovable,
            abandoned,
            "frames are lost"
        );
    }
}
