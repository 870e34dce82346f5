//! Random interleavings of the operations that meet at one frame: `RUSTFLAGS="--cfg shuttle" cargo test -p
//! dirigible-paging --test shuttle`.
#![cfg(shuttle)]

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64 as RawU64, Ordering::SeqCst};

use dirigible_frames::{
    Config, CpuId, Fallback, FrameAllocator, FrameClass, FrameContents, FrameState, Order, OwnerId,
    PageTables, Pfn, Placement, Platform, Watermarks, ZoneConfig,
    sync::{AtomicU64, spin_hint},
};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use dirigible_paging::{
    CollapseConfig, CollapseError, Collapsed, Fault, FaultKind, FreeFrames, Page, PageSource,
    Paging, SpaceId,
};

const CPUS: u16 = 3;
/// Number of runs of each test.
const RUNS: usize = 300;

shuttle::thread_local! {
    static CPU: Cell<u16> = Cell::new(0);
}

/// Blocks of memory. Words are plain atomics behind a scheduling point. They are created only for the frames that
/// are used, as each run leaks a world.
struct Guest {
    words: Vec<OnceLock<Box<[RawU64]>>>,
    sections: Vec<AtomicU64>,
    step: AtomicU64,
}

impl Guest {
    fn word(&self, frame: Pfn, index: usize) -> &RawU64 {
        self.step.load(SeqCst);
        &self.frame(frame)[index]
    }

    fn frame(&self, frame: Pfn) -> &[RawU64] {
        let words = &self.words[frame.get() as usize];
        words.get_or_init(|| (0..512).map(|_| RawU64::new(0xdead)).collect())
    }
}

impl Platform for Guest {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.with(Cell::get))
    }
    fn now(&self) -> u64 {
        0
    }
    fn relax(&self) {
        spin_hint();
    }
}

impl FrameContents for Guest {
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        self.word(frame, index).load(SeqCst)
    }
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        self.word(frame, index).store(value, SeqCst);
    }
    fn copy_frames(&self, from: Pfn, to: Pfn, _: usize) {
        // The tests use two words of a page.
        for index in [0, 1] {
            self.write_word(to, index, self.read_word(from, index));
        }
    }
    fn zero_frames(&self, first: Pfn, _: usize) {
        self.frame(first)
            .iter()
            .for_each(|word| word.store(0, SeqCst));
    }
}

impl PageTables for Guest {
    fn load_entry(&self, table: Pfn, index: usize) -> u64 {
        self.word(table, index).load(SeqCst)
    }
    fn swap_entry(&self, table: Pfn, index: usize, value: u64) -> u64 {
        self.word(table, index).swap(value, SeqCst)
    }
    fn compare_exchange_entry(&self, t: Pfn, i: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.word(t, i)
            .compare_exchange(current, new, SeqCst, SeqCst)
    }
    fn or_entry(&self, table: Pfn, index: usize, bits: u64) -> u64 {
        self.word(table, index).fetch_or(bits, SeqCst)
    }
    fn enter_access(&self) {
        assert_eq!(
            self.sections[self.cpu().index()].fetch_add(1, SeqCst) % 2,
            0
        );
    }
    fn leave_access(&self) {
        assert_eq!(
            self.sections[self.cpu().index()].fetch_add(1, SeqCst) % 2,
            1
        );
    }
    fn shoot_down(&self, _: u32, _: u64) {
        for section in &self.sections {
            let seen = section.load(SeqCst);
            while seen % 2 == 1 && section.load(SeqCst) == seen {
                spin_hint();
            }
        }
    }
}

