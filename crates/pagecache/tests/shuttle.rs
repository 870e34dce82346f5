//! Interleavings of those who use, write, move and drop a page, tried at random:
//! `RUSTFLAGS="--cfg shuttle" cargo test -p dirigible-pagecache --features shuttle --test shuttle`.
#![cfg(shuttle)]

use std::cell::Cell;
use std::collections::VecDeque;

use dirigible_disk::{BlockDevice, Completion, DiskError, DiskRequest, SubmitError};
use dirigible_frames::sync::{AtomicU64, Ordering};
use dirigible_frames::{
    AllocRequest, Config, CpuId, Fallback, FrameAllocator, FrameContents, FrameFlags, FrameState,
    Order, OutOfMemory, OwnerId, PageSource, Pfn, Placement, Platform, Watermarks, ZoneConfig,
};
use dirigible_mobility::{Fate, MovableOwner, MovePair, Outcome};
use dirigible_pagecache::{BlockPages, CacheConfig, CacheParts, Flusher, PageCache};
use dirigible_reclaim::{Evictable, Generations, Stamp};
use shuttle::rand::Rng;
use shuttle::scheduler::RandomScheduler;
use shuttle::sync::Mutex;
use shuttle::thread;

const RUNS: usize = 400;
const OWNER: OwnerId = OwnerId::new(1).unwrap();
/// Whose the frames are that come into swap.
const PROGRAMS: OwnerId = OwnerId::new(2).unwrap();
const FRAMES: usize = 512;
const BLOCKS: u64 = 8;
/// Blocks of swap, behind these.
const SWAP: u64 = 4;
/// The block that all want.
const BLOCK: u64 = 3;

shuttle::thread_local! {
    static CPU: Cell<u16> = Cell::new(0);
}

/// A frame has two words that matter, and time passes at a look.
struct Machine {
    clock: AtomicU64,
    words: Vec<[AtomicU64; 2]>,
}

impl Machine {
    fn words_of(&self, frame: Pfn) -> [u64; 2] {
        [self.read_word(frame, 0), self.read_word(frame, 511)]
    }

    fn set(&self, frame: Pfn, words: [u64; 2]) {
        self.write_word(frame, 0, words[0]);
        self.write_word(frame, 511, words[1]);
    }
}

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.with(Cell::get))
    }
    fn now(&self) -> u64 {
        self.clock.fetch_add(1_000, Ordering::Relaxed)
    }
    fn relax(&self) {
        thread::yield_now();
    }
}

impl FrameContents for Machine {
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        self.words[frame.get() as usize][index / 511].load(Ordering::Relaxed)
    }
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        self.words[frame.get() as usize][index / 511].store(value, Ordering::Relaxed);
    }
    fn copy_frames(&self, from: Pfn, to: Pfn, _: usize) {
        self.set(to, self.words_of(from));
    }
    fn zero_frames(&self, first: Pfn, _: usize) {
        self.set(first, [0, 0]);
    }
}

struct Job {
    token: u32,
    write: bool,
    block: u64,
    frames: Vec<Pfn>,
    sent: Vec<[u64; 2]>,
}

/// Ends the oldest request when it is asked what has ended.
struct Disk {
    machine: &'static Machine,
    jobs: Mutex<VecDeque<Job>>,
    contents: Mutex<Vec<[u64; 2]>>,
    /// So many requests more fail.
    failures: Mutex<u32>,
    reads: Mutex<u32>,
    /// So many requests more are refused.
    refusals: Mutex<u32>,
}

