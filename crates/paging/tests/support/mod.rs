//! A guest for tests: memory as a vector of atomic words, CPUs as threads, and everything above it wired up. It is
//! leaked: allocator, mobility and paging refer to each other.
#![allow(dead_code)]

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use dirigible_frames::{
    AllocRequest, Config, Cost, CpuId, Event, Fallback, FrameAllocator, Order, OwnerClass, Pfn,
    Placement, Platform, Watermarks, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility, MovePair, Outcome};
use dirigible_paging::{
    Audit, FaultKind, FreeFrames, MoveObserver, OutOfMemory, Page, PageSource, Paging, SpaceId,
};

pub const WORDS: usize = 512;
pub const CPUS: u16 = 4;
/// First frame of the guest's memory: not 0, so that a forgotten base shows.
pub const BASE: u64 = 1024;

thread_local! {
    static CPU: Cell<u16> = const { Cell::new(0) };
}

/// Makes the calling thread CPU `number`, which no other thread is at the time.
pub fn run_on(number: u16) {
    assert!(number < CPUS);
    CPU.set(number);
}

/// The platform: frame `BASE + i` is words `512 i` to `512 i + 511`.
pub struct MockGuest {
    words: Vec<AtomicU64>,
    /// For each CPU: odd inside an access section.
    sections: [AtomicU64; CPUS as usize],
    pub clock: AtomicU64,
    pub shoot_downs: AtomicU64,
    pub moved: AtomicU64,
    pub filled: AtomicU64,
    pub faults: AtomicU64,
    pub relaxed: AtomicU64,
}

impl MockGuest {
    pub fn new(frames: usize) -> Self {
        Self {
            words: (0..frames * WORDS)
                .map(|_| AtomicU64::new(0xdead))
                .collect(),
            sections: Default::default(),
            clock: AtomicU64::new(0),
            shoot_downs: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            relaxed: AtomicU64::new(0),
        }
    }

    fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        &self.words[(frame.get() - BASE) as usize * WORDS + index]
    }
}

impl Platform for MockGuest {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.get())
    }
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
    fn charge(&self, cost: Cost) {
        match cost {
            Cost::MoveFrame(n) => self.moved.fetch_add(n.into(), Ordering::Relaxed),
            Cost::FillFrame => self.filled.fetch_add(1, Ordering::Relaxed),
            Cost::Fault => self.faults.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        self.word(frame, index).load(Ordering::Relaxed)
    }
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        self.word(frame, index).store(value, Ordering::Relaxed);
    }
    fn copy_frames(&self, from: Pfn, to: Pfn, count: usize) {
        for i in 0..count as u64 {
            for index in 0..WORDS {
                self.write_word(to.plus(i), index, self.read_word(from.plus(i), index));
            }
        }
    }
    fn zero_frames(&self, first: Pfn, count: usize) {
        for i in 0..count as u64 {
            (0..WORDS).for_each(|index| self.write_word(first.plus(i), index, 0));
        }
    }
    fn load_entry(&self, table: Pfn, index: usize) -> u64 {
        self.word(table, index).load(Ordering::Acquire)
    }
    fn swap_entry(&self, table: Pfn, index: usize, value: u64) -> u64 {
        self.word(table, index).swap(value, Ordering::AcqRel)
    }
    fn compare_exchange_entry(&self, t: Pfn, i: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.word(t, i)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
    fn or_entry(&self, table: Pfn, index: usize, bits: u64) -> u64 {
        self.word(table, index).fetch_or(bits, Ordering::AcqRel)
    }
    fn enter_access(&self) {
        let was = self.sections[self.cpu().index()].fetch_add(1, Ordering::Relaxed);
        assert!(was % 2 == 0, "access sections do not nest");
        // Pairs with the fence in `shoot_down`: either it sees the section, or the walk sees the new entry.
        fence(Ordering::SeqCst);
    }
    fn leave_access(&self) {
        // Release: what was done in the section comes before what follows a shoot-down that waited for it.
        let was = self.sections[self.cpu().index()].fetch_add(1, Ordering::Release);
        assert!(was % 2 == 1);
    }
    fn shoot_down(&self, _space: u32, _address: u64) {
        self.shoot_downs.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for section in &self.sections {
            let seen = section.load(Ordering::Acquire);
            while seen % 2 == 1 && section.load(Ordering::Acquire) == seen {
                std::thread::yield_now();
            }
        }
    }
    fn relax(&self) {
        self.relaxed.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
    }
}

/// A source that gives so many allocations and then none.
pub struct Rationed<'a> {
    pub source: &'a dyn PageSource,
    pub left: AtomicUsize,
    /// Huge frames are not given at all.
    pub no_huge: bool,
}

impl<'a> Rationed<'a> {
    pub fn new(source: &'a dyn PageSource, left: usize) -> Self {
        Self {
            source,
            left: AtomicUsize::new(left),
            no_huge: false,
        }
    }
}

impl PageSource for Rationed<'_> {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        if self.no_huge && request.order == Order::HUGE {
            return Err(OutOfMemory);
        }
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .map_err(|_| OutOfMemory)?;
        self.source.alloc(request)
    }
    fn free(&self, frame: Pfn, order: Order) {
        self.source.free(frame, order);
    }
}

