//! Random sequences of collapses among other operations, against a model: what each page holds, which ranges are huge,
//! and which are eligible. The model says beforehand how each collapse ends.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use dirigible_frames::{Event, FrameContents, Order, Pfn};
use dirigible_mobility::{MovableOwner, Outcome};
use dirigible_paging::{CollapseConfig, CollapseCursor, CollapseError, FaultKind, Page, SpaceId};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::{Rationed, World, world};

/// Ranges of 2 MiB that the steps use.
const REGIONS: [u64; 4] = [0, 1, 700, 300_000];
const FILLED: u64 = 1 << 60;

#[derive(Clone, Debug)]
enum Step {
    /// Faults that find no huge page; `wanted`: they ask for one.
    Map {
        page: u64,
        count: u64,
        wanted: bool,
    },
    /// A fault that may find a huge page.
    MapHuge(u64),
    Write(u64, u64),
    Unmap {
        page: u64,
        count: u64,
    },
    Split(u64),
    Move(u64),
    /// Forgets which pages were used.
    Age(u64),
    /// Collapses with a page in somebody's hands, if it is mapped.
    Held {
        page: u64,
        pinned: bool,
    },
    Collapse {
        page: u64,
        max_none: u64,
        memory: bool,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    let page = || {
        (0..REGIONS.len(), 0..512u64).prop_map(|(region, offset)| REGIONS[region] * 512 + offset)
    };
    prop_oneof![
        6 => (page(), 1..200u64, any::<bool>())
            .prop_map(|(page, count, wanted)| Step::Map { page, count, wanted }),
        1 => page().prop_map(Step::MapHuge),
        4 => (page(), any::<u64>()).prop_map(|(page, value)| Step::Write(page, value)),
        2 => (page(), 1..700u64).prop_map(|(page, count)| Step::Unmap { page, count }),
        2 => page().prop_map(Step::Split),
        2 => page().prop_map(Step::Move),
        1 => page().prop_map(Step::Age),
        1 => (page(), any::<bool>()).prop_map(|(page, pinned)| Step::Held { page, pinned }),
        8 => (page(), prop_oneof![Just(511), 0..512u64], prop::bool::weighted(0.9))
            .prop_map(|(page, max_none, memory)| Step::Collapse { page, max_none, memory }),
    ]
}

struct Pair {
    w: World,
    space: SpaceId,
    /// What each page's word holds.
    pages: BTreeMap<u64, u64>,
    /// Ranges that are a huge page, and that can become one.
    huge: BTreeSet<u64>,
    eligible: BTreeSet<u64>,
    used: BTreeSet<u64>,
    collapses: u64,
}

impl Pair {
    fn new() -> Self {
        let w = world(7);
        let space = w.space();
        Self {
            w,
            space,
            pages: BTreeMap::new(),
            huge: BTreeSet::new(),
            eligible: BTreeSet::new(),
            used: BTreeSet::new(),
            collapses: 0,
        }
    }

    fn region(page: u64) -> std::ops::Range<u64> {
        let base = page / 512 * 512;
        base..base + 512
    }

    fn map(&mut self, page: u64, wanted: bool, may_be_huge: bool) {
        let mut source = Rationed::new(self.w.source, usize::MAX);
        source.no_huge = !may_be_huge;
        let kind = match wanted {
            true => FaultKind::HugeIfPossible,
            false => FaultKind::Base,
        };
        let guest = self.w.guest;
        let fill = |frame: Pfn, order: Order| {
            (0..order.frames() as u64).for_each(|i| guest.write_word(frame.plus(i), 17, 0))
        };
        let result = self
            .w
            .paging
            .fault_filled(self.space, Page::new(page), kind, &source, fill);
        let Ok(fault) = result else { return };
        assert_eq!(fault.fresh, !self.pages.contains_key(&page));
        if !fault.fresh {
            return;
        }
        let region = Self::region(page);
        if fault.huge {
            self.huge.insert(region.start);
            self.used.insert(region.start);
            self.pages.extend(region.map(|page| (page, 0)));
        } else {
            self.pages.insert(page, 0);
            self.used.insert(page);
            if wanted {
                self.eligible.insert(region.start);
            }
        }
    }

    fn unmap(&mut self, first: u64, end: u64) {
        let before = self.pages.len();
        for base in REGIONS.map(|region| region * 512) {
            if first >= base + 512 || end <= base {
                continue;
            }
            let whole = first <= base && end >= base + 512;
            if self.huge.remove(&base) && !whole {
                self.spread_use(base);
            }
            self.eligible.remove(&base);
        }
        self.pages.retain(|page, _| !(first..end).contains(page));
        self.used.retain(|page| !(first..end).contains(page));
        let gone = self.w.unmap(self.space, first..end);
        assert_eq!(gone, before - self.pages.len());
    }

    /// The use of a huge page is that of its parts when it is split.
    fn spread_use(&mut self, base: u64) {
        if self.used.contains(&base) {
            self.used.extend(Self::region(base));
        }
    }

    /// Marks a page as used.
    fn uses(&mut self, page: u64) {
        let base = Self::region(page).start;
        self.used.insert(match self.huge.contains(&base) {
            true => base,
            false => page,
        });
    }

    /// How a collapse must end: with the number of pages to copy, if there is memory.
    fn expected(&self, page: u64, max_none: u64) -> Result<u64, CollapseError> {
        let region = Self::region(page);
        if self.huge.contains(&region.start) || !self.eligible.contains(&region.start) {
            return Err(CollapseError::NotEligible);
        }
        let mapped = self.pages.range(region.clone()).count() as u64;
        if 512 - mapped > max_none {
            return Err(CollapseError::Sparse);
        }
        match self.used.range(region).next() {
            Some(_) => Ok(mapped),
            None => Err(CollapseError::Unused),
        }
    }

