//! Programs' memory: page faults and TLBs of real CPUs, and migration while programs run.

use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible_frames::{AllocRequest, FrameClass, FrameContents, Order, Platform};
use dirigible_mobility::MovePair;
use dirigible_paging::{FaultError, FaultKind, Page, PageSource, SpaceId};

use super::{
    deadline::{MILLISECOND, is_over},
    manager::{Manager, Memory, with_manager},
    numbers::Numbers,
    outcome::{Outcome, Verdict, ensure},
};
use crate::kernel::{
    arch::{shoot_down, smp, user},
    machine::Guest,
};

/// The first page of the tests' programs.
const BASE: u64 = 0x4000_0000 / 4096;
/// Written into frames that no program may access any more.
const POISON: u64 = 0xdead_dead_dead_dead;

fn page(number: u64) -> Page {
    Page::new(BASE + number)
}

impl Manager<'_> {
    fn space(&self) -> Result<SpaceId, String> {
        self.paging
            .create_space(self.memory)
            .map_err(|error| alloc::format!("{error}"))
    }

    fn root(&self, space: SpaceId) -> u64 {
        self.paging.root(space).map_or(0, |root| root.address())
    }

    /// Serves a fault at `page`; `false` if there is no memory.
    fn map(&self, space: SpaceId, page: Page, kind: FaultKind) -> bool {
        self.paging
            .fault_filled(space, page, kind, self.memory, |frame, order| {
                self.platform.zero_frames(frame, order.frames());
            })
            .is_ok()
    }

    /// Writes as a program does: maps the page if it is not mapped.
    fn store(&self, space: SpaceId, page: Page, value: u64) -> bool {
        user::store(self.root(space), page.address(), value, &mut || {
            self.map(space, page, FaultKind::Base)
        })
    }

    /// Reads as a program does: waits while the page is being moved. `None` if the page is not mapped.
    fn load(&self, space: SpaceId, page: Page) -> Option<u64> {
        user::load_word(self.root(space), page.address(), &mut || match self
            .paging
            .lookup(space, page)
        {
            Some(mapping) => {
                if mapping.migrating {
                    self.platform.relax();
                }
                true
            }
            None => false,
        })
    }

    /// Moves `page` to another frame; `false` if its frame could not be isolated, or there was no free frame.
    fn move_page(&self, space: SpaceId, page: Page, order: Order) -> bool {
        let Some(from) = self.paging.translate(space, page) else {
            return false;
        };
        let Ok(to) = self
            .memory
            .alloc(AllocRequest::new(order, FrameClass::Movable))
        else {
            return false;
        };
        if !self.mobility.isolate(from) {
            self.memory.free(to, order);
            return false;
        }
        let mut pairs = [MovePair::base(from, to)];
        pairs[0].order = order;
        self.mobility.migrate_frames(&mut pairs);
        pairs[0].outcome == dirigible_mobility::Outcome::Moved
    }
}

pub(super) fn page_faults_map_pages(guest: &Guest, memory: &mut Memory) -> Outcome {
    with_manager(guest, memory, |manager| {
        const PAGES: u64 = 3000;
        let space = manager.space()?;
        let before = user::faults();
        for number in 0..PAGES {
            ensure(manager.store(space, page(number), number ^ 0x55), || {
                alloc::format!("page {number} could not be written")
            })?;
        }
        let faults = user::faults() - before;
        ensure(faults == PAGES, || {
            alloc::format!("{faults} page faults for {PAGES} pages")
        })?;
        for number in 0..PAGES {
            let found = manager.load(space, page(number));
            ensure(found == Some(number ^ 0x55), || {
                alloc::format!("page {number} reads as {found:?}")
            })?;
            let mapping = manager.paging.lookup(space, page(number));
            ensure(
                mapping.is_some_and(|mapping| mapping.dirty && mapping.accessed),
                || {
                    alloc::format!(
                        "the hardware set no accessed and dirty bits for page {number}: {mapping:?}"
                    )
                },
            )?;
        }
        ensure(user::faults() - before == PAGES, || {
            "reading faulted".into()
        })?;
        manager.paging.destroy_space(space);
        Ok(())
    })
}

pub(super) fn an_unserved_fault_ends_the_access(guest: &Guest, memory: &mut Memory) -> Outcome {
    with_manager(guest, memory, |manager| {
        let space = manager.space()?;
        let root = manager.root(space);
        let mut asked = 0;
        let stored = user::store(root, page(7).address(), 1, &mut || {
            asked += 1;
            asked < 3
        });
        ensure(!stored && asked == 3, || {
            alloc::format!("stored: {stored}, asked {asked} times")
        })?;
        let mut lines = [1; 64];
        let loaded = user::load_lines(root, page(7).address(), &mut lines, &mut || false);
        ensure(!loaded, || "a page that is not there was read".into())?;
        manager.paging.destroy_space(space);
        Ok(())
    })
}