#[derive(Clone, Copy)]
struct World {
    guest: &'static Guest,
    frames: &'static FrameAllocator<'static>,
    paging: &'static Paging<'static, Guest>,
    source: &'static FreeFrames<'static, Guest>,
    space: SpaceId,
    /// Maps a page, and writes 7 into both words.
    page: Page,
    frame: Pfn,
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl World {
    fn with_blocks(blocks: u64) -> Self {
        let range = Pfn::new(0)..Pfn::new(blocks * 512);
        let zones = [ZoneConfig {
            name: "test",
            ranges: &[range],
            watermarks: Watermarks {
                min: 0,
                low: 0,
                high: 0,
            },
            reserve_blocks: 0,
        }];
        let layout = Config {
            zones: &zones,
            reserved: &[],
            cpus: CPUS,
            placement: Placement::LowestFirst,
            fallback: Fallback::Steal,
            ..Config::default()
        };
        let metadata = vec![0u8; FrameAllocator::metadata_bytes(&layout).unwrap()].leak();
        let frames = leak(FrameAllocator::new(&layout, metadata).unwrap());
        let guest = leak(Guest {
            words: (0..blocks * 512).map(|_| OnceLock::new()).collect(),
            sections: (0..CPUS).map(|_| AtomicU64::new(0)).collect(),
            step: AtomicU64::new(0),
        });
        let paging = leak(Paging::new(frames, guest, OwnerId::new(1).unwrap(), 2));
        let source = leak(FreeFrames::new(frames, guest));
        let space = paging.create_space(source).unwrap();
        let page = Page::new(4711);
        let frame = paging
            .fault(space, page, FaultKind::Base, source)
            .unwrap()
            .frame;
        let world = Self {
            guest,
            frames,
            paging,
            source,
            space,
            page,
            frame,
        };
        assert!(world.write(7));
        world
    }

    fn fault(&self, page: Page) -> Fault {
        self.paging
            .fault(self.space, page, FaultKind::Base, self.source)
            .unwrap()
    }

    fn write(&self, value: u64) -> bool {
        let write = |frame| {
            self.guest.write_word(frame, 0, value);
            self.guest.write_word(frame, 1, value);
        };
        self.paging
            .access(self.space, self.page, true, write)
            .is_some()
    }

    fn read(&self) -> Option<(u64, u64)> {
        let read = |frame| {
            (
                self.guest.read_word(frame, 0),
                self.guest.read_word(frame, 1),
            )
        };
        self.paging.access(self.space, self.page, false, read)
    }

    /// Moves one frame, as compaction does.
    fn move_frame(&self) -> Outcome {
        let free = |frame| {
            self.frames
                .free(self.guest.cpu(), frame, Order::BASE)
                .unwrap()
        };
        let to = self
            .source
            .alloc(dirigible_frames::AllocRequest::movable())
            .unwrap();
        if !self.paging.isolate(self.frame) {
            free(to);
            return Outcome::Refused;
        }
        let mut pairs = [MovePair::base(self.frame, to)];
        self.paging.migrate(&mut pairs);
        match pairs[0].outcome {
            Outcome::Moved => free(self.frame),
            Outcome::Released => {
                free(self.frame);
                free(to);
            }
            _ => {
                self.paging.putback(self.frame);
                free(to);
            }
        }
        pairs[0].outcome
    }

    fn spawn(
        self,
        cpu: u16,
        act: impl FnOnce(Self) + Send + 'static,
    ) -> shuttle::thread::JoinHandle<()> {
        shuttle::thread::spawn(move || {
            CPU.with(|cell| cell.set(cpu));
            act(self);
        })
    }

    fn check(&self, mapped: u64) {
        let audit = self.paging.audit().unwrap();
        assert_eq!(
            (
                audit.base,
                audit.migration_entries,
                audit.isolated,
                audit.pinned
            ),
            (mapped, 0, 0, 0)
        );
        self.frames.verify().unwrap();
        self.frames.drain_cpu_caches();
        assert_eq!(self.frames.class_frames().movable, mapped);
    }
}

/// Half of the runs switch threads at every step, the other half seldom: some errors appear only if one thread stops
/// while another makes many steps.
fn explore(test: impl Fn(World) + Send + Sync + 'static) {
    explore_in(1, RUNS, test);
}

/// The same in a world of `blocks` blocks, with `runs` runs.
fn explore_in(blocks: u64, runs: usize, test: impl Fn(World) + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let mut config = shuttle::Config::new();
    // The default is 32 KiB; the allocator's batches need more if it is not optimized.
    config.stack_size = 1 << 20;
    let test = std::sync::Arc::new(test);
    let seldom = test.clone();
    shuttle::Runner::new(RandomScheduler::new(runs / 2), config.clone())
        .run(move || test(World::with_blocks(blocks)));
    shuttle::Runner::new(PctScheduler::new(3, runs / 2), config)
        .run(move || seldom(World::with_blocks(blocks)));
}

#[test]
fn access_against_migrate() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            for value in [8, 9] {
                assert!(w.write(value));
                assert_eq!(w.read(), Some((value, value)));
            }
        });
        assert_eq!(w.move_frame(), Outcome::Moved);
        user.join().unwrap();
        assert_eq!(w.read(), Some((9, 9)));
        let mapping = w.paging.lookup(w.space, w.page).unwrap();
        assert!(mapping.dirty && mapping.frame != w.frame);
        w.check(1);
    });
}