    fn collapse(&mut self, page: u64, max_none: u64, memory: bool) -> Result<(), CollapseError> {
        let source = Rationed::new(self.w.source, if memory { 1 } else { 0 });
        let guest = self.w.guest;
        let fill = |page: Page, frame| guest.write_word(frame, 17, FILLED + page.get());
        let config = CollapseConfig { max_none };
        let collapsed =
            self.w
                .paging
                .collapse(self.space, Page::new(page), config, &source, fill)?;
        let region = Self::region(page);
        let before = self.pages.len() as u64;
        for page in region.clone() {
            self.pages.entry(page).or_insert(FILLED + page);
        }
        assert_eq!(collapsed.filled, self.pages.len() as u64 - before);
        assert_eq!(collapsed.copied + collapsed.filled, 512);
        self.used.retain(|page| !region.contains(page));
        self.used.insert(region.start);
        self.huge.insert(region.start);
        self.eligible.remove(&region.start);
        self.collapses += 1;
        Ok(())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Map {
                page,
                count,
                wanted,
            } => {
                let end = (page + count).min(Self::region(page).end);
                (page..end).for_each(|page| self.map(page, wanted, false));
            }
            Step::MapHuge(page) => self.map(page, true, true),
            Step::Write(page, value) => {
                let guest = self.w.guest;
                let write = |frame| guest.write_word(frame, 17, value);
                let done = self
                    .w
                    .paging
                    .access(self.space, Page::new(page), true, write);
                assert_eq!(done.is_some(), self.pages.contains_key(&page));
                if done.is_some() {
                    self.pages.insert(page, value);
                    self.uses(page);
                }
            }
            Step::Unmap { page, count } => self.unmap(page, page + count),
            Step::Split(page) => {
                let base = Self::region(page).start;
                let split = self.w.paging.split_huge(self.space, Page::new(page));
                assert_eq!(split.is_ok(), self.huge.remove(&base));
                if split.is_ok() {
                    self.spread_use(base);
                    self.eligible.insert(base);
                }
            }
            Step::Move(page) => {
                let Some(mapping) = self.w.paging.lookup(self.space, Page::new(page)) else {
                    return;
                };
                let (from, order) = match mapping.huge {
                    true => (mapping.frame.block_base(), Order::HUGE),
                    false => (mapping.frame, Order::BASE),
                };
                let free = self.w.frames.free_blocks();
                if order == Order::BASE || free > 0 {
                    assert_eq!(self.w.move_frame(from, order), Outcome::Moved);
                }
            }
            Step::Age(page) => {
                let region = Self::region(page);
                let range = Page::new(region.start)..Page::new(region.end);
                self.w.paging.harvest(self.space, range, |_, _, _| {});
                self.used.retain(|page| !region.contains(page));
            }
            Step::Held { page, pinned } => {
                let base = Self::region(page).start;
                let Some(frame) = self.w.paging.translate(self.space, Page::new(page)) else {
                    return;
                };
                let head = match self.huge.contains(&base) {
                    true => frame.block_base(),
                    false => frame,
                };
                let expected = match self.expected(page, 511) {
                    Ok(_) | Err(CollapseError::Unused) => CollapseError::Busy,
                    Err(error) => error,
                };
                if pinned {
                    self.w.paging.pin(self.space, Page::new(page)).unwrap();
                } else {
                    assert!(self.w.paging.isolate(head));
                }
                assert_eq!(self.collapse(page, 511, true), Err(expected));
                if pinned {
                    self.w.paging.unpin(frame);
                } else {
                    self.w.paging.putback(head);
                }
            }
            Step::Collapse {
                page,
                max_none,
                memory,
            } => {
                let expected = self.expected(page, max_none);
                let free = self.w.frames.free_blocks() > 0;
                match self.collapse(page, max_none, memory) {
                    Ok(()) => assert!(expected.is_ok() && memory),
                    Err(CollapseError::OutOfMemory) => {
                        assert!(expected.is_ok() && !(memory && free))
                    }
                    Err(error) => assert_eq!(expected, Err(error)),
                }
            }
        }
    }

    fn check(&mut self) {
        let audit = self.w.check_at_rest();
        assert_eq!(audit.huge, self.huge.len() as u64);
        assert_eq!(audit.frames(), self.pages.len() as u64);
        assert_eq!(self.w.event(Event::ThpCollapse), self.collapses);
        // A range whose last page went has no table.
        self.eligible
            .retain(|&base| self.pages.range(Self::region(base)).next().is_some());
        let mut found = BTreeSet::new();
        let mut cursor = CollapseCursor::default();
        while let Some((space, page)) = self.w.paging.next_eligible(&mut cursor, &mut { u64::MAX })
        {
            assert_eq!(space, self.space);
            found.insert(page.get());
        }
        assert_eq!(found, self.eligible);
        // Looked at without an access, which would be a use.
        for (&page, &value) in &self.pages {
            let frame = self.w.paging.translate(self.space, Page::new(page));
            let word = self.w.guest.read_word(frame.unwrap(), 17);
            assert_eq!(word, value, "{page:#x}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 50,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn a_collapse_ends_as_the_model_says(steps in prop::collection::vec(steps(), 1..60)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
            pair.check();
        }
    }
}

#[test]
fn the_steps_reach_collapses() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let sequence = prop::collection::vec(steps(), 60);
    let collapses: u64 = (0..10)
        .map(|_| {
            let mut pair = Pair::new();
            for step in sequence.new_tree(&mut runner).unwrap().current() {
                pair.step(step);
            }
            pair.collapses
        })
        .sum();
    assert!(collapses >= 20, "{collapses}");
}
