//! Random sequences of all operations of paging, against a model: the contents of each page.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{Order, Pfn};
use dirigible_mobility::{MovePair, Outcome};
use dirigible_paging::{FaultError, FaultKind, Page, SpaceId};
use dirigible_reclaim::Evictable;
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::{World, world, world_with_kernel_half, world_with_swap};

/// First pages of the 2 MiB ranges that the steps use, besides the last range that a space can map. Two are adjacent.
const REGIONS: [u64; 4] = [0, 1, 700, 300_000];
const SPACES: usize = 3;
/// Slots of swap: few enough that they run out.
const SLOTS: usize = 400;

#[derive(Clone, Debug)]
enum Step {
    /// Fault on each page of a run.
    Map {
        space: usize,
        region: usize,
        offset: u64,
        count: u64,
        huge: bool,
    },
    /// Write a word through the tables.
    Touch {
        space: usize,
        region: usize,
        offset: u64,
        value: u64,
    },
    /// Unmap one run.
    Unmap {
        space: usize,
        region: usize,
        offset: u64,
        count: u64,
    },
    /// Unmap every `stride`-th page of a region.
    Punch {
        space: usize,
        region: usize,
        stride: u64,
    },
    /// Unmap from the middle of one region to the middle of another.
    Sweep {
        space: usize,
        from: usize,
        to: usize,
        offset: u64,
    },
    /// Move the frame or huge page that holds a page.
    Migrate {
        space: usize,
        region: usize,
        offset: u64,
    },
    /// Isolate what holds some pages, unmap some of them, then move or put back.
    MoveAgainstUnmap {
        space: usize,
        region: usize,
        offset: u64,
        unmapped: u64,
        putback: bool,
    },
    /// Split the huge page that contains a page.
    Split { space: usize, region: usize },
    /// Pin, try to move, unmap, unpin.
    Pin {
        space: usize,
        region: usize,
        offset: u64,
        unmap: bool,
    },
    /// Destroy the space and create another.
    Restart { space: usize },
    /// Forget which pages were used, use some again, and give a run to swap. Huge pages are split.
    SwapOut {
        space: usize,
        region: usize,
        offset: u64,
        count: u64,
        used: u64,
        writes: bool,
    },
    /// Isolate some pages, unmap some of them, and give them to swap.
    SwapOutAgainstUnmap {
        space: usize,
        region: usize,
        offset: u64,
        unmapped: u64,
    },
    /// Take the contents of all slots out of memory.
    Write,
}

/// What a world is built with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Built {
    Plain,
    KernelHalf,
    /// With so many slots.
    Swap(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let at = || (0..SPACES, 0..=REGIONS.len(), 0..512u64);
    prop_oneof![
        6 => (at(), 1..80u64, any::<bool>()).prop_map(|((space, region, offset), count, huge)| {
            Step::Map { space, region, offset, count, huge }
        }),
        4 => (at(), any::<u64>()).prop_map(|((space, region, offset), value)| {
            Step::Touch { space, region, offset, value }
        }),
        4 => (at(), 1..700u64).prop_map(|((space, region, offset), count)| {
            Step::Unmap { space, region, offset, count }
        }),
        2 => (at(), 2..40u64).prop_map(|((space, region, _), stride)| {
            Step::Punch { space, region, stride }
        }),
        1 => (at(), 0..=REGIONS.len()).prop_map(|((space, from, offset), to)| {
            Step::Sweep { space, from, to, offset }
        }),
        5 => at().prop_map(|(space, region, offset)| Step::Migrate { space, region, offset }),
        2 => (at(), 0..20u64, any::<bool>()).prop_map(|((space, region, offset), unmapped, putback)| {
            Step::MoveAgainstUnmap { space, region, offset, unmapped, putback }
        }),
        1 => (0..SPACES, 0..=REGIONS.len()).prop_map(|(space, region)| Step::Split { space, region }),
        2 => (at(), any::<bool>()).prop_map(|((space, region, offset), unmap)| {
            Step::Pin { space, region, offset, unmap }
        }),
        1 => (0..SPACES).prop_map(|space| Step::Restart { space }),
    ]
}

fn steps_of_swap() -> impl Strategy<Value = Step> {
    let at = || (0..SPACES, 0..=REGIONS.len(), 0..512u64);
    prop_oneof![
        8 => (at(), 1..80u64).prop_map(|((space, region, offset), count)| {
            Step::Map { space, region, offset, count, huge: false }
        }),
        8 => (at(), 1..200u64, 2..20u64, any::<bool>()).prop_map(
            |((space, region, offset), count, used, writes)| {
                Step::SwapOut { space, region, offset, count, used, writes }
            }
        ),
        1 => (at(), 0..20u64).prop_map(|((space, region, offset), unmapped)| {
            Step::SwapOutAgainstUnmap { space, region, offset, unmapped }
        }),
        1 => Just(Step::Write),
        12 => steps(),
    ]
}

