//! The memory manager for tests, on the machine of `guest.rs`. It is leaked, as its parts refer to each other.
#![allow(dead_code, unused_imports)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dirigible_frames::{
    AllocRequest, Config, Event, Fallback, FrameAllocator, FrameContents, Order, OwnerId,
    PageTables, Pfn, Placement, Platform, Watermarks, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility, MovePair, Outcome};
use dirigible_paging::{
    Audit, FaultKind, FreeFrames, MoveObserver, OutOfMemory, Page, PageSource, Paging, SpaceId,
};
use dirigible_reclaim::{Evictable, Generations};

mod guest;
mod swap;
pub use guest::{BASE, CPUS, MockGuest, WORDS, run_on};
pub use swap::{MockSwap, Slots};

/// A source that fails after `left` allocations.
pub struct Rationed<'a> {
    pub source: &'a dyn PageSource,
    pub left: AtomicUsize,
    /// Requests for huge pages always fail.
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

/// Records each migration.
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
    pub swap: Option<Swap>,
}

/// What a world with swap has.
#[derive(Clone, Copy)]
pub struct Swap {
    pub generations: &'static Generations<'static>,
    pub space: &'static MockSwap<MockGuest>,
}

/// All words of a page.
const ALL_WORDS: [usize; WORDS] = {
    let mut words = [0; WORDS];
    let mut index = 0;
    while index < WORDS {
        words[index] = index;
        index += 1;
    }
    words
};

pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A guest of `blocks` blocks without watermarks.
pub fn world(blocks: u64) -> World {
    world_with(blocks, Placement::LowestFirst, Fallback::Steal, 0)
}

pub fn world_with(blocks: u64, placement: Placement, fallback: Fallback, min: u64) -> World {
    build(blocks, placement, fallback, min, 0, None, 0)
}

/// The same, with a reserve of `reserve_blocks` whole blocks.
pub fn world_with_reserve(blocks: u64, fallback: Fallback, reserve_blocks: u32) -> World {
    let placement = Placement::LowestFirst;
    build(blocks, placement, fallback, 0, reserve_blocks, None, 0)
}

/// The root of the kernel's own tables in a world with a kernel half. Two more tables follow it.
pub const TEMPLATE: Pfn = Pfn::new(BASE);
const TEMPLATE_TABLES: u64 = 3;

/// A guest of `blocks` blocks without watermarks, whose pages can go to `slots` slots.
pub fn world_with_swap(blocks: u64, slots: usize) -> World {
    let (placement, fallback) = (Placement::LowestFirst, Fallback::Steal);
    build(blocks, placement, fallback, 0, 0, None, slots)
}

/// A guest whose spaces share the upper half of [`TEMPLATE`], which has entries in both halves.
pub fn world_with_kernel_half(blocks: u64) -> World {
    let kept = TEMPLATE..TEMPLATE.plus(TEMPLATE_TABLES);
    let (placement, fallback) = (Placement::LowestFirst, Fallback::Steal);
    let w = build(blocks, placement, fallback, 0, 0, Some(kept), 0);
    for table in 0..TEMPLATE_TABLES {
        w.guest.zero_frames(TEMPLATE.plus(table), 1);
    }
    // Present, writable, accessed. Two entries name the same table, and 300 stays empty.
    for (table, index, to) in [(0, 0, 1), (0, 256, 1), (0, 511, 1), (1, 3, 2), (2, 511, 0)] {
        let bits = TEMPLATE.plus(to).address() | 0x23;
        w.guest.swap_entry(TEMPLATE.plus(table), index, bits);
    }
    w
}

