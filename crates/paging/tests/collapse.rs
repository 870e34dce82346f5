//! Collapse: base pages become a huge page, with their contents, and whatever is in the way leaves everything as it
//! was.

mod support;

use std::sync::Mutex;

use dirigible_frames::{AllocRequest, Event, FrameState, Order, OwnerId, PageTables, Pfn};
use dirigible_mobility::{MovableOwner, Outcome};
use dirigible_paging::{
    CollapseConfig, CollapseCursor, CollapseError, Collapsed, FaultKind, OutOfMemory, Page,
    PageSource, Paging, SpaceId, SwapError, SwapSpace,
};
use dirigible_reclaim::{Age, Generations};
use support::{Rationed, World, world};

/// The first page of a 2 MiB range.
const BASE_PAGE: u64 = 512 * 7;
/// What pages hold that a collapse has filled.
const FILLED: u64 = 0x5eed_0000;

impl World {
    /// Maps a base page by a fault that wants a huge page, and writes a word.
    fn wanted(&self, space: SpaceId, page: u64, value: u64) -> Pfn {
        let mut source = Rationed::new(self.source, usize::MAX);
        source.no_huge = true;
        let fault = self
            .paging
            .fault(space, Page::new(page), FaultKind::HugeIfPossible, &source)
            .unwrap();
        self.write(space, page, 5, value);
        fault.frame
    }

    fn collapse(&self, space: SpaceId, page: u64) -> Result<Collapsed, CollapseError> {
        self.collapse_with(space, page, CollapseConfig::default(), self.source)
    }

    fn collapse_with(
        &self,
        space: SpaceId,
        page: u64,
        config: CollapseConfig,
        memory: &dyn PageSource,
    ) -> Result<Collapsed, CollapseError> {
        let fill = |page: Page, frame: Pfn| {
            (0..512).for_each(|index| self.fill_word(frame, index, FILLED + page.get()));
        };
        self.paging
            .collapse(space, Page::new(page), config, memory, fill)
    }

    fn fill_word(&self, frame: Pfn, index: usize, value: u64) {
        dirigible_frames::FrameContents::write_word(self.guest, frame, index, value);
    }

    fn is_huge(&self, space: SpaceId, page: u64) -> bool {
        let mapping = self.paging.lookup(space, Page::new(page));
        mapping.is_some_and(|mapping| mapping.huge)
    }
}

#[test]
fn contents_are_kept_and_the_rest_is_filled() {
    let w = world(8);
    let space = w.space();
    let pages = [0, 1, 77, 300, 511].map(|offset| BASE_PAGE + offset);
    for page in pages {
        w.wanted(space, page, page * 3);
    }
    let collapsed = w.collapse(space, BASE_PAGE + 9).unwrap();
    assert_eq!((collapsed.copied, collapsed.filled), (5, 507));
    for offset in 0..512 {
        let page = BASE_PAGE + offset;
        let expected = if pages.contains(&page) {
            page * 3
        } else {
            FILLED + page
        };
        assert_eq!(w.read(space, page, 5), Some(expected));
        let frame = w.paging.translate(space, Page::new(page)).unwrap();
        assert_eq!(frame, collapsed.head.plus(offset));
    }
    assert!(
        w.paging
            .lookup(space, Page::new(BASE_PAGE))
            .unwrap()
            .accessed
    );
    let audit = w.check_at_rest();
    // Root, two tables above the huge page, and the one that is kept for its split.
    assert_eq!((audit.base, audit.huge, audit.tables), (0, 1, 4));
    assert_eq!(w.event(Event::ThpCollapse), 1);
    let notes = w.notes.0.lock().unwrap();
    let told = (space, Page::new(BASE_PAGE), collapsed.head, Order::HUGE);
    assert_eq!(*notes, [told]);
}

#[test]
fn marks_of_the_pages_are_those_of_the_huge_page() {
    for write in [false, true] {
        let w = world(8);
        let space = w.space();
        let mut source = Rationed::new(w.source, usize::MAX);
        source.no_huge = true;
        for page in [BASE_PAGE, BASE_PAGE + 4] {
            w.paging
                .fault(space, Page::new(page), FaultKind::HugeIfPossible, &source)
                .unwrap();
        }
        if write {
            w.write(space, BASE_PAGE + 4, 0, 1);
        }
        w.collapse(space, BASE_PAGE).unwrap();
        let mapping = w.paging.lookup(space, Page::new(BASE_PAGE)).unwrap();
        assert_eq!((mapping.accessed, mapping.dirty), (true, write));
    }
}