impl BlockDevice for Disk {
    fn blocks(&self) -> u64 {
        BLOCKS + SWAP
    }
    fn depth(&self) -> usize {
        2
    }
    fn submit(&self, request: DiskRequest<'_>) -> Result<(), SubmitError> {
        let mut refusals = self.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return Err(SubmitError::Busy);
        }
        drop(refusals);
        let frames = request.frames.iter();
        let job = Job {
            token: request.token,
            write: request.write,
            block: request.block,
            frames: request.frames.to_vec(),
            sent: frames.map(|&frame| self.machine.words_of(frame)).collect(),
        };
        *self.reads.lock().unwrap() += u32::from(!job.write);
        self.jobs.lock().unwrap().push_back(job);
        Ok(())
    }
    fn completed(&self, out: &mut [Completion]) -> usize {
        let job = self.jobs.lock().unwrap().pop_front();
        let Some(job) = job else { return 0 };
        let mut failures = self.failures.lock().unwrap();
        let fails = *failures > 0;
        *failures -= u32::from(fails);
        drop(failures);
        for (at, &frame) in job.frames.iter().enumerate() {
            let block = job.block as usize + at;
            if job.write {
                let words = self.machine.words_of(frame);
                assert_eq!(words, job.sent[at], "changed while it is written");
                if !fails {
                    self.contents.lock().unwrap()[block] = words;
                }
            } else {
                let words = self.contents.lock().unwrap()[block];
                self.machine.set(frame, words);
            }
        }
        out[0] = Completion {
            token: job.token,
            result: if fails { Err(DiskError::Io) } else { Ok(()) },
        };
        1
    }
}

struct Source {
    frames: &'static FrameAllocator<'static>,
    machine: &'static Machine,
}

impl PageSource for Source {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        self.frames
            .alloc(self.machine.cpu(), request)
            .map_err(|_| OutOfMemory)
    }
    fn free(&self, frame: Pfn, order: Order) {
        self.frames.free(self.machine.cpu(), frame, order).unwrap();
    }
}

#[derive(Clone, Copy)]
struct World {
    machine: &'static Machine,
    frames: &'static FrameAllocator<'static>,
    source: &'static Source,
    disk: &'static Disk,
    generations: &'static Generations<'static>,
    cache: &'static PageCache<'static, Machine>,
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl World {
    /// An empty cache; block `b` of the disk holds `[b, b]`.
    fn new() -> Self {
        CPU.with(|cpu| cpu.set(0));
        let range = Pfn::new(0)..Pfn::new(FRAMES as u64);
        let zones = [ZoneConfig {
            name: "zone",
            ranges: std::slice::from_ref(&range),
            watermarks: Watermarks {
                min: 0,
                low: 0,
                high: 0,
            },
            reserve_blocks: 0,
        }];
        let config = Config {
            zones: &zones,
            reserved: &[],
            cpus: 4,
            placement: Placement::LowestFirst,
            fallback: Fallback::Steal,
            ..Config::default()
        };
        let bytes = FrameAllocator::metadata_bytes(&config).unwrap();
        let frames = leak(FrameAllocator::new(&config, vec![0; bytes].leak()).unwrap());
        let machine = leak(Machine {
            clock: AtomicU64::new(0),
            words: (0..FRAMES).map(|_| Default::default()).collect(),
        });
        let disk = leak(Disk {
            machine,
            jobs: Mutex::new(VecDeque::new()),
            contents: Mutex::new((0..BLOCKS + SWAP).map(|block| [block; 2]).collect()),
            failures: Mutex::new(0),
            reads: Mutex::new(0),
            refusals: Mutex::new(0),
        });
        let source = leak(Source { frames, machine });
        let generations = leak(Generations::new(frames));
        let parts = CacheParts {
            frames,
            platform: machine,
            owner: OWNER,
            disk,
            memory: source,
            generations,
            swap: BLOCKS..BLOCKS + SWAP,
        };
        let config = CacheConfig {
            dirty_percent: 100,
            background_percent: 100,
            ..Default::default()
        };
        let cache = leak(PageCache::new(parts, config));
        Self {
            machine,
            frames,
            source,
            disk,
            generations,
            cache,
        }
    }

    fn spawn<T: Send + 'static>(
        self,
        cpu: u16,
        act: impl FnOnce(Self) -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        thread::spawn(move || {
            CPU.with(|cell| cell.set(cpu));
            act(self)
        })
    }

    fn read(&self, block: u64) -> Option<[u64; 2]> {
        let mut words = None;
        let read = self.cache.read(block, 0..0, &mut |frame| {
            words = Some(self.machine.words_of(frame));
        });
        assert_eq!(read.is_ok(), words.is_some());
        words
    }

