// The world of the model-checked tests: a block of memory or a few, one space, one page with known contents.
#![allow(dead_code, unused_imports)]

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64 as RawU64, Ordering::SeqCst};

use dirigible_frames::{
    Config, CpuId, Fallback, FrameAllocator, FrameClass, FrameContents, FrameState, Order, OwnerId,
    PageTables, Pfn, Placement, Platform, Watermarks, ZoneConfig,
    sync::{AtomicU64, spin_hint},
};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use dirigible_paging::{Fault, FaultKind, FreeFrames, Page, PageSource, Paging, SpaceId};
use dirigible_reclaim::{Evictable, Generations};

#[path = "swap.rs"]
mod swap;
pub use swap::{MockSwap, Slots};

pub const CPUS: u16 = 3;
/// Number of runs of each test.
pub const RUNS: usize = 300;

shuttle::thread_local! {
    static CPU: Cell<u16> = Cell::new(0);
}

/// One block of memory. Words are plain atomics behind a scheduling point. They are created only for the frames that
/// are used, as each run leaks a world.
pub struct Guest {
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
pub struct World {
    pub guest: &'static Guest,
    pub frames: &'static FrameAllocator<'static>,
    pub paging: &'static Paging<'static, Guest>,
    pub source: &'static FreeFrames<'static, Guest>,
    pub space: SpaceId,
    /// Maps a page, and writes 7 into both words.
    pub page: Page,
    pub frame: Pfn,
    pub swap: Option<Swap>,
}

/// What a world with swap has.
#[derive(Clone, Copy)]
pub struct Swap {
    pub generations: &'static Generations<'static>,
    pub space: &'static MockSwap<Guest>,
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl World {
    pub fn new() -> Self {
        Self::build(1, false)
    }

    /// With three blocks: room for a huge page.
    pub fn roomy() -> Self {
        Self::build(3, false)
    }

    /// With four slots of swap. The page has not been used since its contents were written.
    pub fn with_swap() -> Self {
        let world = Self::build(1, true);
        Evictable::harvest(world.paging);
        world
    }

    fn build(blocks: u64, swaps: bool) -> Self {
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
        let mut paging = Paging::new(frames, guest, OwnerId::new(1).unwrap(), 2);
        let swap = swaps.then(|| Swap {
            generations: leak(Generations::new(frames)),
            space: leak(MockSwap::new(frames, guest, 4, &[0, 1])),
        });
        if let Some(Swap { generations, space }) = swap {
            paging = paging.with_swap(generations, space);
        }
        let paging = leak(paging);
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
            swap,
        };
        assert!(world.write(7));
        world
    }

    pub fn fault(&self, page: Page) -> Fault {
        self.paging
            .fault(self.space, page, FaultKind::Base, self.source)
            .unwrap()
    }

    pub fn write(&self, value: u64) -> bool {
        let write = |frame| {
            self.guest.write_word(frame, 0, value);
            self.guest.write_word(frame, 1, value);
        };
        self.paging
            .access(self.space, self.page, true, write)
            .is_some()
    }

    pub fn read(&self) -> Option<(u64, u64)> {
        let read = |frame| {
            (
                self.guest.read_word(frame, 0),
                self.guest.read_word(frame, 1),
            )
        };
        self.paging.access(self.space, self.page, false, read)
    }

    /// Moves one frame, as compaction does.
    pub fn move_frame(&self) -> Outcome {
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

    /// Gives the page's first frame to swap, as reclaim does, if it can be isolated; gives whether it went there.
    pub fn swap_out(&self) -> bool {
        let isolated = self.frames.try_isolate(self.frame, self.paging.owner_id());
        isolated.is_ok() && self.paging.swap_out(&[self.frame]) == 1
    }

    /// Reads the page, and brings it into memory for that.
    pub fn read_or_fault(&self) -> (u64, u64) {
        loop {
            if let Some(words) = self.read() {
                return words;
            }
            assert!(!self.fault(self.page).fresh, "contents lost");
        }
    }

    /// Writes the page, and brings it into memory for that.
    pub fn write_or_fault(&self, value: u64) {
        while !self.write(value) {
            assert!(!self.fault(self.page).fresh, "contents lost");
        }
    }

    pub fn spawn(
        self,
        cpu: u16,
        act: impl FnOnce(Self) + Send + 'static,
    ) -> shuttle::thread::JoinHandle<()> {
        shuttle::thread::spawn(move || {
            CPU.with(|cell| cell.set(cpu));
            act(self);
        })
    }

    pub fn check(&self, mapped: u64) {
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
        let mut cached = 0;
        if let Some(Swap { generations, space }) = self.swap {
            let slots = space.slots();
            assert_eq!((slots.taken, slots.promised), (0, 0));
            assert_eq!(slots.used(), audit.swapped, "slots lost or found");
            cached = slots.cached;
            let sizes = generations.verify().unwrap().sizes;
            assert_eq!(sizes.iter().sum::<u64>(), mapped);
        }
        assert_eq!(self.frames.class_frames().movable, mapped + cached);
    }
}

/// Runs `test` with worlds without swap.
pub fn explore(test: impl Fn(World) + Send + Sync + 'static) {
    explore_in(World::new, test);
}

/// Half of the runs switch threads at every step, the other half seldom: some errors appear only if one thread stops
/// while another makes many steps.
pub fn explore_in(make: fn() -> World, test: impl Fn(World) + Send + Sync + 'static) {
    explore_often(RUNS, make, test);
}

/// The same, `runs` times.
pub fn explore_often(
    runs: usize,
    make: fn() -> World,
    test: impl Fn(World) + Send + Sync + 'static,
) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let mut config = shuttle::Config::new();
    // The default is 32 KiB; the allocator's batches need more if it is not optimized.
    config.stack_size = 1 << 20;
    let test = std::sync::Arc::new(test);
    let seldom = test.clone();
    shuttle::Runner::new(RandomScheduler::new(runs / 2), config.clone()).run(move || test(make()));
    shuttle::Runner::new(PctScheduler::new(3, runs / 2), config).run(move || seldom(make()));
}