#[test]
fn a_collapsed_page_is_split_and_collapsed_again() {
    let w = world(8);
    let space = w.space();
    w.wanted(space, BASE_PAGE, 1);
    for round in 1..5 {
        w.collapse(space, BASE_PAGE).unwrap();
        w.check_at_rest();
        w.paging.split_huge(space, Page::new(BASE_PAGE)).unwrap();
        w.check_at_rest();
        assert_eq!(w.read(space, BASE_PAGE, 5), Some(round));
        w.write(space, BASE_PAGE, 5, round + 1);
    }
    assert_eq!(w.unmap(space, BASE_PAGE..BASE_PAGE + 512), 512);
    assert_eq!(w.check_at_rest().tables, 1);
}

#[test]
fn only_what_a_program_wanted_huge_is_eligible() {
    let w = world(8);
    let space = w.space();
    w.map(space, BASE_PAGE);
    let collapse = |page| w.collapse(space, page).unwrap_err();
    assert_eq!(collapse(BASE_PAGE), CollapseError::NotEligible);
    assert_eq!(collapse(0), CollapseError::NotEligible);
    assert_eq!(
        collapse(Page::LIMIT.get() + BASE_PAGE),
        CollapseError::NotEligible
    );
    w.wanted(space, BASE_PAGE + 1, 1);
    // A page that was never mapped is given back: the range is not the program's any more.
    assert_eq!(w.unmap(space, BASE_PAGE + 90..BASE_PAGE + 91), 0);
    assert_eq!(collapse(BASE_PAGE), CollapseError::NotEligible);
    w.wanted(space, BASE_PAGE + 90, 1);
    w.collapse(space, BASE_PAGE).unwrap();
    assert_eq!(collapse(BASE_PAGE), CollapseError::NotEligible);
    // A part of the huge page is given back.
    assert_eq!(w.unmap(space, BASE_PAGE + 8..BASE_PAGE + 16), 8);
    assert_eq!(collapse(BASE_PAGE), CollapseError::NotEligible);
    assert_eq!(w.check_at_rest().base, 504);
    w.paging.destroy_space(space);
    assert_eq!(collapse(BASE_PAGE), CollapseError::NoSuchSpace);
}

#[test]
fn sparse_and_unused_ranges_stay() {
    let w = world(8);
    let space = w.space();
    for offset in 0..10 {
        w.wanted(space, BASE_PAGE + offset, offset);
    }
    let at_most = |max_none| {
        let config = CollapseConfig { max_none };
        w.collapse_with(space, BASE_PAGE, config, w.source)
    };
    assert_eq!(at_most(501), Err(CollapseError::Sparse));
    let range = Page::new(BASE_PAGE)..Page::new(BASE_PAGE + 512);
    w.paging.harvest(space, range, |_, _, _| {});
    assert_eq!(at_most(502), Err(CollapseError::Unused));
    assert_eq!(w.event(Event::ThpCollapseAlloc), 0);
    assert_eq!(w.read(space, BASE_PAGE + 3, 5), Some(3));
    assert!(at_most(502).is_ok());
    w.check_at_rest();
}

#[test]
fn a_page_in_somebodys_hands_is_in_the_way() {
    let w = world(8);
    let space = w.space();
    let frame = w.wanted(space, BASE_PAGE, 1);
    w.wanted(space, BASE_PAGE + 1, 2);
    let busy = Err(CollapseError::Busy);
    assert_eq!(w.paging.pin(space, Page::new(BASE_PAGE)), Some(frame));
    assert_eq!(w.collapse(space, BASE_PAGE), busy);
    w.paging.unpin(frame);
    assert!(w.paging.isolate(frame));
    assert_eq!(w.collapse(space, BASE_PAGE), busy);
    w.paging.putback(frame);
    assert_eq!(w.event(Event::ThpCollapseAlloc), 0);
    assert!(w.collapse(space, BASE_PAGE).is_ok());
    w.check_at_rest();
}

/// Does something to the range when the huge page is asked for.
struct Meddling<'w, F> {
    w: &'w World,
    act: Mutex<F>,
}

impl<F: FnMut() + Send> PageSource for Meddling<'_, F> {
    fn alloc(&self, request: AllocRequest) -> Result<Pfn, OutOfMemory> {
        (self.act.lock().unwrap())();
        self.w.source.alloc(request)
    }
    fn free(&self, frame: Pfn, order: Order) {
        self.w.source.free(frame, order);
    }
}

