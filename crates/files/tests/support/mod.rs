//! A machine for tests whose page cache is a map over a disk in memory, which can fail.
#![allow(dead_code)]

#[path = "../../../slab/tests/support/mod.rs"]
pub mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dirigible_files::{FileStore, Geometry, MountError, Parts, StoreConfig};
use dirigible_frames::{AllocRequest, FrameAllocator, FrameContents, Order, PageSource, Pfn};
use dirigible_pagecache::{BlockPages, CacheError};
pub use machine::WORDS;
use machine::{Memory, Source, leak};

#[derive(Clone, Copy)]
struct Page {
    frame: Pfn,
    dirty: bool,
}

/// The page cache, and the disk behind it.
pub struct Pages {
    memory: &'static Memory,
    source: &'static Source,
    cache: Mutex<BTreeMap<u64, Page>>,
    pub disk: Mutex<Vec<[u64; WORDS]>>,
    /// Blocks that cannot be read.
    pub bad: Mutex<BTreeSet<u64>>,
    /// Page operations that succeed before each one fails.
    pub left: AtomicUsize,
    pub reads: AtomicU64,
    pub operations: AtomicU64,
    /// Blocks that are neither tables nor files of this store are not written.
    pub guard: Mutex<Option<Geometry>>,
    /// Whether each operation lets others run.
    pub yields: AtomicBool,
}

impl Pages {
    fn begin(&self, block: u64) -> Result<(), CacheError> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        if self.yields.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        if block >= self.blocks() {
            return Err(CacheError::Beyond { block });
        }
        let take = |left: usize| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| CacheError::Io { block })?;
        Ok(())
    }

    /// Calls `with` with the page of `block`, which nobody drops meanwhile.
    fn with(
        &self,
        block: u64,
        whole: bool,
        dirty: bool,
        with: &mut dyn FnMut(Pfn),
    ) -> Result<(), CacheError> {
        let mut spare = None;
        loop {
            let mut cache = self.cache.lock().unwrap();
            if let Some(page) = cache.get_mut(&block) {
                page.dirty |= dirty;
                with(page.frame);
                break;
            }
            if !whole && self.bad.lock().unwrap().contains(&block) {
                return Err(CacheError::Io { block });
            }
            let Some(frame) = spare.take() else {
                drop(cache);
                let frame = self.source.alloc(AllocRequest::movable());
                spare = Some(frame.map_err(|_| CacheError::OutOfMemory)?);
                continue;
            };
            self.reads.fetch_add(u64::from(!whole), Ordering::Relaxed);
            let words = self.disk.lock().unwrap()[block as usize];
            for (index, word) in words.into_iter().enumerate() {
                let word = if whole { 0xdead } else { word };
                self.memory.write_word(frame, index, word);
            }
            let dirty = false;
            cache.insert(block, Page { frame, dirty });
        }
        if let Some(frame) = spare {
            self.source.free(frame, Order::BASE);
        }
        Ok(())
    }

    fn write_back(&self, block: u64, page: &mut Page) {
        let words = std::array::from_fn(|index| self.memory.read_word(page.frame, index));
        self.disk.lock().unwrap()[block as usize] = words;
        page.dirty = false;
    }

    /// Drops each `nth` page, written first.
    pub fn evict(&self, nth: usize) {
        let mut cache = self.cache.lock().unwrap();
        let blocks: Vec<_> = cache.keys().copied().step_by(nth.max(1)).collect();
        for block in blocks {
            let mut page = cache.remove(&block).unwrap();
            if page.dirty {
                self.write_back(block, &mut page);
            }
            self.source.free(page.frame, Order::BASE);
        }
    }

    /// Changes a word of a block on the disk and drops the block from the cache.
    pub fn damage(&self, block: u64, change: impl FnOnce(&mut [u64; WORDS])) {
        self.evict(1);
        change(&mut self.disk.lock().unwrap()[block as usize]);
    }

    pub fn cached(&self) -> usize {
        self.cache.lock().unwrap().len()
    }

    /// No operation fails any more.
    pub fn heal(&self) {
        self.left.store(usize::MAX, Ordering::Relaxed);
        self.source.left.store(usize::MAX, Ordering::Relaxed);
        self.bad.lock().unwrap().clear();
    }
}

impl BlockPages for Pages {
    fn blocks(&self) -> u64 {
        self.disk.lock().unwrap().len() as u64
    }

    fn read(
        &self,
        block: u64,
        ahead: Range<u64>,
        with: &mut dyn FnMut(Pfn),
    ) -> Result<(), CacheError> {
        self.begin(block)?;
        assert!(ahead.is_empty() || ahead.start == block + 1 && ahead.end <= self.blocks());
        self.with(block, false, false, with)
    }