    fn write(&self, block: u64, value: u64, whole: bool) {
        self.cache
            .write(block, whole, &mut |frame| {
                self.machine.set(frame, [value; 2])
            })
            .unwrap();
    }

    /// The frame of a page at rest.
    fn frame(&self, block: u64) -> Pfn {
        let mut frames = (0..FRAMES as u64).map(Pfn::new);
        frames
            .find(|&frame| {
                let info = self.frames.frame(frame).unwrap();
                info.state == FrameState::Listed && info.owner == OWNER && info.word == block
            })
            .unwrap()
    }

    /// What reclaim does with a frame; gives whether it was dropped.
    fn evict(&self, frame: Pfn) -> bool {
        if self.frames.try_isolate(frame, OWNER).is_err() {
            return false;
        }
        let dropped = Evictable::drop_clean(self.cache, frame, Stamp::from_bits(1)).is_ok();
        if dropped {
            self.source.free(frame, Order::BASE);
        } else {
            self.cache.begin_write(frame);
            self.frames.set_flags(frame, FrameFlags::RECLAIM);
            self.cache.put_back(frame);
        }
        dropped
    }

    /// What compaction does with a frame; gives whether it has moved.
    fn migrate(&self, from: Pfn) -> bool {
        if !MovableOwner::isolate(self.cache, from) {
            return false;
        }
        let to = self.source.alloc(AllocRequest::movable()).unwrap();
        let mut pairs = [MovePair::base(from, to)];
        self.cache.migrate(&mut pairs);
        match pairs[0].outcome {
            Outcome::Moved => self.source.free(from, Order::BASE),
            Outcome::Refused => {
                self.cache.putback(from);
                self.source.free(to, Order::BASE);
            }
            Outcome::Released => {
                self.source.free(from, Order::BASE);
                self.source.free(to, Order::BASE);
            }
            other => panic!("{other:?}"),
        }
        pairs[0].outcome == Outcome::Moved
    }

    /// An isolated frame of a program, and a promise of it.
    fn promise(&self, block: u64, value: u64) -> Pfn {
        let frame = self.source.alloc(AllocRequest::movable()).unwrap();
        self.frames.set_owner(frame, PROGRAMS, 0);
        self.machine.set(frame, [value; 2]);
        for (from, to) in [
            (FrameState::Allocated, FrameState::Listed),
            (FrameState::Listed, FrameState::Isolated),
        ] {
            self.frames.transition(frame, from, to).unwrap();
        }
        assert!(self.cache.promise(block, frame));
        frame
    }

    fn adopt(&self, block: u64, frame: Pfn) {
        let (from, to) = (FrameState::Isolated, FrameState::Allocated);
        self.frames.transition(frame, from, to).unwrap();
        self.cache.adopt(block, frame);
    }

    /// A dirty page of a program; gives its frame.
    fn adopted(&self, block: u64, value: u64) -> Pfn {
        let frame = self.promise(block, value);
        self.adopt(block, frame);
        frame
    }

    /// Takes contents out of swap, for good, if they can be had at this moment.
    fn take(&self, block: u64) -> Option<[u64; 2]> {
        let frame = self.cache.take(block)?;
        let info = self.frames.frame(frame).unwrap();
        assert_eq!(
            (info.state, info.owner, info.flags, info.generation),
            (FrameState::Allocated, OwnerId::NONE, FrameFlags::EMPTY, 0)
        );
        let words = self.machine.words_of(frame);
        self.source.free(frame, Order::BASE);
        Some(words)
    }

    /// What a fault does: gives the contents, or `None` if somebody else has had them.
    fn fault(&self, block: u64) -> Option<[u64; 2]> {
        while self.cache.has_contents(block) {
            if let Some(words) = self.take(block) {
                return Some(words);
            }
            self.cache.fetch(block).unwrap();
        }
        None
    }

    /// What compaction does with a frame that it would rather drop, with room for others between plan and drop; gives
    /// whether it was dropped.
    fn drop_cold(&self, frame: Pfn) -> bool {
        if !MovableOwner::isolate(self.cache, frame) {
            return false;
        }
        let planned = MovableOwner::plan(self.cache, frame) == Fate::Drop;
        thread::yield_now();
        let dropped = planned && self.cache.drop_frame(frame);
        if dropped {
            self.source.free(frame, Order::BASE);
        } else {
            MovableOwner::putback(self.cache, frame);
        }
        dropped
    }