pub(super) fn a_huge_page_takes_one_fault(guest: &Guest, memory: &mut Memory) -> Outcome {
    with_manager(guest, memory, |manager| {
        let space = manager.space()?;
        let before = user::faults();
        for number in 0..512 {
            let stored = user::store(
                manager.root(space),
                page(number).address(),
                number,
                &mut || manager.map(space, page(number), FaultKind::HugeIfPossible),
            );
            ensure(stored, || {
                alloc::format!("page {number} could not be written")
            })?;
        }
        let faults = user::faults() - before;
        ensure(faults == 1, || alloc::format!("{faults} page faults"))?;
        let huge = manager.paging.lookup(space, page(3));
        ensure(huge.is_some_and(|mapping| mapping.huge), || {
            "not huge".into()
        })?;
        // Unmapping a part splits the huge page; the rest stays mapped.
        manager.paging.unmap(space, page(100)..page(200));
        for number in 0..512 {
            let expected = (!(100..200).contains(&number)).then_some(number);
            let found = manager.load(space, page(number));
            ensure(found == expected, || {
                alloc::format!("page {number} reads as {found:?}")
            })?;
        }
        manager.paging.destroy_space(space);
        Ok(())
    })
}

pub(super) fn the_kernel_half_is_no_programs(guest: &Guest, memory: &mut Memory) -> Outcome {
    with_manager(guest, memory, |manager| {
        let space = manager.space()?;
        let kernel = Page::containing(0xffff_8000_0000_0000);
        let fault = manager
            .paging
            .fault(space, kernel, FaultKind::Base, manager.memory);
        ensure(fault == Err(FaultError::NoSuchPage), || {
            alloc::format!("a fault in the kernel's half: {fault:?}")
        })?;
        let all = Page::new(0)..Page::LIMIT;
        ensure(manager.paging.unmap(space, all) == 0, || {
            "something was unmapped".into()
        })?;
        ensure(manager.store(space, page(0), 1), || {
            "the space is broken".into()
        })?;
        manager.paging.destroy_space(space);
        Ok(())
    })
}

pub(super) fn spaces_are_apart(guest: &Guest, memory: &mut Memory) -> Outcome {
    with_manager(guest, memory, |manager| {
        let spaces = [manager.space()?, manager.space()?, manager.space()?];
        for round in 0..200 {
            for (index, &space) in spaces.iter().enumerate() {
                let value = round * 10 + index as u64;
                ensure(manager.store(space, page(round % 5), value), || {
                    "out of memory".into()
                })?;
            }
            for (index, &space) in spaces.iter().enumerate() {
                let found = manager.load(space, page(round % 5));
                ensure(found == Some(round * 10 + index as u64), || {
                    alloc::format!("space {index} reads {found:?} in round {round}")
                })?;
            }
        }
        for space in spaces {
            manager.paging.destroy_space(space);
        }
        Ok(())
    })
}