#[test]
fn fault_against_migrate() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            let fault = w
                .paging
                .fault(w.space, w.page, FaultKind::Base, w.source)
                .unwrap();
            assert!(!fault.fresh);
        });
        assert_eq!(w.move_frame(), Outcome::Moved);
        user.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        w.check(1);
    });
}

#[test]
fn unmap_against_migrate() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
            assert_eq!(w.read(), None);
        });
        w.move_frame();
        user.join().unwrap();
        w.check(0);
    });
}

#[test]
fn unmap_against_putback() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        });
        if w.paging.isolate(w.frame) {
            w.paging.putback(w.frame);
        }
        user.join().unwrap();
        w.check(0);
    });
}

#[test]
fn destroy_against_migrate_and_access() {
    explore(|w| {
        let destroyer = w.spawn(1, |w| assert_eq!(w.paging.destroy_space(w.space), 1));
        let reader = w.spawn(2, |w| {
            let seen = w.read();
            assert!(seen.is_none() || seen == Some((7, 7)), "{seen:?}");
        });
        w.move_frame();
        destroyer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(w.paging.translate(w.space, w.page), None);
        w.check(0);
    });
}

#[test]
fn pin_against_migrate_and_unmap() {
    explore(|w| {
        let pinner = w.spawn(1, |w| {
            if let Some(frame) = w.paging.pin(w.space, w.page) {
                assert_eq!(w.frames.state(frame), FrameState::Allocated);
                assert_eq!(w.frames.frame(frame).unwrap().class, FrameClass::Movable);
                assert_eq!(w.guest.read_word(frame, 0), 7);
                w.paging.unpin(frame);
            }
        });
        let unmapper = w.spawn(2, |w| {
            assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        });
        w.move_frame();
        pinner.join().unwrap();
        unmapper.join().unwrap();
        w.check(0);
    });
}

#[test]
fn two_faults_on_one_page() {
    explore(|w| {
        let page = w.page.plus(1);
        let other = w.spawn(1, move |w| {
            w.fault(page);
        });
        w.fault(page);
        other.join().unwrap();
        w.check(2);
    });
}

/// The page and its neighbour are in a range that their program wants as a huge page, and there is one.
fn explore_collapse(test: impl Fn(World) + Send + Sync + 'static) {
    explore_in(3, RUNS / 3, move |w| {
        let wanted = w.fault_wanted(w.page.plus(1));
        assert!(wanted.fresh && !wanted.huge);
        test(w);
    });
}

impl World {
    /// Collapses the page's range. Filled pages are not written: no test reads them.
    fn collapse(&self) -> Result<Collapsed, CollapseError> {
        let config = CollapseConfig::default();
        self.paging
            .collapse(self.space, self.page, config, self.source, |_, _| {})
    }

    fn unmap_one(&self, page: Page) {
        assert_eq!(self.paging.unmap(self.space, page..page.plus(1)), 1);
    }

    fn fault_wanted(&self, page: Page) -> Fault {
        self.paging
            .fault(self.space, page, FaultKind::HugeIfPossible, self.source)
            .unwrap()
    }

    fn check_collapse(&self, base: u64, huge: u64) {
        let audit = self.paging.audit().unwrap();
        assert_eq!(
            (audit.migration_entries, audit.isolated, audit.pinned),
            (0, 0, 0)
        );
        assert_eq!((audit.base, audit.huge), (base, huge));
        self.frames.verify().unwrap();
        self.frames.drain_cpu_caches();
        assert_eq!(self.frames.class_frames().movable, base + huge * 512);
        assert_eq!(self.frames.class_frames().unmovable, audit.tables);
    }
}