#[test]
fn pitfall_71_a_range_that_changes_while_the_huge_page_is_allocated_is_left_alone() {
    let meddle = |act: fn(&World, SpaceId), expected: CollapseError, pages: u64| {
        let w = world(8);
        let space = w.space();
        for offset in 0..4 {
            w.wanted(space, BASE_PAGE + offset, offset);
        }
        let source = Meddling {
            w: &w,
            act: Mutex::new(|| act(&w, space)),
        };
        let result = w.collapse_with(space, BASE_PAGE, CollapseConfig::default(), &source);
        assert_eq!(result, Err(expected));
        assert_eq!(w.event(Event::ThpCollapseAlloc), 1);
        assert_eq!(w.event(Event::ThpCollapse), 0);
        let audit = w.paging.audit().unwrap();
        assert_eq!((audit.migration_entries, audit.frames()), (0, pages));
        // The huge page is free again, and no frame stays isolated but the one that the test has isolated.
        w.frames.drain_cpu_caches();
        assert_eq!(w.frames.class_frames().movable, pages);
        let ours = (0..4).filter_map(|offset| {
            let mapping = w.paging.lookup(space, Page::new(BASE_PAGE + offset))?;
            (!mapping.huge).then_some((offset, mapping.frame))
        });
        for (offset, frame) in ours {
            if w.frames.state(frame) == FrameState::Isolated {
                w.paging.putback(frame);
            }
            assert_eq!(w.read(space, BASE_PAGE + offset, 5), Some(offset));
        }
        w.check_at_rest();
    };
    // Unmapped in part, unmapped, the space gone, unused, isolated by somebody.
    meddle(
        |w, space| assert_eq!(w.unmap(space, BASE_PAGE + 2..BASE_PAGE + 3), 1),
        CollapseError::NotEligible,
        3,
    );
    meddle(
        |w, space| assert_eq!(w.unmap(space, BASE_PAGE..BASE_PAGE + 512), 4),
        CollapseError::NotEligible,
        0,
    );
    meddle(
        |w, space| assert_eq!(w.paging.destroy_space(space), 4),
        CollapseError::NoSuchSpace,
        0,
    );
    meddle(
        |w, space| {
            let range = Page::new(BASE_PAGE)..Page::new(BASE_PAGE + 512);
            w.paging.harvest(space, range, |_, _, _| {});
        },
        CollapseError::Unused,
        4,
    );
    meddle(
        |w, space| {
            let frame = w.paging.translate(space, Page::new(BASE_PAGE + 3)).unwrap();
            assert!(w.paging.isolate(frame));
        },
        CollapseError::Busy,
        4,
    );
}

#[test]
fn a_range_that_another_has_collapsed_meanwhile_is_done() {
    let w = world(8);
    let space = w.space();
    w.wanted(space, BASE_PAGE, 9);
    let source = Meddling {
        w: &w,
        act: Mutex::new(|| {
            w.collapse(space, BASE_PAGE).unwrap();
        }),
    };
    let result = w.collapse_with(space, BASE_PAGE, CollapseConfig::default(), &source);
    assert_eq!(result, Err(CollapseError::NotEligible));
    assert_eq!(w.read(space, BASE_PAGE, 5), Some(9));
    assert_eq!(w.check_at_rest().huge, 1);
}

#[test]
fn pitfall_72_collapse_alloc_counts_allocations() {
    let w = world(8);
    let space = w.space();
    w.wanted(space, BASE_PAGE, 1);
    let none = Rationed::new(w.source, 0);
    let config = CollapseConfig::default();
    for failed in 1..4 {
        let result = w.collapse_with(space, BASE_PAGE, config, &none);
        assert_eq!(result, Err(CollapseError::OutOfMemory));
        let counts = [Event::ThpCollapseAlloc, Event::ThpCollapseAllocFailed].map(|e| w.event(e));
        assert_eq!(counts, [0, failed]);
    }
    // Neither an allocation that is not used, nor a range that needs none, is counted as a collapse.
    w.collapse(space, BASE_PAGE).unwrap();
    w.collapse(space, BASE_PAGE).unwrap_err();
    let events = [
        Event::ThpCollapseAlloc,
        Event::ThpCollapseAllocFailed,
        Event::ThpCollapse,
        Event::ThpFaultAlloc,
    ];
    assert_eq!(events.map(|event| w.event(event)), [1, 3, 1, 0]);
    w.check_at_rest();
}