/// The system and the model.
struct Pair {
    w: World,
    spaces: [SpaceId; SPACES],
    model: [BTreeMap<u64, u64>; SPACES],
    /// The first page that no space can map.
    limit: u64,
    /// The kernel's own tables, if the spaces share the kernel's half.
    kernel: Option<Vec<u64>>,
}

impl Pair {
    fn new(built: Built) -> Self {
        let (w, limit) = match built {
            Built::Plain => (world(12), Page::LIMIT),
            Built::KernelHalf => (world_with_kernel_half(12), Page::KERNEL_HALF),
            Built::Swap(slots) => (world_with_swap(12, slots), Page::LIMIT),
        };
        let spaces = [w.space(), w.space(), w.space()];
        let kernel = (built == Built::KernelHalf).then(|| w.kernel_tables());
        Self {
            w,
            spaces,
            model: Default::default(),
            limit: limit.get(),
            kernel,
        }
    }

    fn page(&self, region: usize, offset: u64) -> u64 {
        REGIONS
            .get(region)
            .map_or(self.limit - 512, |region| region * 512)
            + offset
    }

    fn map(&mut self, space: usize, first: u64, count: u64, huge: bool) {
        let kind = if huge {
            FaultKind::HugeIfPossible
        } else {
            FaultKind::Base
        };
        for page in first..(first + count).min(self.limit + 1) {
            let result =
                self.w
                    .paging
                    .fault(self.spaces[space], Page::new(page), kind, self.w.source);
            let fault = match result {
                Ok(fault) => fault,
                Err(FaultError::NoSuchPage) => {
                    assert_eq!(page, self.limit);
                    return;
                }
                Err(error) => {
                    assert_eq!(error, FaultError::OutOfMemory);
                    assert!(page < self.limit);
                    assert!(!self.model[space].contains_key(&page) || self.is_swapped(space, page));
                    return;
                }
            };
            assert_eq!(fault.fresh, !self.model[space].contains_key(&page));
            if fault.fresh && fault.huge {
                let base = page / 512 * 512;
                assert_eq!(self.model[space].range(base..base + 512).count(), 0);
                self.model[space].extend((base..base + 512).map(|page| (page, 0)));
            } else if fault.fresh {
                self.model[space].insert(page, 0);
            }
        }
    }

    fn unmap(&mut self, space: usize, first: u64, end: u64) {
        let expected = self.model[space]
            .range(first..end.max(first))
            .filter(|&(&page, _)| !self.is_swapped(space, page))
            .count();
        let gone = self.w.unmap(self.spaces[space], first..end);
        self.model[space].retain(|page, _| !(first..end).contains(page));
        assert_eq!(gone, expected);
    }

    /// Whether a page that exists has no frame.
    fn is_swapped(&self, space: usize, page: u64) -> bool {
        self.model[space].contains_key(&page) && self.mapped(space, page).is_none()
    }

    /// Base frames and heads of huge pages that hold pages of a range, each once.
    fn frames_of(&self, space: usize, first: u64, count: u64) -> Vec<(u64, Pfn, Order)> {
        let mut found: Vec<(u64, Pfn, Order)> = Vec::new();
        for page in first..first + count {
            if let Some((frame, order)) = self.mapped(space, page)
                && found.last().is_none_or(|&(_, last, _)| last != frame)
            {
                found.push((page, frame, order));
            }
        }
        found
    }

    /// Head and order of the frame or huge page that holds a page.
    fn mapped(&self, space: usize, page: u64) -> Option<(Pfn, Order)> {
        let mapping = self.w.paging.lookup(self.spaces[space], Page::new(page))?;
        Some(if mapping.huge {
            (mapping.frame.block_base(), Order::HUGE)
        } else {
            (mapping.frame, Order::BASE)
        })
    }

