//! A machine for tests, of the file store too: memory is a vector of atomic words, CPUs are threads, and time passes when
//! somebody waits.
#![allow(dead_code)]

use std::cell::Cell;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dirigible_frames::{
    AllocRequest, Config, CpuId, FrameAllocator, FrameContents, Order, OutOfMemory, PageSource,
    Pfn, Platform, Watermarks, ZoneConfig,
};

/// First frame of memory.
pub const BASE: u64 = 1024;
pub const WORDS: usize = 512;
pub const CPUS: u16 = 4;

thread_local! {
    static CPU: Cell<u16> = const { Cell::new(0) };
}

/// Makes the calling thread CPU `number`.
pub fn run_on(number: u16) {
    assert!(number < CPUS);
    CPU.set(number);
}

pub struct Memory {
    words: Vec<AtomicU64>,
    clock: AtomicU64,
    /// Frames that the source still gives.
    left: &'static AtomicUsize,
    /// Frames that it may give more after each sleep.
    pub relief: AtomicUsize,
}

impl Memory {
    fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        &self.words[(frame.get() - BASE) as usize * WORDS + index]
    }
}

impl Platform for Memory {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.get())
    }
    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }
    fn relax(&self) {
        let before = self.clock.fetch_add(1000, Ordering::Relaxed);
        assert!(before < 1 << 50, "somebody waits for ever");
        std::thread::yield_now();
    }
    fn sleep_until(&self, time: u64) {
        self.clock.fetch_max(time, Ordering::Relaxed);
        give(self.left, self.relief.load(Ordering::Relaxed));
        std::thread::yield_now();
    }
}

impl FrameContents for Memory {
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        self.word(frame, index).load(Ordering::Relaxed)
    }
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        self.word(frame, index).store(value, Ordering::Relaxed);
    }
    fn copy_frames(&self, _from: Pfn, _to: Pfn, _count: usize) {
        unreachable!("nothing is copied")
    }
    fn zero_frames(&self, _first: Pfn, _count: usize) {
        unreachable!("nothing is cleared")
    }
}

/// Adds to a ration, which may be without end.
fn give(left: &AtomicUsize, frames: usize) {
    let more = |left: usize| Some(left.saturating_add(frames));
    let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
}

type Pressure = RwLock<Option<Box<dyn Fn() + Send + Sync>>>;

/// Frames that are free, as long as the ration lasts.
pub struct Source {
    frames: &'static FrameAllocator<'static>,
    memory: &'static Memory,
    /// Frames that it still gives.
    pub left: &'static AtomicUsize,
    /// Called at each allocation, as reclaim would be: it may come back to who allocates.
    pub pressure: Pressure,
}

impl PageSource for Source {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        if let Some(pressure) = &*self.pressure.read().unwrap() {
            pressure();
        }
        let take = |left: usize| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| OutOfMemory)?;
        self.frames
            .alloc(self.memory.cpu(), request)
            .map_err(|_| OutOfMemory)
    }
    fn free(&self, frame: Pfn, order: Order) {
        self.frames.free(self.memory.cpu(), frame, order).unwrap();
        give(self.left, 1);
    }
}

/// Leaked, as its parts refer to each other.
pub struct World {
    pub frames: &'static FrameAllocator<'static>,
    pub memory: &'static Memory,
    pub source: &'static Source,
}

pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A machine of `blocks` blocks of 2 MiB whose source gives `ration` frames.
pub fn machine(blocks: u64, ration: usize) -> World {
    let range = Pfn::new(BASE)..Pfn::new(BASE + blocks * 512);
    let layout = Config {
        zones: &[ZoneConfig {
            name: "test",
            ranges: &[range],
            watermarks: Watermarks::default(),
            reserve_blocks: 0,
        }],
        cpus: CPUS,
        ..Config::default()
    };
    let metadata = vec![0u8; FrameAllocator::metadata_bytes(&layout).unwrap()].leak();
    let frames = leak(FrameAllocator::new(&layout, metadata).unwrap());
    let words = (0..blocks as usize * 512 * WORDS).map(|_| AtomicU64::new(0xdead));
    let left: &AtomicUsize = leak(AtomicUsize::new(ration));
    let memory = leak(Memory {
        words: words.collect(),
        clock: AtomicU64::new(0),
        left,
        relief: AtomicUsize::new(0),
    });
    let source = leak(Source {
        frames,
        memory,
        left,
        pressure: RwLock::new(None),
    });
    World {
        frames,
        memory,
        source,
    }
}

/// A machine of 4 MiB whose source gives `ration` frames.
pub fn world(ration: usize) -> World {
    machine(2, ration)
}
