//! Interleavings of reclaim with owners, with compaction and with itself, tried at random:
//! `RUSTFLAGS="--cfg shuttle" cargo test -p dirigible-reclaim --features shuttle --test shuttle`.
#![cfg(shuttle)]

use std::cell::Cell;
// Not shuttle's: what only counts over all runs is no step of the model.
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dirigible_frames::{
    AllocRequest, Config, CpuId, FrameAllocator, FrameFlags, FrameState, Marks, Order, OwnerId,
    Pfn, Platform, Reclaim, Watermark, Watermarks, ZoneConfig,
};
use dirigible_reclaim::{Age, Evictable, Generations, Kept, ReclaimConfig, Reclaimer, Stamp};
use shuttle::{
    Runner,
    rand::Rng,
    scheduler::{PctScheduler, RandomScheduler},
    thread,
};

const OWNER: OwnerId = OwnerId::new(1).unwrap();
const RUNS: usize = 150;

shuttle::thread_local! {
    static CPU: Cell<u16> = Cell::new(0);
}

struct Machine;

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.with(Cell::get))
    }
    fn now(&self) -> u64 {
        0
    }
    fn relax(&self) {
        thread::yield_now();
    }
}

/// An owner that decides by the frame's word alone.
struct Owner {
    frames: &'static FrameAllocator<'static>,
    generations: &'static Generations<'static>,
}

impl Owner {
    fn add(&self, age: Age) -> Pfn {
        let request = AllocRequest::movable().with_watermark(Watermark::None);
        let frame = self.frames.alloc(Machine.cpu(), request).unwrap();
        self.frames.set_owner(frame, OWNER, 0);
        self.generations.add(frame, age);
        self.go(frame, FrameState::Allocated, FrameState::Listed);
        frame
    }

    fn go(&self, frame: Pfn, from: FrameState, to: FrameState) {
        assert_eq!(self.frames.transition(frame, from, to), Ok(()));
    }

    /// Takes a reference, if the frame is still there; that is a use.
    fn get(&self, frame: Pfn) -> bool {
        let taken = self.frames.update_marks(frame, |info| {
            let there = info.state == FrameState::Listed && info.owner == OWNER;
            there.then(|| Marks {
                refcount: info.refcount + 1,
                ..info.marks()
            })
        });
        taken.is_ok()
    }

    /// Moves a frame, if it can be isolated.
    fn migrate(&self, from: Pfn, to: Pfn) -> bool {
        if self.frames.try_isolate(from, OWNER).is_err() {
            return false;
        }
        self.frames.set_owner(to, OWNER, 0);
        self.generations.moved(from, to);
        self.go(to, FrameState::Allocated, FrameState::Listed);
        self.go(from, FrameState::Isolated, FrameState::Allocated);
        self.frames.free_bulk(Machine.cpu(), &[from]).unwrap();
        true
    }
}

impl Evictable for Owner {
    fn drop_clean(&self, frame: Pfn, _: Stamp) -> Result<(), Kept> {
        // In one step: who takes a reference sees a listed frame, or none.
        let locked = self.frames.update_marks(frame, |info| {
            (info.refcount == 0).then(|| Marks {
                flags: info.flags.union(FrameFlags::LOCKED),
                ..info.marks()
            })
        });
        if locked.is_err() {
            return Err(Kept::InUse);
        }
        self.go(frame, FrameState::Isolated, FrameState::Allocated);
        Ok(())
    }
    fn begin_write(&self, _: Pfn) -> usize {
        0
    }
    fn put_back(&self, frame: Pfn) {
        self.go(frame, FrameState::Isolated, FrameState::Listed);
    }
    fn wake_flusher(&self) {}
    fn dirty_and_writeback(&self) -> (u64, u64) {
        (0, 0)
    }
}

#[derive(Clone, Copy)]
struct World {
    frames: &'static FrameAllocator<'static>,
    generations: &'static Generations<'static>,
    reclaimer: &'static Reclaimer<'static, Machine>,
    owner: &'static Owner,
}

impl World {
    fn reclaim(&self, frames: usize) -> usize {
        self.reclaimer.reclaim(frames, Order::BASE)
    }