/// Writes down what it was shown, and checks that nobody else sees it yet.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<(SpaceId, Page, Pfn, Order)>>);

impl MoveObserver for Notes {
    fn moved(&self, space: SpaceId, page: Page, frame: Pfn, order: Order) {
        self.0.lock().unwrap().push((space, page, frame, order));
    }
}

pub struct World {
    pub guest: &'static MockGuest,
    pub frames: &'static FrameAllocator<'static>,
    pub mobility: &'static Mobility<'static, MockGuest>,
    pub paging: &'static Paging<'static, MockGuest>,
    pub source: &'static FreeFrames<'static, MockGuest>,
    pub notes: &'static Notes,
}

pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A guest of `blocks` blocks without watermarks.
pub fn world(blocks: u64) -> World {
    world_with(blocks, Placement::LowestFirst, Fallback::Steal, 0)
}

pub fn world_with(blocks: u64, placement: Placement, fallback: Fallback, min: u64) -> World {
    let range = Pfn::new(BASE)..Pfn::new(BASE + blocks * 512);
    let layout = Config {
        zones: &[ZoneConfig {
            name: "test",
            ranges: &[range],
            watermarks: Watermarks {
                min,
                low: min,
                high: min,
            },
            reserve_blocks: 0,
        }],
        reserved: &[],
        cpus: CPUS,
        placement,
        fallback,
    };
    let metadata = vec![0u8; FrameAllocator::metadata_bytes(&layout).unwrap()].leak();
    let frames = leak(FrameAllocator::new(&layout, metadata).unwrap());
    let guest = leak(MockGuest::new(blocks as usize * 512));
    let mobility = leak(Mobility::new(frames, guest, CompactionConfig::default()));
    let notes = leak(Notes::default());
    let class = OwnerClass::new(1).unwrap();
    let paging = leak(Paging::new(frames, guest, class, 8).observed_by(notes));
    mobility.register(class, paging).unwrap();
    let source = leak(FreeFrames::new(frames, guest));
    World {
        guest,
        frames,
        mobility,
        paging,
        source,
        notes,
    }
}

impl World {
    pub fn space(&self) -> SpaceId {
        self.paging.create_space(self.source).unwrap()
    }

    /// Faults a base page in and gives its frame.
    pub fn map(&self, space: SpaceId, page: u64) -> Pfn {
        self.fault(space, page, FaultKind::Base)
    }

    /// Faults a page in, huge if possible.
    pub fn map_huge(&self, space: SpaceId, page: u64) -> Pfn {
        self.fault(space, page, FaultKind::HugeIfPossible)
    }

    fn fault(&self, space: SpaceId, page: u64, kind: FaultKind) -> Pfn {
        self.paging
            .fault(space, Page::new(page), kind, self.source)
            .unwrap()
            .frame
    }

    pub fn unmap(&self, space: SpaceId, pages: std::ops::Range<u64>) -> usize {
        self.paging
            .unmap(space, Page::new(pages.start)..Page::new(pages.end))
    }

    /// Writes one word of a page, as a program does.
    pub fn write(&self, space: SpaceId, page: u64, index: usize, value: u64) {
        self.paging
            .access(space, Page::new(page), true, |frame| {
                self.guest.write_word(frame, index, value)
            })
            .expect("mapped");
    }

    /// Reads one word of a page, as a program does.
    pub fn read(&self, space: SpaceId, page: u64, index: usize) -> Option<u64> {
        self.paging.access(space, Page::new(page), false, |frame| {
            self.guest.read_word(frame, index)
        })
    }

    pub fn event(&self, event: Event) -> u64 {
        self.frames.events().get(event)
    }

    /// A frame that is nobody's yet, for a move's target.
    pub fn target(&self, order: Order) -> Pfn {
        let request = AllocRequest::new(order, dirigible_frames::FrameClass::Movable);
        self.source.alloc(request).unwrap()
    }

    /// Isolates and moves one allocation through mobility; what became of it.
    pub fn move_frame(&self, from: Pfn, order: Order) -> Outcome {
        let to = self.target(order);
        if !self.mobility.isolate(from) {
            self.source.free(to, order);
            return Outcome::Refused;
        }
        let mut pairs = [MovePair {
            from,
            to,
            order,
            outcome: Outcome::Todo,
        }];
        self.mobility.migrate_frames(&mut pairs);
        pairs[0].outcome
    }

    /// Everything agrees, and nothing is under way.
    pub fn check_at_rest(&self) -> Audit {
        let audit = self.paging.audit().unwrap();
        assert_eq!((audit.migration_entries, audit.isolated), (0, 0));
        assert_eq!(self.mobility.isolated_frames(), 0);
        self.frames.verify().unwrap();
        self.mobility.verify().unwrap();
        self.frames.drain_cpu_caches();
        let counts = self.frames.class_frames();
        assert_eq!(
            counts.movable,
            audit.frames(),
            "anonymous frames lost or found"
        );
        assert_eq!(counts.unmovable, audit.tables, "table frames lost or found");
        audit
    }
}