#[test]
fn collapse_against_access() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            for value in [8, 9] {
                assert!(w.write(value));
                assert_eq!(w.read(), Some((value, value)));
            }
        });
        let collapsed = w.collapse().unwrap();
        user.join().unwrap();
        assert_eq!(w.read(), Some((9, 9)));
        let mapping = w.paging.lookup(w.space, w.page).unwrap();
        assert!(mapping.dirty && mapping.huge);
        assert_eq!((collapsed.copied, collapsed.filled), (2, 510));
        w.check_collapse(0, 1);
    });
}

#[test]
fn the_first_write_against_collapse() {
    explore_collapse(|w| {
        // Two pages that were never written: the dirty mark must not be lost, however late it is set.
        let other = World {
            page: w.page.plus(1),
            ..w
        };
        w.unmap_one(w.page);
        w.fault_wanted(w.page.plus(2));
        let user = other.spawn(1, |w| assert!(w.write(8)));
        assert!(other.collapse().is_ok());
        user.join().unwrap();
        assert!(w.paging.lookup(w.space, other.page).unwrap().dirty);
        assert_eq!(other.read(), Some((8, 8)));
        w.check_collapse(0, 1);
    });
}

#[test]
fn collapse_against_many_writes() {
    // The first page of the range is copied soon after the table was hidden, so a write that began before may be lost
    // if nobody waits for it. There are so many that one is under way then.
    explore_in(3, RUNS, |w| {
        let page = w.page.huge_base();
        w.fault_wanted(page);
        let other = World { page, ..w };
        let user = other.spawn(1, |w| {
            for value in 100..500 {
                assert!(w.write(value));
                assert_eq!(w.read(), Some((value, value)));
            }
        });
        assert!(other.collapse().is_ok());
        user.join().unwrap();
        w.check_collapse(0, 1);
    });
}

#[test]
fn collapse_against_fault() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            let fault = w.fault(w.page.plus(2));
            // Either it comes first, or it finds the huge page.
            assert_ne!(fault.fresh, fault.huge);
        });
        let collapsed = w.collapse().unwrap();
        assert!(collapsed.copied == 2 || collapsed.copied == 3);
        user.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        w.check_collapse(0, 1);
    });
}

#[test]
fn collapse_against_unmap() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            w.unmap_one(w.page);
            assert_eq!(w.read(), None);
        });
        let result = w.collapse();
        user.join().unwrap();
        match result {
            Ok(_) => w.check_collapse(511, 0),
            Err(error) => {
                assert_eq!(error, CollapseError::NotEligible);
                w.check_collapse(1, 0);
            }
        }
    });
}

#[test]
fn collapse_against_migrate() {
    explore_collapse(|w| {
        let mover = w.spawn(1, |w| {
            w.move_frame();
        });
        let result = w.collapse();
        mover.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        match result {
            Ok(_) => w.check_collapse(0, 1),
            Err(error) => {
                assert_eq!(error, CollapseError::Busy);
                w.check_collapse(2, 0);
            }
        }
    });
}

#[test]
fn pitfall_71_collapse_against_isolation() {
    // The first page is isolated by the collapse before it comes to the one that somebody else has isolated since the
    // look.
    explore_collapse(|w| {
        w.fault_wanted(w.page.huge_base());
        let user = w.spawn(1, |w| {
            for _ in 0..100 {
                if w.paging.isolate(w.frame) {
                    w.paging.putback(w.frame);
                }
            }
        });
        let result = w.collapse();
        user.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        match result {
            Ok(_) => w.check_collapse(0, 1),
            Err(error) => {
                assert_eq!(error, CollapseError::Busy);
                w.check_collapse(3, 0);
            }
        }
    });
}

#[test]
fn collapse_against_destroy() {
    explore_collapse(|w| {
        let user = w.spawn(1, |w| {
            let gone = w.paging.destroy_space(w.space);
            assert!(gone == 2 || gone == 512);
        });
        let _ = w.collapse();
        user.join().unwrap();
        assert_eq!(w.read(), None);
        w.check_collapse(0, 0);
    });
}