fn build(
    blocks: u64,
    placement: Placement,
    fallback: Fallback,
    min: u64,
    reserve_blocks: u32,
    kept: Option<std::ops::Range<Pfn>>,
    slots: usize,
) -> World {
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
            reserve_blocks,
        }],
        reserved: kept.as_slice(),
        cpus: CPUS,
        placement,
        fallback,
        ..Config::default()
    };
    let metadata = vec![0u8; FrameAllocator::metadata_bytes(&layout).unwrap()].leak();
    let frames = leak(FrameAllocator::new(&layout, metadata).unwrap());
    let guest = leak(MockGuest::new(blocks as usize * 512));
    let mobility = leak(Mobility::new(frames, guest, CompactionConfig::default()));
    let notes = leak(Notes::default());
    let owner = OwnerId::new(1).unwrap();
    let mut paging = Paging::new(frames, guest, owner, 8).observed_by(notes);
    if let Some(kept) = &kept {
        paging = paging.with_kernel_half(kept.start);
    }
    let swap = (slots > 0).then(|| Swap {
        generations: leak(Generations::new(frames)),
        space: leak(MockSwap::new(frames, guest, slots, &ALL_WORDS)),
    });
    if let Some(Swap { generations, space }) = swap {
        paging = paging.with_swap(generations, space);
    }
    let paging = leak(paging);
    mobility.register(owner, paging).unwrap();
    let source = leak(FreeFrames::new(frames, guest));
    World {
        guest,
        frames,
        mobility,
        paging,
        source,
        notes,
        swap,
    }
}

impl World {
    pub fn space(&self) -> SpaceId {
        self.paging.create_space(self.source).unwrap()
    }

    /// Maps a base page and gives its frame.
    pub fn map(&self, space: SpaceId, page: u64) -> Pfn {
        self.fault(space, page, FaultKind::Base)
    }

    /// Maps a page, huge if possible, and gives its frame.
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

    /// All words of the kernel's own tables.
    pub fn kernel_tables(&self) -> Vec<u64> {
        let tables = (0..TEMPLATE_TABLES).map(|table| TEMPLATE.plus(table));
        tables
            .flat_map(|table| (0..WORDS).map(move |index| self.guest.load_entry(table, index)))
            .collect()
    }

    pub fn event(&self, event: Event) -> u64 {
        self.frames.events().get(event)
    }

    /// Allocates the target of a move.
    pub fn target(&self, order: Order) -> Pfn {
        let request = AllocRequest::new(order, dirigible_frames::FrameClass::Movable);
        self.source.alloc(request).unwrap()
    }

    /// Isolates and moves one frame or huge page through mobility; gives the outcome.
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

    /// The swap and the ages of a world that has them.
    pub fn swap(&self) -> Swap {
        self.swap.expect("a world with swap")
    }

    /// Frames in all generations.
    pub fn aged(&self) -> u64 {
        self.swap().generations.verify().unwrap().sizes.iter().sum()
    }

    /// Forgets which pages were used.
    pub fn harvest(&self) {
        Evictable::harvest(self.paging);
    }

    /// Isolates frames as reclaim does, and gives them to swap; gives how many went there.
    pub fn swap_out(&self, frames: &[Pfn]) -> usize {
        for &frame in frames {
            let isolated = self.frames.try_isolate(frame, self.paging.owner_id());
            isolated.unwrap();
        }
        self.paging.swap_out(frames)
    }

    /// Checks that all books agree, and that nothing is being moved.
    pub fn check_at_rest(&self) -> Audit {
        let audit = self.paging.audit().unwrap();
        assert_eq!((audit.migration_entries, audit.isolated), (0, 0));
        let totals = self.paging.totals();
        assert_eq!(
            (totals.frames(), totals.tables),
            (audit.frames(), audit.tables)
        );
        assert_eq!(self.mobility.isolated_frames(), 0);
        self.frames.verify().unwrap();
        self.mobility.verify().unwrap();
        self.frames.drain_cpu_caches();
        let mut cached = 0;
        if let Some(Swap { generations, space }) = self.swap {
            let slots = space.slots();
            cached = slots.cached;
            assert_eq!(slots.used(), audit.swapped, "slots lost or found");
            assert_eq!((slots.taken, slots.promised), (0, 0));
            let ages = generations.verify().unwrap();
            let mapped = audit.base + audit.huge;
            assert!(ages.sizes.iter().sum::<u64>() <= mapped);
        }
        assert_eq!(totals.swapped, audit.swapped);
        let counts = self.frames.class_frames();
        assert_eq!(
            counts.movable,
            audit.frames() + cached,
            "anonymous frames lost or found"
        );
        assert_eq!(counts.unmovable, audit.tables, "table frames lost or found");
        audit
    }
}