    /// Reads a block, which is as a page that was read ahead then.
    fn read_cold(&self, block: u64) -> Pfn {
        self.read(block);
        let frame = self.frame(block);
        self.frames.clear_flags(frame, FrameFlags::REFERENCED);
        frame
    }

    fn on_disk(&self, block: u64) -> [u64; 2] {
        self.disk.contents.lock().unwrap()[block as usize]
    }

    /// Lets the disk end what is in flight, and checks all books.
    fn check(&self) {
        while self.cache.poll() {}
        let audit = self.cache.audit().unwrap();
        assert_eq!(
            (
                audit.held,
                audit.locked,
                audit.detached,
                audit.isolated,
                audit.reading
            ),
            (0, 0, 0, 0, 0)
        );
        assert_eq!(audit.counts.writeback, 0);
        self.generations.verify().unwrap();
        self.frames.drain_cpu_caches();
        self.frames.verify().unwrap();
        assert_eq!(self.frames.class_frames().movable, audit.counts.pages);
    }
}

fn explore(test: impl Fn() + Send + Sync + 'static) {
    let mut config = shuttle::Config::default();
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(10_000_000);
    shuttle::Runner::new(RandomScheduler::new(RUNS), config).run(test);
}

#[test]
fn a_reader_against_a_migration() {
    explore(|| {
        let w = World::new();
        w.write(BLOCK, 7, true);
        let frame = w.frame(BLOCK);
        let mover = w.spawn(1, move |w| w.migrate(frame));
        let reader = w.spawn(2, |w| w.read(BLOCK));
        assert_eq!(w.read(BLOCK), Some([7; 2]));
        assert_eq!(reader.join().unwrap(), Some([7; 2]));
        mover.join().unwrap();
        w.check();
        assert_eq!(w.read(BLOCK), Some([7; 2]));
    });
}

#[test]
fn a_writer_against_a_migration() {
    explore(|| {
        let w = World::new();
        w.read(BLOCK);
        let frame = w.frame(BLOCK);
        let mover = w.spawn(1, move |w| w.migrate(frame));
        w.write(BLOCK, 8, false);
        mover.join().unwrap();
        assert_eq!(w.read(BLOCK), Some([8; 2]));
        w.check();
        w.cache.sync(0..BLOCKS).unwrap();
        assert_eq!(w.on_disk(BLOCK), [8; 2]);
    });
}

#[test]
fn a_drop_against_lookups() {
    explore(|| {
        let w = World::new();
        w.read(BLOCK);
        let frame = w.frame(BLOCK);
        let reclaim = w.spawn(1, move |w| w.evict(frame));
        let files = w.spawn(2, |w| BlockPages::drop_clean(w.cache, 0..BLOCKS));
        let writer = w.spawn(3, |w| w.write(BLOCK, 9, false));
        assert!(
            w.read(BLOCK)
                .unwrap()
                .iter()
                .all(|word| [BLOCK, 9].contains(word))
        );
        reclaim.join().unwrap();
        files.join().unwrap();
        writer.join().unwrap();
        assert_eq!(w.read(BLOCK), Some([9; 2]));
        w.check();
    });
}

/// What is used or becomes dirty between plan and drop is not lost.
#[test]
fn a_planned_drop_against_users() {
    explore(|| {
        let w = World::new();
        let frame = w.read_cold(BLOCK);
        let compaction = w.spawn(1, move |w| w.drop_cold(frame));
        let writer = w.spawn(2, |w| w.write(BLOCK, 9, false));
        let words = w.read(BLOCK).unwrap();
        assert!(words.iter().all(|word| [BLOCK, 9].contains(word)));
        compaction.join().unwrap();
        writer.join().unwrap();
        assert_eq!(w.read(BLOCK), Some([9; 2]));
        w.check();
        w.cache.sync(0..BLOCKS).unwrap();
        assert_eq!(w.on_disk(BLOCK), [9; 2]);
    });
}