#[test]
fn collapse_against_pin() {
    explore_collapse(|w| {
        let pinner = w.spawn(1, |w| {
            let frame = w.paging.pin(w.space, w.page).unwrap();
            assert_eq!(w.guest.read_word(frame, 0), 7);
            assert_eq!(w.paging.translate(w.space, w.page), Some(frame));
            w.paging.unpin(frame);
        });
        let huge = w.collapse().is_ok();
        pinner.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        match huge {
            true => w.check_collapse(0, 1),
            false => w.check_collapse(2, 0),
        }
    });
}

#[test]
fn collapse_against_collapse() {
    explore_collapse(|w| {
        let other = w.spawn(1, |w| {
            let looks = (0..2).map(|_| w.paging.translate(w.space, w.page));
            assert!(looks.into_iter().all(|frame| frame.is_some()));
            let _ = w.collapse();
        });
        let _ = w.collapse();
        other.join().unwrap();
        assert_eq!(w.read(), Some((7, 7)));
        w.check_collapse(0, 1);
    });
}

#[test]
fn the_first_write_against_migrate() {
    explore(|w| {
        // Mapped and never written: the dirty mark must not be lost, however late it is set.
        let page = w.page.plus(1);
        let frame = w.fault(page).frame;
        let other = World { page, frame, ..w };
        let user = other.spawn(1, |w| assert!(w.write(8)));
        assert_eq!(other.move_frame(), Outcome::Moved);
        user.join().unwrap();
        assert!(w.paging.lookup(w.space, page).unwrap().dirty);
        assert_eq!(other.read(), Some((8, 8)));
        w.check(2);
    });
}

#[test]
fn the_first_write_against_unmap() {
    explore(|w| {
        // The neighbour keeps the table in use, so that the audit finds a late mark in an empty entry.
        let page = w.page.plus(1);
        let other = World {
            page,
            frame: w.fault(page).frame,
            ..w
        };
        let user = other.spawn(1, |w| {
            w.write(8);
        });
        assert_eq!(w.paging.unmap(w.space, page..page.plus(1)), 1);
        // The frame has a new user, whose contents must not change.
        let again = w
            .source
            .alloc(dirigible_frames::AllocRequest::movable())
            .unwrap();
        w.guest.write_word(again, 0, 1);
        w.guest.write_word(again, 1, 1);
        user.join().unwrap();
        assert_eq!(
            (w.guest.read_word(again, 0), w.guest.read_word(again, 1)),
            (1, 1)
        );
        w.source.free(again, Order::BASE);
        w.check(1);
    });
}

#[test]
fn fault_against_destroy() {
    explore(|w| {
        let user = w.spawn(1, |w| {
            for page in [w.page.plus(1), w.page.plus(5_000_000)] {
                let _ = w.paging.fault(w.space, page, FaultKind::Base, w.source);
            }
        });
        assert!(w.paging.destroy_space(w.space) >= 1);
        user.join().unwrap();
        w.check(0);
        assert_eq!(
            w.frames.class_frames().unmovable,
            0,
            "a table was left behind"
        );
    });
}

#[test]
fn access_against_the_end_of_an_empty_space() {
    explore(|w| {
        assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        // Often enough that a walk is in the root table when it is freed.
        let reader = w.spawn(1, |w| (0..200).for_each(|_| assert_eq!(w.read(), None)));
        assert_eq!(w.paging.destroy_space(w.space), 0);
        // The root's next user writes words that a walk must not take for entries.
        let root = w
            .source
            .alloc(dirigible_frames::AllocRequest::unmovable())
            .unwrap();
        w.guest.write_word(root, 0, u64::MAX);
        reader.join().unwrap();
        w.source.free(root, Order::BASE);
        w.check(0);
    });
}

#[test]
fn two_unpins_of_an_unmapped_frame() {
    explore(|w| {
        let frame = w.paging.pin(w.space, w.page).unwrap();
        assert_eq!(w.paging.pin(w.space, w.page), Some(frame));
        assert_eq!(w.paging.unmap(w.space, w.page..w.page.plus(1)), 1);
        let other = w.spawn(1, move |w| w.paging.unpin(frame));
        w.paging.unpin(frame);
        other.join().unwrap();
        w.check(0);
    });
}