/// One CPU reads a page again and again, while another unmaps it and writes other contents into its frame. The reader
/// sees the page's contents or a fault.
pub(super) fn unmapping_shoots_down(guest: &Guest, memory: &mut Memory) -> Outcome {
    ensure(guest.cpus >= 2, || {
        "needs two CPUs: start with -smp 2".into()
    })?;
    with_manager(guest, memory, |manager| {
        const ROUNDS: u64 = 400;
        let space = manager.space()?;
        let (reads, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let verdict = Verdict::default();
        let sent = shoot_down::sent();
        smp::on_all(&|cpu| match cpu.index() {
            0 => {
                for round in 1..=ROUNDS {
                    if !manager.store(space, page(9), round) {
                        verdict.note(Err("out of memory".into()));
                        break;
                    }
                    let (frame, seen) = (
                        manager.paging.translate(space, page(9)),
                        reads.load(Ordering::Acquire),
                    );
                    let patience = manager.platform.now() + 1000 * MILLISECOND;
                    while reads.load(Ordering::Acquire) < seen + 3
                        && !is_over(manager.platform, patience)
                    {
                        core::hint::spin_loop();
                    }
                    manager.paging.unmap(space, page(9)..page(10));
                    // No CPU may access the frame through the old translation now.
                    if let Some(frame) = frame {
                        manager.platform.write_word(frame, 0, POISON);
                    }
                }
                over.store(true, Ordering::Release);
            }
            1 => {
                while !over.load(Ordering::Acquire) && !verdict.has_failed() {
                    if let Some(found) = manager.load(space, page(9)) {
                        reads.fetch_add(1, Ordering::Release);
                        verdict.note(ensure((0..=ROUNDS).contains(&found), || {
                            alloc::format!(
                                "read {found:#x} through a translation that was shot down"
                            )
                        }));
                    }
                }
            }
            _ => {}
        });
        manager.paging.destroy_space(space);
        verdict.outcome()?;
        let (reads, sent) = (reads.into_inner(), shoot_down::sent() - sent);
        ensure(reads >= ROUNDS && sent >= ROUNDS / 4, || {
            alloc::format!("only {reads} reads and {sent} interrupts: the test shows nothing")
        })
    })
}

/// Moves pages while a program on another CPU counts in them. No count is lost, and none is read from an old frame.
fn migrate_while_touched(manager: &Manager<'_>, pages: u64, order: Order) -> Outcome {
    let space = manager.space()?;
    let kind = if order == Order::HUGE {
        FaultKind::HugeIfPossible
    } else {
        FaultKind::Base
    };
    let step = order.frames() as u64;
    for number in 0..pages {
        ensure(manager.map(space, page(number * step), kind), || {
            "out of memory".into()
        })?;
        ensure(manager.store(space, page(number * step), 0), || {
            "not writable".into()
        })?;
    }
    let over = AtomicBool::new(false);
    let verdict = Verdict::default();
    let (moved, counted) = (AtomicU64::new(0), AtomicU64::new(0));
    smp::on_all(&|cpu| match cpu.index() {
        0 => {
            let mut numbers = Numbers(99);
            let deadline = manager.platform.now() + 1500 * MILLISECOND;
            while !is_over(manager.platform, deadline) && !verdict.has_failed() {
                let number = numbers.below(pages);
                let from = manager.paging.translate(space, page(number * step));
                if manager.move_page(space, page(number * step), order) {
                    moved.fetch_add(1, Ordering::Relaxed);
                    // The old frame is free. A program that still reads it finds this.
                    if let Some(from) = from {
                        manager.platform.write_word(from, 0, POISON);
                    }
                }
            }
            over.store(true, Ordering::Release);
        }
        1 => {
            let mut counts: [u64; 64] = [0; 64];
            let mut numbers = Numbers(7);
            while !over.load(Ordering::Acquire) && !verdict.has_failed() {
                let number = numbers.below(pages) as usize;
                let place = page(number as u64 * step);
                let found = manager.load(space, place);
                verdict.note(ensure(found == Some(counts[number]), || {
                    alloc::format!(
                        "page {number} holds {found:?}, written was {}",
                        counts[number]
                    )
                }));
                counts[number] += 1;
                verdict.note(ensure(manager.store(space, place, counts[number]), || {
                    "a mapped page could not be written".into()
                }));
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
        _ => {}
    });
    manager.paging.destroy_space(space);
    verdict.outcome()?;
    let (moved, counted) = (moved.into_inner(), counted.into_inner());
    ensure(moved >= 20 && counted >= 20, || {
        alloc::format!("only {moved} moves and {counted} touches: the test shows nothing")
    })
}

pub(super) fn pages_migrate_while_touched(guest: &Guest, memory: &mut Memory) -> Outcome {
    ensure(guest.cpus >= 2, || {
        "needs two CPUs: start with -smp 2".into()
    })?;
    with_manager(guest, memory, |manager| {
        migrate_while_touched(manager, 16, Order::BASE)
    })
}

pub(super) fn huge_pages_migrate_while_touched(guest: &Guest, memory: &mut Memory) -> Outcome {
    ensure(guest.cpus >= 2, || {
        "needs two CPUs: start with -smp 2".into()
    })?;
    with_manager(guest, memory, |manager| {
        migrate_while_touched(manager, 4, Order::HUGE)
    })
}

/// Whole blocks are evacuated while programs on all other CPUs map, read, write and unmap pages in them.
pub(super) fn blocks_evacuate_while_touched(guest: &Guest, memory: &mut Memory) -> Outcome {
    ensure(guest.cpus >= 2, || {
        "needs two CPUs: start with -smp 2".into()
    })?;
    with_manager(guest, memory, |manager| {
        const PAGES: u64 = 4000;
        let verdict = Verdict::default();
        let deadline = manager.platform.now() + 2000 * MILLISECOND;
        let emptied = AtomicU64::new(0);
        smp::on_all(&|cpu| {
            if cpu.index() == 0 {
                let mut at = 0;
                let blocks: u64 = manager.frames.block_count() as u64;
                while !is_over(manager.platform, deadline) && !verdict.has_failed() {
                    at = (at + 1) % blocks;
                    let block = dirigible_frames::BlockId::new(at as u32);
                    let ledger = manager.frames.ledger(block);
                    if ledger.movable() == 0 || ledger.unmovable() > 0 {
                        continue;
                    }
                    if let Ok(empty) = manager.mobility.evacuate(block) {
                        emptied.fetch_add(1, Ordering::Relaxed);
                        manager.frames.unisolate_block(empty);
                    }
                }
                return;
            }
            let Ok(space) = manager.space() else {
                return verdict.note(Err("no space".into()));
            };
            let mut numbers = Numbers(cpu.index() as u64);
            while !is_over(manager.platform, deadline) && !verdict.has_failed() {
                let number = numbers.below(PAGES);
                let stamp = number * 3 + 1;
                match manager.load(space, page(number)) {
                    None => verdict.note(ensure(manager.store(space, page(number), stamp), || {
                        "out of memory".into()
                    })),
                    Some(found) => {
                        verdict.note(ensure(found == stamp, || {
                            alloc::format!("page {number} holds {found:#x}, not {stamp:#x}")
                        }));
                        if numbers.below(8) == 0 {
                            manager.paging.unmap(space, page(number)..page(number + 1));
                        }
                    }
                }
            }
            manager.paging.destroy_space(space);
        });
        verdict.outcome()?;
        let emptied = emptied.into_inner();
        ensure(emptied >= 3, || {
            alloc::format!("only {emptied} blocks were emptied")
        })
    })
}