/// The same against who forgets the page, and against reclaim, which wants the same frame.
#[test]
fn a_planned_drop_against_forget_and_reclaim() {
    explore(|| {
        let w = World::new();
        let frame = w.read_cold(BLOCK);
        let compaction = w.spawn(1, move |w| w.drop_cold(frame));
        let reclaim = w.spawn(2, move |w| w.evict(frame));
        w.cache.forget(BLOCK..BLOCK + 1);
        let dropped = [compaction, reclaim].map(|thread| thread.join().unwrap());
        assert_ne!(dropped, [true; 2], "freed once");
        assert_eq!(w.read(BLOCK), Some([BLOCK; 2]));
        w.check();
    });
}

/// The frame is used again at once, for another block: who still knows it by the old slot must not disturb it.
#[test]
fn a_frame_that_changes_its_block() {
    explore(|| {
        let w = World::new();
        w.read(BLOCK);
        let frame = w.frame(BLOCK);
        let reclaim = w.spawn(1, move |w| {
            w.evict(frame);
            w.write(5, 50, true);
            w.write(6, 60, true);
        });
        let forgetter = w.spawn(2, |w| w.cache.forget(BLOCK..BLOCK + 1));
        assert_eq!(w.read(BLOCK), Some([BLOCK; 2]));
        w.cache.sync(0..BLOCK + 1).unwrap();
        reclaim.join().unwrap();
        forgetter.join().unwrap();
        assert_eq!((w.read(5), w.read(6)), (Some([50; 2]), Some([60; 2])));
        w.check();
    });
}

/// pitfall 75: truncation against writeback. What is forgotten before its write began is never written.
#[test]
fn pitfall_75_writeback_against_forget() {
    explore(|| {
        let w = World::new();
        w.write(BLOCK, 9, true);
        w.write(BLOCK + 1, 10, true);
        let syncer = w.spawn(1, |w| w.cache.sync(0..BLOCKS));
        let frame = w.frame(BLOCK);
        let reclaim = w.spawn(2, move |w| w.evict(frame));
        let forgotten = w.cache.forget(BLOCK..BLOCK + 1);
        let then = w.on_disk(BLOCK);
        assert!([[BLOCK; 2], [9; 2]].contains(&then));
        // Both, if reclaim has the frame isolated when it is forgotten, and frees it.
        assert!(forgotten + u64::from(reclaim.join().unwrap()) >= 1);
        syncer.join().unwrap().unwrap();
        assert_eq!(w.on_disk(BLOCK), then);
        assert_eq!(w.on_disk(BLOCK + 1), [10; 2]);
        w.check();
        assert_eq!(w.read(BLOCK), Some(then));
    });
}

/// pitfall 75: truncation against migration, and against reclaim that has the frame isolated.
#[test]
fn pitfall_75_forget_against_who_isolates() {
    explore(|| {
        let w = World::new();
        w.write(BLOCK, 9, true);
        let frame = w.frame(BLOCK);
        let mover = w.spawn(1, move |w| w.migrate(frame));
        let reclaim = w.spawn(2, move |w| w.evict(frame));
        let other = w.spawn(3, |w| w.cache.forget(BLOCK..BLOCK + 1));
        let forgotten = w.cache.forget(BLOCK..BLOCK + 1);
        mover.join().unwrap();
        let dropped = reclaim.join().unwrap();
        let forgotten = forgotten + other.join().unwrap();
        assert!(forgotten <= 1 && forgotten + u64::from(dropped) >= 1);
        assert!(!w.cache.contains(BLOCK));
        w.check();
    });
}

/// The disk refuses a write that somebody else has begun, while a sync finds the page being written.
#[test]
fn a_sync_against_a_write_that_is_refused() {
    explore(|| {
        let w = World::new();
        w.write(BLOCK, 7, true);
        w.write(BLOCK + 1, 8, true);
        *w.disk.refusals.lock().unwrap() = 2;
        let frame = w.frame(BLOCK);
        let reclaim = w.spawn(1, move |w| w.evict(frame));
        w.cache.sync(0..BLOCKS).unwrap();
        assert_eq!((w.on_disk(BLOCK), w.on_disk(BLOCK + 1)), ([7; 2], [8; 2]));
        reclaim.join().unwrap();
        w.check();
    });
}