    fn target(&self, order: Order) -> Option<Pfn> {
        use dirigible_frames::{AllocRequest, FrameClass};
        use dirigible_paging::PageSource;
        self.w
            .source
            .alloc(AllocRequest::new(order, FrameClass::Movable))
            .ok()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Map {
                space,
                region,
                offset,
                count,
                huge,
            } => {
                let first = self.page(region, offset);
                self.map(space, first, count, huge);
            }
            Step::Touch {
                space,
                region,
                offset,
                value,
            } => {
                let page = self.page(region, offset);
                let guest = self.w.guest;
                let done =
                    self.w
                        .paging
                        .access(self.spaces[space], Page::new(page), true, |frame| {
                            use dirigible_frames::FrameContents;
                            guest.write_word(frame, 17, value);
                        });
                let mapped = self.mapped(space, page).is_some();
                assert_eq!(done.is_some(), mapped);
                if self.w.swap.is_none() {
                    assert_eq!(mapped, self.model[space].contains_key(&page));
                }
                if done.is_some() {
                    self.model[space].insert(page, value);
                    assert!(
                        self.w
                            .paging
                            .lookup(self.spaces[space], Page::new(page))
                            .unwrap()
                            .dirty
                    );
                }
            }
            Step::Unmap {
                space,
                region,
                offset,
                count,
            } => {
                let first = self.page(region, offset);
                self.unmap(space, first, first + count);
            }
            Step::Punch {
                space,
                region,
                stride,
            } => {
                for offset in (0..512).step_by(stride as usize) {
                    let page = self.page(region, offset);
                    self.unmap(space, page, page + 1);
                }
            }
            Step::Sweep {
                space,
                from,
                to,
                offset,
            } => {
                let (from, to) = (from.min(to), from.max(to));
                let (first, end) = (self.page(from, offset), self.page(to, 511 - offset));
                self.unmap(space, first, end);
            }
            Step::Migrate {
                space,
                region,
                offset,
            } => {
                let page = self.page(region, offset);
                let Some((from, order)) = self.mapped(space, page) else {
                    return;
                };
                let before = self.w.paging.lookup(self.spaces[space], Page::new(page));
                let Some(to) = self.target(order) else { return };
                assert!(self.w.mobility.isolate(from));
                let mut pairs = [MovePair {
                    from,
                    to,
                    order,
                    outcome: Outcome::Todo,
                }];
                self.w.mobility.migrate_frames(&mut pairs);
                assert_eq!(pairs[0].outcome, Outcome::Moved);
                let (after, size) = self.mapped(space, page).unwrap();
                assert_eq!((after, size), (to, order));
                let after = self.w.paging.lookup(self.spaces[space], Page::new(page));
                assert_eq!(
                    after.map(|m| (m.dirty, m.accessed)),
                    before.map(|m| (m.dirty, m.accessed))
                );
            }
            Step::MoveAgainstUnmap {
                space,
                region,
                offset,
                unmapped,
                putback,
            } => {
                let first = self.page(region, offset);
                let mut pairs = Vec::new();
                for page in first..first + 16 {
                    let Some((from, order)) = self.mapped(space, page) else {
                        continue;
                    };
                    if order == Order::HUGE {
                        // A partial unmap would wait for the isolated huge page for ever, as there is only one thread.
                        continue;
                    }
                    let Some(to) = self.target(order) else {
                        continue;
                    };
                    assert!(self.w.mobility.isolate(from));
                    pairs.push(MovePair {
                        from,
                        to,
                        order,
                        outcome: Outcome::Todo,
                    });
                }
                let end = first + unmapped;
                // Huge pages in the range are left out for the same reason.
                let huge = |page| {
                    self.mapped(space, page)
                        .is_some_and(|(_, order)| order == Order::HUGE)
                };
                let gone: Vec<_> = (first..end).filter(|&page| !huge(page)).collect();
                gone.into_iter()
                    .for_each(|page| self.unmap(space, page, page + 1));
                if putback {
                    use dirigible_paging::PageSource;
                    let frames: Vec<_> = pairs.iter().map(|pair| pair.from).collect();
                    self.w.mobility.putback_movable_frames(&frames);
                    pairs
                        .iter()
                        .for_each(|pair| self.w.source.free(pair.to, pair.order));
                } else {
                    let stats = self.w.mobility.migrate_frames(&mut pairs);
                    assert_eq!(stats.moved + stats.released, pairs.len() as u64);
                }
            }
            Step::Split { space, region } => {
                let page = self.page(region, 0);
                let huge = self
                    .mapped(space, page)
                    .is_some_and(|(_, order)| order == Order::HUGE);
                let split = self
                    .w
                    .paging
                    .split_huge(self.spaces[space], Page::new(page));
                assert_eq!(split.is_ok(), huge);
            }
            Step::Pin {
                space,
                region,
                offset,
                unmap,
            } => {
                let page = self.page(region, offset);
                let Some(frame) = self.w.paging.pin(self.spaces[space], Page::new(page)) else {
                    assert!(!self.model[space].contains_key(&page) || self.is_swapped(space, page));
                    return;
                };
                let (head, order) = self.mapped(space, page).unwrap();
                assert!(!self.w.mobility.isolate(head));
                assert_eq!(self.w.paging.audit().unwrap().pinned, 1);
                if unmap {
                    let first = if order == Order::HUGE {
                        page / 512 * 512
                    } else {
                        page
                    };
                    self.unmap(space, first, first + order.frames() as u64);
                }
                self.w.paging.unpin(frame);
            }
            Step::Restart { space } => {
                let mapped = self.w.paging.usage(self.spaces[space]).unwrap().frames();
                let gone = self.w.paging.destroy_space(self.spaces[space]);
                assert_eq!(gone as u64, mapped);
                self.model[space].clear();
                self.spaces[space] = self.w.space();
            }
            Step::SwapOut {
                space,
                region,
                offset,
                count,
                used,
                writes,
            } => {
                let first = self.page(region, 0);
                let swap = self.w.swap().space;
                swap.writes.store(writes, Relaxed);
                self.w.harvest();
                // From a place in the region on, and then from its beginning, so that most runs meet something.
                let mut found = self.frames_of(space, first, 512);
                let middle = found.partition_point(|&(page, ..)| page < first + offset);
                found.rotate_left(middle);
                found.truncate(count as usize);
                let frames: Vec<_> = found.iter().map(|&(_, frame, _)| frame).collect();
                let mut old = Vec::new();
                for (number, &(page, _, order)) in found.iter().enumerate() {
                    if (number as u64).is_multiple_of(used) {
                        assert!(self.w.read(self.spaces[space], page, 17).is_some());
                    } else if order == Order::BASE {
                        old.push(page);
                    }
                }
                let room = SLOTS as u64 - swap.slots().used();
                let gone = self.w.swap_out(&frames) as u64;
                let swapped = old.iter().filter(|&&page| self.is_swapped(space, page));
                assert_eq!(
                    swapped.count() as u64,
                    gone,
                    "a page that was used, or none"
                );
                // A batch takes a slot for each of its pages, also for those that stay.
                assert!(gone == old.len() as u64 || room < frames.len() as u64);
            }
            Step::SwapOutAgainstUnmap {
                space,
                region,
                offset,
                unmapped,
            } => {
                let first = self.page(region, offset);
                self.w.harvest();
                let mut frames = Vec::new();
                for (_, frame, order) in self.frames_of(space, first, 16.min(512 - offset)) {
                    if order == Order::BASE {
                        let owner = self.w.paging.owner_id();
                        self.w.frames.try_isolate(frame, owner).unwrap();
                        frames.push(frame);
                    }
                }
                for page in first..first + unmapped {
                    if self
                        .mapped(space, page)
                        .is_none_or(|(_, order)| order == Order::BASE)
                    {
                        self.unmap(space, page, page + 1);
                    }
                }
                self.w.paging.swap_out(&frames);
            }
            Step::Write => self.w.swap().space.write_all(),
        }
    }

    /// Brings back what is in swap, as far as there is memory, and looks at all contents.
    fn bring_back(&mut self) {
        for space in 0..SPACES {
            for page in self.model[space].keys().copied().collect::<Vec<_>>() {
                self.map(space, page, 1, false);
            }
        }
        self.check();
    }

    fn check(&self) {
        let audit = self.w.check_at_rest();
        let pages: usize = self.model.iter().map(BTreeMap::len).sum();
        assert_eq!(audit.frames() + audit.swapped, pages as u64);
        if self.w.swap.is_some() {
            assert_eq!(self.w.aged(), audit.base + audit.huge);
        }
        if let Some(kernel) = &self.kernel {
            assert!(
                *kernel == self.w.kernel_tables(),
                "the kernel's tables changed"
            );
        }
        let mut missing = 0;
        for (space, model) in self.spaces.iter().zip(&self.model) {
            for (&page, &value) in model {
                match self.w.read(*space, page, 17) {
                    Some(found) => assert_eq!(found, value, "{page:#x}"),
                    None => missing += 1,
                }
            }
        }
        assert_eq!(missing, audit.swapped);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn paging_keeps_what_the_model_keeps(
        kernel_half: bool,
        steps in prop::collection::vec(steps(), 1..60),
    ) {
        let mut pair = Pair::new(if kernel_half { Built::KernelHalf } else { Built::Plain });
        for step in steps {
            pair.step(step);
            pair.check();
        }
    }

    #[test]
    fn swap_keeps_what_the_model_keeps(steps in prop::collection::vec(steps_of_swap(), 1..60)) {
        let mut pair = Pair::new(Built::Swap(SLOTS));
        for step in steps {
            pair.step(step);
            pair.check();
        }
        pair.bring_back();
    }
}
