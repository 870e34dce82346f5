//! A machine for tests: memory is a vector of atomic words, CPUs are threads.
#![allow(dead_code)]

use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicUsize, Ordering};

use dirigible_frames::{
    AllocRequest, Config, CpuId, FrameAllocator, FrameContents, Order, OutOfMemory, PageSource,
    Pfn, Platform, Watermarks, ZoneConfig,
};

/// First frame of memory.
pub const BASE: u64 = 1024;
const WORDS: usize = 512;
const CPUS: u16 = 2;

thread_local! {
    static CPU: Cell<u16> = const { Cell::new(0) };
}

/// Makes the calling thread CPU `number`.
pub fn run_on(number: u16) {
    assert!(number < CPUS);
    CPU.set(number);
}

pub struct Memory(Vec<AtomicU64>);

impl Memory {
    fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        &self.0[(frame.get() - BASE) as usize * WORDS + index]
    }
}

impl Platform for Memory {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.get())
    }
    fn now(&self) -> u64 {
        0
    }
    fn relax(&self) {
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
        unreachable!("slabs are not copied")
    }
    fn zero_frames(&self, _first: Pfn, _count: usize) {
        unreachable!("slabs are not cleared")
    }
}

/// Frames that are free, as long as the ration lasts.
pub struct Source {
    frames: &'static FrameAllocator<'static>,
    memory: &'static Memory,
    /// Frames that it still gives.
    pub left: AtomicUsize,
}

impl PageSource for Source {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        let take = |left: usize| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| OutOfMemory)?;
        self.frames
            .alloc(self.memory.cpu(), request)
            .map_err(|_| OutOfMemory)
    }
    fn free(&self, frame: Pfn, order: Order) {
        self.left.fetch_add(1, Ordering::Relaxed);
        self.frames.free(self.memory.cpu(), frame, order).unwrap();
    }
}

/// Leaked, as its parts refer to each other.
pub struct World {
    pub frames: &'static FrameAllocator<'static>,
    pub memory: &'static Memory,
    pub source: &'static Source,
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A machine of 4 MiB whose source gives `ration` frames.
pub fn world(ration: usize) -> World {
    let range = Pfn::new(BASE)..Pfn::new(BASE + 1024);
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
    let words = (0..1024 * WORDS).map(|_| AtomicU64::new(0xdead));
    let memory = leak(Memory(words.collect()));
    let source = leak(Source {
        frames,
        memory,
        left: AtomicUsize::new(ration),
    });
    World {
        frames,
        memory,
        source,
    }
}