/// Two write parts of one page, which is clean: each of them syncs what it wrote, whoever of both marks the page.
#[test]
fn two_writers_who_sync() {
    explore(|| {
        let w = World::new();
        w.read(BLOCK);
        let write_and_sync = |w: World, index: usize| {
            let word = &mut |frame| w.machine.write_word(frame, index, 70 + index as u64);
            w.cache.write(BLOCK, false, word).unwrap();
            w.cache.sync(0..BLOCKS).unwrap();
            assert_eq!(w.on_disk(BLOCK)[index / 511], 70 + index as u64);
        };
        let other = w.spawn(1, move |w| write_and_sync(w, 511));
        write_and_sync(w, 0);
        other.join().unwrap();
        w.check();
    });
}

#[test]
fn dirtying_against_the_end_of_a_write() {
    explore(|| {
        let w = World::new();
        w.write(BLOCK, 1, true);
        let syncer = w.spawn(1, |w| w.cache.sync(0..BLOCKS));
        let poller = w.spawn(2, |w| {
            let mut flusher = Flusher::new(w.cache, 0);
            w.cache.wake_flusher();
            for now in 0..3 {
                flusher.step(now);
                thread::yield_now();
            }
        });
        w.write(BLOCK, 2, false);
        w.write(BLOCK, 3, true);
        syncer.join().unwrap().unwrap();
        poller.join().unwrap();
        w.check();
        assert_eq!(w.read(BLOCK), Some([3; 2]));
        w.cache.sync(0..BLOCKS).unwrap();
        assert_eq!(w.on_disk(BLOCK), [3; 2]);
        w.check();
    });
}

#[test]
fn two_writers_and_a_write_that_fails() {
    explore(|| {
        let w = World::new();
        w.write(BLOCK, 1, true);
        *w.disk.failures.lock().unwrap() = 1;
        let writer = w.spawn(1, |w| w.write(BLOCK, 2, false));
        let syncer = w.spawn(2, |w| w.cache.sync(0..BLOCKS));
        w.write(BLOCK + 1, 4, true);
        writer.join().unwrap();
        let _ = syncer.join().unwrap();
        w.check();
        w.cache.sync(0..BLOCKS).unwrap();
        assert_eq!((w.on_disk(BLOCK), w.on_disk(BLOCK + 1)), ([2; 2], [4; 2]));
        w.check();
    });
}

#[test]
fn a_block_that_two_want_is_read_once() {
    explore(|| {
        let w = World::new();
        let other = w.spawn(1, |w| w.read(BLOCK));
        assert_eq!(w.read(BLOCK), Some([BLOCK; 2]));
        assert_eq!(other.join().unwrap(), Some([BLOCK; 2]));
        assert_eq!(*w.disk.reads.lock().unwrap(), 1);
        w.check();
    });
}

#[test]
fn a_read_that_fails_fails_for_those_who_wait() {
    explore(|| {
        let w = World::new();
        *w.disk.failures.lock().unwrap() = 1;
        let other = w.spawn(1, |w| w.read(BLOCK));
        let writer = w.spawn(2, |w| w.write(BLOCK, 6, true));
        let words = [w.read(BLOCK), other.join().unwrap()];
        writer.join().unwrap();
        // Who reads and writes the same page at once sees parts of both: files keep them apart.
        let mut words = words.into_iter().flatten().flatten();
        assert!(words.all(|word| [BLOCK, 6].contains(&word)));
        assert_eq!(w.read(BLOCK), Some([6; 2]));
        w.check();
    });
}

const SLOT: u64 = BLOCKS;

