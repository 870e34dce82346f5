//! Khugepaged's pace, and what it leaves in the page tables.

#[path = "../../paging/tests/support/guest.rs"]
#[allow(dead_code)]
mod guest;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dirigible::daemon::{Daemon, Next};
use dirigible::khugepaged::{Khugepaged, KhugepagedConfig};
use dirigible_frames::{
    AllocRequest, Config, Event, Fallback, FrameAllocator, FrameContents, Order, OwnerId, Pfn,
    Placement, Watermarks, ZoneConfig,
};
use dirigible_paging::{FaultKind, FreeFrames, OutOfMemory, Page, PageSource, Paging, SpaceId};
use guest::{BASE, CPUS, MockGuest};

const SECOND: u64 = 1_000_000_000;
const BLOCKS: u64 = 32;

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Gives huge pages only while it is told to.
struct Source {
    free: FreeFrames<'static, MockGuest>,
    huge: AtomicBool,
    asked: AtomicUsize,
}

impl PageSource for Source {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        if request.order == Order::HUGE {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if !self.huge.load(Ordering::Relaxed) {
                return Err(OutOfMemory);
            }
        }
        self.free.alloc(request)
    }
    fn free(&self, frame: Pfn, order: Order) {
        self.free.free(frame, order);
    }
}

struct World {
    frames: &'static FrameAllocator<'static>,
    guest: &'static MockGuest,
    paging: &'static Paging<'static, MockGuest>,
    source: &'static Source,
}

impl World {
    fn new() -> Self {
        let range = Pfn::new(BASE)..Pfn::new(BASE + BLOCKS * 512);
        let none = Watermarks {
            min: 0,
            low: 0,
            high: 0,
        };
        let layout = Config {
            zones: &[ZoneConfig {
                name: "test",
                ranges: &[range],
                watermarks: none,
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
        let guest = leak(MockGuest::new(BLOCKS as usize * 512));
        let owner = OwnerId::new(1).unwrap();
        let paging = leak(Paging::new(frames, guest, owner, 4));
        let source = leak(Source {
            free: FreeFrames::new(frames, guest),
            huge: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
        });
        Self {
            frames,
            guest,
            paging,
            source,
        }
    }

    /// A space with a page in each of so many ranges, which the program wanted to be huge.
    fn program(&self, regions: u64) -> SpaceId {
        self.source.huge.store(false, Ordering::Relaxed);
        let space = self.paging.create_space(self.source).unwrap();
        for region in 0..regions {
            let page = Page::new(region * 512 + region);
            let kind = FaultKind::HugeIfPossible;
            let fill = |frame, _| self.fill(space, page, frame);
            self.paging
                .fault_filled(space, page, kind, self.source, fill)
                .unwrap();
        }
        self.source.huge.store(true, Ordering::Relaxed);
        self.source.asked.store(0, Ordering::Relaxed);
        space
    }

    fn fill(&self, space: SpaceId, page: Page, frame: Pfn) {
        self.guest
            .write_word(frame, 1, u64::from(space.get()) << 40 | page.get());
    }

    fn check(&self) {
        self.paging.audit().unwrap();
        self.frames.verify().unwrap();
    }
}

#[test]
fn it_collapses_eight_ranges_a_pass_and_rests() {
    let w = World::new();
    let spaces = [w.program(7), w.program(5)];
    let fill = |space, page, frame| w.fill(space, page, frame);
    let config = KhugepagedConfig::default();
    let mut daemon = Khugepaged::new(w.paging, w.source, &fill, config);
    let collapsed = || w.frames.events().get(Event::ThpCollapse);
    let mut now = 5;
    for passed in [8, 12] {
        // Each step collapses one range at most.
        let mut before = collapsed();
        while daemon.step(now) == Next::At(now) {
            assert!(collapsed() <= before + 1);
            before = collapsed();
        }
        assert_eq!(collapsed(), passed);
        now += 10 * SECOND;
        w.check();
    }
    assert_eq!(daemon.step(now), Next::At(now + 10 * SECOND));
    assert_eq!(collapsed(), 12);
    for (space, regions) in spaces.into_iter().zip([7, 5]) {
        let usage = w.paging.usage(space).unwrap();
        assert_eq!((usage.base, usage.huge), (0, regions));
        for page in (0..regions * 512).map(Page::new) {
            let word = w
                .paging
                .access(space, page, false, |frame| w.guest.read_word(frame, 1));
            assert_eq!(word, Some(u64::from(space.get()) << 40 | page.get()));
        }
    }
}

#[test]
fn without_a_huge_page_it_rests_longer_and_goes_on_behind_that_range() {
    let w = World::new();
    let space = w.program(3);
    w.source.huge.store(false, Ordering::Relaxed);
    let fill = |space, page, frame| w.fill(space, page, frame);
    let config = KhugepagedConfig::default();
    let mut daemon = Khugepaged::new(w.paging, w.source, &fill, config);
    for round in 1..3 {
        assert_eq!(daemon.step(7), Next::At(7 + 60 * SECOND));
        assert_eq!(w.source.asked.load(Ordering::Relaxed), round);
    }
    w.source.huge.store(true, Ordering::Relaxed);
    assert_eq!(daemon.step(8), Next::At(8));
    let is_huge = |region: u64| {
        let mapping = w.paging.lookup(space, Page::new(region * 512 + region));
        mapping.unwrap().huge
    };
    assert_eq!([0, 1, 2].map(is_huge), [false, false, true]);
    // The others come in the next round.
    while daemon.step(9) == Next::At(9) {}
    while daemon.step(9) == Next::At(9) {}
    assert_eq!([0, 1, 2].map(is_huge), [true, true, true]);
    assert_eq!(w.frames.events().get(Event::ThpCollapseAllocFailed), 2);
    w.check();
}

#[test]
fn nothing_to_do_costs_no_allocation_and_no_step_more() {
    let w = World::new();
    let space = w.program(2);
    let fill = |space, page, frame| w.fill(space, page, frame);
    let config = KhugepagedConfig::default();
    let mut daemon = Khugepaged::new(w.paging, w.source, &fill, config);
    // Both ranges are given back in part.
    for region in 0..2 {
        let last = Page::new(region * 512 + 511);
        w.paging.unmap(space, last..last.plus(1));
    }
    for now in 0..3 {
        assert_eq!(daemon.step(now), Next::At(now + 10 * SECOND));
    }
    assert_eq!(w.source.asked.load(Ordering::Relaxed), 0);
    w.paging.destroy_space(space);
    assert_eq!(daemon.step(4), Next::At(4 + 10 * SECOND));
    w.check();
}