#[test]
fn the_range_can_be_looked_at_while_it_is_copied() {
    let w = world(8);
    let space = w.space();
    let frame = w.wanted(space, BASE_PAGE + 1, 1);
    let mut looks = 0;
    w.paging
        .collapse(
            space,
            Page::new(BASE_PAGE),
            CollapseConfig::default(),
            w.source,
            |page, to| {
                w.guest.swap_entry(to, 0, 0);
                let mapping = w.paging.lookup(space, Page::new(BASE_PAGE + 1)).unwrap();
                assert_eq!((mapping.frame, mapping.migrating), (frame, true));
                assert!(!mapping.huge && mapping.dirty);
                assert_eq!(w.paging.translate(space, page), None);
                let audit = w.paging.audit().unwrap();
                assert_eq!((audit.base, audit.huge), (1, 0));
                assert_eq!((audit.migration_entries, audit.isolated), (1, 1));
                // The frame is not compaction's to take.
                assert_eq!(w.move_frame(frame, Order::BASE), Outcome::Refused);
                looks += 1;
            },
        )
        .unwrap();
    assert_eq!(looks, 511);
    w.check_at_rest();
}

#[test]
fn the_cursor_finds_each_eligible_range_once_a_round() {
    let w = world(16);
    let spaces = [w.space(), w.space(), w.space()];
    let regions = [0, 3, 700, 300_000, (1 << 27) - 1];
    for space in [spaces[0], spaces[2]] {
        for region in regions {
            w.wanted(space, region * 512 + 8, 1);
        }
        w.map(space, 512 * 5);
    }
    w.paging.destroy_space(spaces[1]);
    let expected: Vec<_> = [spaces[0], spaces[2]]
        .into_iter()
        .flat_map(|space| regions.map(|region| (space, Page::new(region * 512))))
        .collect();
    // In one go, and in pieces as small as they can be.
    for piece in [u64::MAX, 1, 7] {
        let mut cursor = CollapseCursor::default();
        let mut found = Vec::new();
        let mut pieces = 0;
        loop {
            let mut left = piece;
            while let Some(range) = w.paging.next_eligible(&mut cursor, &mut left) {
                found.push(range);
            }
            pieces += 1;
            if cursor == CollapseCursor::default() {
                break;
            }
            assert!(pieces < 20_000);
        }
        assert_eq!(found, expected, "in pieces of {piece}");
    }
    w.check_at_rest();
}

#[test]
fn a_compacted_page_stays_eligible() {
    let w = world(8);
    let space = w.space();
    let frame = w.wanted(space, BASE_PAGE, 4);
    assert_eq!(w.move_frame(frame, Order::BASE), Outcome::Moved);
    let collapsed = w.collapse(space, BASE_PAGE).unwrap();
    assert_eq!(
        w.move_frame(collapsed.head, Order::HUGE),
        Outcome::Moved,
        "the huge page moves as any other"
    );
    assert!(w.is_huge(space, BASE_PAGE));
    assert_eq!(w.read(space, BASE_PAGE, 5), Some(4));
    w.check_at_rest();
}

/// Swap without room.
struct NoSwap;

impl SwapSpace for NoSwap {
    fn has_room(&self) -> bool {
        false
    }
    fn take_slots(&self, _: &mut [u64]) -> usize {
        0
    }
    fn promise(&self, _: u64, _: Pfn) -> bool {
        false
    }
    fn withdraw(&self, _: u64, _: Pfn) {}
    fn adopt(&self, _: u64, _: Pfn) {}
    fn write_out(&self, _: &[u64]) {}
    fn fetch(&self, slot: u64) -> Result<(), SwapError> {
        Err(SwapError::Io { slot })
    }
    fn take(&self, _: u64) -> Option<Pfn> {
        None
    }
    fn free(&self, _: &[u64]) {}
}

#[test]
fn the_huge_page_is_young_and_the_old_frames_have_no_age() {
    let w = world(8);
    let generations = Generations::new(w.frames);
    let owner = OwnerId::new(2).unwrap();
    let paging = Paging::new(w.frames, w.guest, owner, 2).with_swap(&generations, &NoSwap);
    let space = paging.create_space(w.source).unwrap();
    let mut source = Rationed::new(w.source, usize::MAX);
    source.no_huge = true;
    for page in [BASE_PAGE, BASE_PAGE + 3] {
        let kind = FaultKind::HugeIfPossible;
        let fault = paging.fault(space, Page::new(page), kind, &source).unwrap();
        generations.add(fault.frame, Age::New);
    }
    assert_eq!(generations.size(), 2);
    let config = CollapseConfig::default();
    let page = Page::new(BASE_PAGE);
    let collapsed = paging
        .collapse(space, page, config, w.source, |_, _| {})
        .unwrap();
    assert_eq!(generations.sizes(), [0, 0, 0, 1]);
    assert_ne!(w.frames.generation(collapsed.head), 0);
    generations.verify().unwrap();
    paging.audit().unwrap();
}