/// Contents that two want at once, while they are written and dropped: one gets them, whole, and nothing is left.
#[test]
fn pitfall_74_taking_against_writing_and_dropping() {
    explore(|| {
        let w = World::new();
        let frame = w.adopted(SLOT, 70);
        w.adopted(SLOT + 1, 71);
        let writer = w.spawn(1, |w| {
            w.cache.write_out(SLOT..SLOT + 2);
            w.cache.poll();
        });
        let reclaim = w.spawn(2, move |w| w.evict(frame));
        let other = w.spawn(3, |w| w.fault(SLOT));
        let mine = w.fault(SLOT);
        let had = [mine, other.join().unwrap()];
        assert!(had == [Some([70; 2]), None] || had == [None, Some([70; 2])]);
        writer.join().unwrap();
        reclaim.join().unwrap();
        assert!(!w.cache.has_contents(SLOT));
        w.check();
        assert_eq!(w.fault(SLOT + 1), Some([71; 2]));
        w.check();
    });
}

/// Who finds the frame isolated gets nothing, and gets it later.
#[test]
fn pitfall_74_taking_against_moving() {
    explore(|| {
        let w = World::new();
        let frame = w.adopted(SLOT, 70);
        let mover = w.spawn(1, move |w| w.migrate(frame));
        let taker = w.spawn(2, |w| w.take(SLOT));
        let fault = w.fault(SLOT);
        let taken = taker.join().unwrap();
        mover.join().unwrap();
        assert_eq!(fault.or(taken), Some([70; 2]));
        assert!(fault.is_none() || taken.is_none());
        w.check();
    });
}

/// The slot is free afterwards, whoever had the frame.
#[test]
fn pitfall_74_freeing_against_moving_and_writing() {
    explore(|| {
        let w = World::new();
        let frame = w.adopted(SLOT, 70);
        w.adopted(SLOT + 1, 71);
        let mover = w.spawn(1, move |w| w.migrate(frame));
        let writer = w.spawn(2, |w| w.cache.write_out([SLOT + 1, SLOT]));
        w.cache.forget_swap(SLOT..SLOT + 1);
        assert!(!w.cache.has_contents(SLOT));
        // It is used again at once.
        w.adopted(SLOT, 72);
        writer.join().unwrap();
        mover.join().unwrap();
        w.check();
        assert_eq!(w.fault(SLOT), Some([72; 2]));
        assert_eq!(w.fault(SLOT + 1), Some([71; 2]));
        w.check();
    });
}

/// Who reads with a neighbour must not bring back what was taken or freed meanwhile.
#[test]
fn pitfall_74_reading_around_against_taking_and_freeing() {
    explore(|| {
        let w = World::new();
        for slot in SLOT..SLOT + 3 {
            let frame = w.adopted(slot, slot * 10);
            w.cache.write_out([slot]);
            while w.cache.poll() {}
            assert!(w.evict(frame));
        }
        let taker = w.spawn(1, |w| w.fault(SLOT + 1));
        let ender = w.spawn(2, |w| {
            // At any moment of the others' reads.
            for _ in 0..shuttle::rand::thread_rng().gen_range(0..400) {
                w.cache.has_contents(SLOT);
            }
            w.cache.forget_swap(SLOT..SLOT + 1);
            // The slot's next contents.
            w.adopted(SLOT, 5);
        });
        assert_eq!(w.fault(SLOT + 2), Some([(SLOT + 2) * 10; 2]));
        assert_eq!(taker.join().unwrap(), Some([(SLOT + 1) * 10; 2]));
        ender.join().unwrap();
        w.check();
        assert_eq!(w.cache.swap_pages(), 1);
        assert_eq!(w.fault(SLOT), Some([5; 2]));
        w.check();
    });
}

/// Who wants what was promised waits, and gets it from memory, though the flusher is quick.
#[test]
fn pitfall_74_a_promise_against_who_wants_it() {
    explore(|| {
        let w = World::new();
        let frame = w.promise(SLOT, 70);
        let fault = w.spawn(1, |w| w.fault(SLOT));
        let files = w.spawn(2, |w| {
            w.cache.drop_all_clean();
            Flusher::new(w.cache, 0).step(1);
        });
        w.adopt(SLOT, frame);
        assert_eq!(fault.join().unwrap(), Some([70; 2]));
        files.join().unwrap();
        assert_eq!(*w.disk.reads.lock().unwrap(), 0);
        w.check();
    });
}