    /// Frames of the owner, by a look at all words.
    fn pages(&self) -> Vec<Pfn> {
        let listed = |frame: &Pfn| self.frames.state(*frame) == FrameState::Listed;
        let first = self.frames.base();
        (0..512).map(|at| first.plus(at)).filter(listed).collect()
    }
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Runs `test` under many schedules, each time in a new block of memory; then everything must agree, and nothing that
/// is free to go may be beyond reclaim.
fn explore(test: fn(World)) {
    let body = move || {
        let range = [Pfn::new(512)..Pfn::new(1024)];
        let zones = [ZoneConfig {
            name: "Normal",
            ranges: &range,
            watermarks: Watermarks {
                min: 0,
                low: 0,
                high: 0,
            },
            reserve_blocks: 0,
        }];
        let config = Config {
            zones: &zones,
            cpus: 3,
            ..Config::default()
        };
        let bytes = FrameAllocator::metadata_bytes(&config).unwrap();
        let metadata = Box::leak(vec![0; bytes].into_boxed_slice());
        let frames = leak(FrameAllocator::new(&config, metadata).unwrap());
        let generations = leak(Generations::new(frames));
        let owner = leak(Owner {
            frames,
            generations,
        });
        let reclaimer = leak(Reclaimer::new(
            generations,
            &Machine,
            ReclaimConfig::default(),
        ));
        reclaimer.register(OWNER, owner).unwrap();
        let w = World {
            frames,
            generations,
            reclaimer,
            owner,
        };
        test(w);
        generations.verify().expect("the books agree");
        frames.verify().expect("all counts fit");
        let left = w.pages().len();
        let freed = w.reclaim(512) + w.reclaim(512);
        assert_eq!(freed, left, "a page that is free to go was not found");
        generations.verify().expect("the books agree");
    };
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new(RUNS), config.clone()).run(body);
    Runner::new(PctScheduler::new(3, RUNS), config).run(body);
}

fn on_cpu<T: Send + 'static>(
    cpu: u16,
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(move || {
        CPU.with(|own| own.set(cpu));
        work()
    })
}

/// A page is dropped or found, never both; one that was found twice is not dropped by the walk that sees it.
#[test]
fn uses_against_a_walk() {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    explore(|w| {
        let page = w.owner.add(Age::New);
        let user = on_cpu(1, move || {
            let found = w.owner.get(page);
            if found {
                w.generations.used(page);
                w.generations.used(page);
                assert_eq!(w.frames.state(page) == FrameState::Free, false);
                assert_eq!(
                    w.frames.owner(page),
                    OWNER,
                    "it was dropped in the hands of its user"
                );
                assert!(w.frames.put_ref(page));
            }
            found
        });
        let freed = w.reclaim(1);
        let found = user.join().unwrap();
        assert!(found || freed == 1);
        FOUND.fetch_add(found.into(), Relaxed);
        DROPPED.fetch_add(freed, Relaxed);
    });
    assert!(FOUND.load(Relaxed) > 0 && DROPPED.load(Relaxed) > 0);
}

/// Reclaim and migration want the same frame: one of them has it, and its contents are in one place or gone.
#[test]
fn a_walk_against_a_migration() {
    static MOVED: AtomicUsize = AtomicUsize::new(0);
    explore(|w| {
        let page = w.owner.add(Age::New);
        let request = AllocRequest::movable().with_watermark(Watermark::None);
        let target = w.frames.alloc(Machine.cpu(), request).unwrap();
        let mover = on_cpu(1, move || {
            let moved = w.owner.migrate(page, target);
            if !moved {
                w.frames.free_bulk(Machine.cpu(), &[target]).unwrap();
            }
            moved
        });
        let freed = w.reclaim(1);
        let moved = mover.join().unwrap();
        assert_eq!(w.pages().len(), 1 - freed);
        assert!(moved || freed == 1);
        MOVED.fetch_add(moved.into(), Relaxed);
    });
    assert!(MOVED.load(Relaxed) > 0);
}

/// A walk clears the bit of a block while pages are added to it, moved in and removed: none is lost.
#[test]
fn additions_against_a_walk() {
    explore(|w| {
        let removed = w.owner.add(Age::New);
        w.owner.add(Age::Young);
        let adder = on_cpu(1, move || {
            // Somewhere in the middle of the walk, which looks at 512 words, not always at its beginning.
            for _ in 0..shuttle::rand::thread_rng().gen_range(0..600) {
                thread::yield_now();
            }
            w.owner.add(Age::New);
            w.owner.add(Age::Young);
            let out = w
                .frames
                .transition(removed, FrameState::Listed, FrameState::Allocated);
            if out.is_ok() {
                w.generations.remove(removed);
                w.frames.free_bulk(Machine.cpu(), &[removed]).unwrap();
            }
        });
        w.reclaim(2);
        adder.join().unwrap();
    });
}

/// A page behind the hand becomes one of the oldest while the hand is in its block: its bit is set again.
#[test]
fn a_written_page_against_a_walk() {
    explore(|w| {
        let written = w.owner.add(Age::Young);
        let marked = w.frames.set_flags(written, FrameFlags::RECLAIM);
        assert!(marked);
        w.owner.add(Age::New);
        let writer = on_cpu(1, move || {
            for _ in 0..shuttle::rand::thread_rng().gen_range(0..600) {
                thread::yield_now();
            }
            w.generations.written(written);
        });
        w.reclaim(2);
        writer.join().unwrap();
    });
}

/// Two walk the same block: each page is freed by one of them, and what both want of generations that age is no loss.
#[test]
fn a_walk_against_a_walk() {
    explore(|w| {
        for age in [Age::New, Age::Young, Age::New] {
            w.owner.add(age);
        }
        let other = on_cpu(1, move || w.reclaim(2));
        let freed = w.reclaim(2) + other.join().unwrap();
        assert_eq!(w.pages().len(), 3 - freed);
        // Each finds something as long as there is more than the other can take.
        assert!(freed >= 2, "{freed}");
    });
}