    fn write(
        &self,
        block: u64,
        whole: bool,
        change: &mut dyn FnMut(Pfn),
    ) -> Result<(), CacheError> {
        self.begin(block)?;
        if let Some(geometry) = &*self.guard.lock().unwrap() {
            let data = geometry.data();
            let tables = !whole && block >= 1 && block < data.end;
            assert!(tables || data.contains(&block), "block {block} is written");
        }
        self.with(block, whole, true, change)
    }

    fn forget(&self, blocks: Range<u64>) -> u64 {
        let mut cache = self.cache.lock().unwrap();
        let blocks: Vec<_> = cache.range(blocks).map(|(block, _)| *block).collect();
        for block in &blocks {
            let page = cache.remove(block).unwrap();
            self.source.free(page.frame, Order::BASE);
            // Its contents are no longer wanted: whoever reads them finds that out.
            self.disk.lock().unwrap()[*block as usize] = [0xf0f0; WORDS];
        }
        blocks.len() as u64
    }

    fn drop_clean(&self, blocks: Range<u64>) -> u64 {
        // Called from inside of an allocation too: does not wait.
        let Ok(mut cache) = self.cache.try_lock() else {
            return 0;
        };
        let clean: Vec<_> = cache
            .range(blocks)
            .filter(|(_, page)| !page.dirty)
            .map(|(block, _)| *block)
            .collect();
        for block in &clean {
            let page = cache.remove(block).unwrap();
            self.source.free(page.frame, Order::BASE);
        }
        clean.len() as u64
    }

    fn sync(&self, blocks: Range<u64>) -> Result<(), CacheError> {
        assert!(blocks.end <= self.blocks());
        let mut cache = self.cache.lock().unwrap();
        for (&block, page) in cache.range_mut(blocks) {
            if page.dirty {
                self.begin(block)?;
                self.write_back(block, page);
            }
        }
        Ok(())
    }
}

pub type Store = FileStore<'static, Memory>;

/// Leaked, as its parts refer to each other.
pub struct World {
    pub frames: &'static FrameAllocator<'static>,
    pub memory: &'static Memory,
    pub source: &'static Source,
    pub pages: &'static Pages,
}

/// A machine of `memory` blocks of 2 MiB with a disk of `disk` blocks of 4 KiB.
pub fn world(memory: u64, disk: usize) -> World {
    let machine::World {
        frames,
        memory,
        source,
    } = machine::machine(memory, usize::MAX);
    let pages = leak(Pages {
        memory,
        source,
        cache: Mutex::default(),
        disk: Mutex::new(vec![[0xabad_1dea; WORDS]; disk]),
        bad: Mutex::default(),
        left: AtomicUsize::new(usize::MAX),
        reads: AtomicU64::new(0),
        operations: AtomicU64::new(0),
        guard: Mutex::default(),
        yields: AtomicBool::new(false),
    });
    World {
        frames,
        memory,
        source,
        pages,
    }
}

pub const CONFIG: StoreConfig = StoreConfig {
    inode_chains: 64,
    name_chains: 64,
};

impl World {
    pub fn parts(&self) -> Parts<'static, Memory> {
        Parts {
            frames: self.frames,
            platform: self.memory,
            source: self.source,
            pages: self.pages,
        }
    }

    pub fn format(&self, inodes: u32) -> Geometry {
        FileStore::format(&self.parts(), inodes).unwrap()
    }

    pub fn mount(&self) -> Result<Store, MountError> {
        FileStore::mount(self.parts(), CONFIG)
    }

    /// A new store.
    pub fn store(&self, inodes: u32) -> Store {
        self.format(inodes);
        self.mount().unwrap()
    }

    /// What page `page` of a file holds that was written with `mark`.
    fn word(mark: u64, page: u64, index: usize) -> u64 {
        mark << 32 | page << 16 | index as u64
    }

    pub fn fill(&self, mark: u64) -> impl FnMut(u64, Pfn) + '_ {
        move |page, frame| {
            for index in [0, 1, 255, 511] {
                let word = Self::word(mark, page, index);
                self.memory.write_word(frame, index, word);
            }
        }
    }

    /// The mark that the page in `frame` was written with.
    pub fn mark(&self, page: u64, frame: Pfn) -> u64 {
        let mark = self.memory.read_word(frame, 0) >> 32;
        for index in [0, 1, 255, 511] {
            let found = self.memory.read_word(frame, index);
            assert_eq!(
                found,
                Self::word(mark, page, index),
                "page {page} word {index}"
            );
        }
        mark
    }

    /// The frames that nobody but the cache has: after the store has ended there are no others.
    pub fn check_frames(&self) {
        self.frames.verify().unwrap();
        self.frames.drain_cpu_caches();
        let counts = self.frames.class_frames();
        assert_eq!(counts.unmovable, 0, "a frame of inodes or names was lost");
        assert_eq!(counts.movable, self.pages.cached() as u64);
    }
}
