//! The real machine: allocator, compaction, paging, files and balloon.

use alloc::vec::Vec;
use core::ops::Range;
use dirigible_files::FileStore;
use dirigible_frames::{AllocRequest, FrameAllocator, Order, PageTables, Pfn, Watermarks};
use dirigible_pagecache::PageCache;
use dirigible_paging::{
    Fault, FaultError, FaultKind, MoveObserver, Page, PageSource, Paging, SlowPath, SpaceId,
};
use dirigible_reclaim::Reclaimer;
use dirigible_swap::Swap;
use spin::Mutex;

use crate::{
    balloon::BalloonControl,
    content::{ContentLog, LINES, Pattern, When, Wrong},
    operator::{Check, NoMemory},
    oracle::Oracle,
    passes::{Ended, PassBook, Sizes, kernel_frames},
    report::{AttemptHost, OracleReport, PassReport},
    stalls::Stalls,
    timeline::{PassPlan, PassResult},
    user::UserMemory,
};

/// Key of the probe's huge pages.
const PROBE: u64 = 0x7072_6f00_0000_0000;

/// Why a program has not got a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unserved {
    /// There is no memory for it.
    NoMemory,
    /// It was in swap, and the disk cannot read it: its contents are lost.
    Lost,
}

/// The host's clock, which measures what attempts cost in real time. No decision depends on it.
pub trait HostClock: Sync {
    /// Nanoseconds since a fixed point in time.
    fn nanoseconds(&self) -> u64;
}

/// The parts of a machine.
pub struct Parts<'a, P: PageTables> {
    /// CPU, clock, frame contents.
    pub platform: &'a P,
    /// The allocator.
    pub frames: &'a FrameAllocator<'a>,
    /// Address spaces.
    pub paging: &'a Paging<'a, P>,
    /// The allocation slow path.
    pub memory: &'a SlowPath<'a, P>,
    /// Pages of files.
    pub cache: &'a PageCache<'a, P>,
    /// Files.
    pub files: &'a FileStore<'a, P>,
    /// Swap.
    pub swap: &'a Swap<'a, 'a, P>,
    /// Reclaim.
    pub reclaim: &'a Reclaimer<'a, P>,
    /// How programs access their pages where the hardware walks the page tables. `None`: the platform reads and writes
    /// the frames directly.
    pub user: Option<&'a dyn UserMemory>,
    /// The balloon.
    pub balloon: &'a dyn BalloonControl,
    /// The errors that checks of contents found.
    pub contents: &'a ContentLog,
    /// How long requests stalled.
    pub stalls: &'a Stalls<'a, P>,
    /// What the best choices of blocks would have been; `None` where nobody asks.
    pub oracle: Option<&'a Oracle<'a, P>>,
    /// The host's clock.
    pub host_clock: &'a dyn HostClock,
}

impl<P: PageTables> Parts<'_, P> {
    /// What emptied blocks cost so far.
    pub(crate) fn choice(&self) -> OracleReport {
        self.oracle.map(Oracle::report).unwrap_or_default()
    }
}

/// The real machine.
pub struct System<'a, P: PageTables> {
    pub(crate) parts: Parts<'a, P>,
    rested: Watermarks,
    passes: Mutex<PassBook>,
}

/// Checks that a migrated page has its contents.
pub struct MoveChecks<'a, P: PageTables> {
    platform: &'a P,
    contents: &'a ContentLog,
}

impl<'a, P: PageTables> MoveChecks<'a, P> {
    /// Checks every page that paging moves.
    pub fn new(platform: &'a P, contents: &'a ContentLog) -> Self {
        Self { platform, contents }
    }
}

impl<P: PageTables> MoveObserver for MoveChecks<'_, P> {
    fn moved(&self, space: SpaceId, page: Page, frame: Pfn, order: Order) {
        for offset in 0..order.frames() as u64 {
            let (page, frame) = (page.get() + offset, frame.plus(offset));
            let pattern = Pattern::new(u64::from(space.get()), page);
            let note = (When::Moved, "program", page);
            self.contents
                .check_whole(self.platform, frame, pattern, note);
        }
    }
}

impl<P: PageTables> dirigible_pagecache::MoveObserver for MoveChecks<'_, P> {
    /// The copy has what the original still has. What a file should hold is compared when a program reads it.
    fn moved(&self, block: u64, from: Pfn, to: Pfn) {
        let (mut original, mut copy) = ([0; LINES], [0; LINES]);
        self.platform.read_lines(from, &mut original);
        self.platform.read_lines(to, &mut copy);
        self.contents.count_whole();
        let wrong = (0..LINES).find(|&line| original[line] != copy[line]);
        if let Some(line) = wrong {
            let found = copy[line];
            let note = (When::Moved, "file", block);
            self.contents.record(to, Wrong { line, found }, note);
        }
    }
}

impl<'a, P: PageTables> System<'a, P> {
    /// A machine of `parts` whose watermarks at rest are `rested`.
    pub fn new(parts: Parts<'a, P>, rested: Watermarks) -> Self {
        let passes = Mutex::new(PassBook::new(parts.frames));
        Self {
            parts,
            rested,
            passes,
        }
    }

    /// Its parts.
    pub fn parts(&self) -> &Parts<'a, P> {
        &self.parts
    }

    /// The passes so far, and the time that their attempts took on the host.
    pub fn passes(&self) -> (Vec<PassReport>, Vec<AttemptHost>) {
        let passes = self.passes.lock();
        (passes.reports.clone(), passes.host.clone())
    }

    fn alloc(&self, request: AllocRequest) -> Result<Pfn, NoMemory> {
        self.parts.memory.alloc(request).map_err(|_| NoMemory)
    }

    pub(crate) fn check_frame(
        &self,
        frame: Pfn,
        pattern: Pattern,
        check: Check,
        note: (When, &'static str, u64),
    ) {
        let Parts {
            contents, platform, ..
        } = self.parts;
        match check {
            Check::Four(draw) => contents.check_four(platform, frame, pattern, draw, note),
            Check::Whole => contents.check_whole(platform, frame, pattern, note),
        }
    }

    /// The memory of the load, of files and of the balloon.
    fn sizes(&self) -> Sizes {
        // An estimate: in threaded mode the load goes on meanwhile. If the audit fails, it fails again at the end of
        // the run.
        let audit = self.parts.paging.audit().unwrap_or_default();
        Sizes {
            anonymous: audit.frames() + audit.swapped,
            kernel: kernel_frames(self.parts.frames, self.parts.balloon.actual()),
            files: self.parts.cache.counts().pages,
            balloon: self.parts.balloon.actual(),
        }
    }
}

impl<P: PageTables> System<'_, P> {
    /// Serves a page fault. A new page is filled with its pattern before it is mapped.
    pub(crate) fn serve_fault(
        &self,
        space: SpaceId,
        page: u64,
        huge: bool,
    ) -> Result<Fault, Unserved> {
        let Parts {
            paging,
            platform,
            memory,
            ..
        } = self.parts;
        let kind = if huge {
            FaultKind::HugeIfPossible
        } else {
            FaultKind::Base
        };
        let fill = |frame: Pfn, order: Order| {
            for offset in 0..order.frames() as u64 {
                // A huge page holds the aligned range around `page`; `huge` is requested only at its first page.
                pattern_of(space, page + offset).write(platform, frame.plus(offset));
            }
        };
        let page = Page::new(page);
        let fault = paging.fault_filled(space, page, kind, memory, fill);
        fault.map_err(|error| match error {
            FaultError::SwapRead => Unserved::Lost,
            _ => Unserved::NoMemory,
        })
    }
}

pub(crate) fn pattern_of(space: SpaceId, page: u64) -> Pattern {
    Pattern::new(u64::from(space.get()), page)
}

impl<P: PageTables> System<'_, P> {
    /// Makes `page` of `space` present and fills new pages with their pattern. With `huge` the aligned 512 pages from
    /// `page` on may be mapped as one huge page; gives whether they are.
    pub(crate) fn fault(&self, space: SpaceId, page: u64, huge: bool) -> Result<bool, Unserved> {
        match self.parts.user {
            Some(user) => self.store_first_line(user, space, page, huge),
            None => Ok(self.serve_fault(space, page, huge)?.huge),
        }
    }

    /// Checks the pages of the range that the program has, and brings those back that are in swap.
    pub(crate) fn check(
        &self,
        space: SpaceId,
        pages: Range<u64>,
        check: Check,
    ) -> Result<(), Unserved> {
        for page in pages {
            if let Some(user) = self.parts.user {
                self.check_loaded(user, space, page, check)?;
                continue;
            }
            let note = (When::Used, "program", page);
            let access = |frame| self.check_frame(frame, pattern_of(space, page), check, note);
            while self
                .parts
                .paging
                .access(space, Page::new(page), false, access)
                .is_none()
                && self.bring_back(space, page)?
            {}
        }
        Ok(())
    }

    /// Brings `page` back if it is in swap; gives whether it was.
    pub(crate) fn bring_back(&self, space: SpaceId, page: u64) -> Result<bool, Unserved> {
        if !self.parts.paging.is_swapped(space, Page::new(page)) {
            return Ok(false);
        }
        self.serve_fault(space, page, false).map(|_| true)
    }

    /// Gives back the pages of the range that are present.
    pub(crate) fn give_back(&self, space: SpaceId, pages: Range<u64>) {
        let pages = Page::new(pages.start)..Page::new(pages.end);
        self.parts.paging.unmap(space, pages);
    }
}

/// A huge page of the probe.
#[derive(Debug)]
pub struct ProbeBlock(Pfn);

impl<P: PageTables> System<'_, P> {
    /// One attempt of the probe.
    pub(crate) fn attempt(&self) -> Result<ProbeBlock, NoMemory> {
        let Parts {
            platform,
            frames,
            host_clock,
            ..
        } = self.parts;
        let before = Ended::events(frames);
        let (start, host_start) = (platform.now(), host_clock.nanoseconds());
        let got = self.alloc(AllocRequest::huge());
        let cost = platform.now() - start;
        let host_cost = host_clock.nanoseconds() - host_start;
        let ended = Ended::of(got.is_ok(), &before, &Ended::events(frames));
        self.passes.lock().attempted(start, ended, cost, host_cost);
        let first = got?;
        for offset in 0..Order::HUGE.frames() as u64 {
            let frame = first.plus(offset);
            platform.write_word(frame, 0, Pattern::new(PROBE, frame.get()).word(0));
        }
        Ok(ProbeBlock(first))
    }

    /// Gives back the huge page of an attempt.
    pub(crate) fn release(&self, ProbeBlock(first): ProbeBlock) {
        let Parts {
            platform,
            contents,
            memory,
            ..
        } = self.parts;
        for offset in 0..Order::HUGE.frames() as u64 {
            let frame = first.plus(offset);
            let found = platform.read_word(frame, 0);
            if found != Pattern::new(PROBE, frame.get()).word(0) {
                let wrong = crate::content::Wrong { line: 0, found };
                contents.record(frame, wrong, (When::Ended, "probe", frame.get()));
            }
        }
        memory.free(first, Order::HUGE);
    }

    /// Memory that nothing can make room of, in frames: kernel memory but the inodes and names that shrinkers give up.
    fn unmovable(&self) -> u64 {
        let usage = self.parts.files.usage();
        let kernel = kernel_frames(self.parts.frames, self.parts.balloon.actual());
        kernel.saturating_sub(usage.inode_frames + usage.name_frames)
    }

    /// Sets the watermarks of a machine at rest.
    pub(crate) fn rest_watermarks(&self) {
        for zone in self.parts.frames.zones() {
            self.parts.frames.set_watermarks(zone, self.rested);
        }
    }

    pub(crate) fn begin_pass(&self, pass: &PassPlan, now: u64) {
        let balloon = self.parts.balloon.actual();
        let mut passes = self.passes.lock();
        passes.begin(pass, self.parts.frames, balloon, now);
        passes.watch(self.parts.choice());
    }

    pub(crate) fn sample_pass(&self, now: u64) {
        self.passes.lock().sample(now, || self.unmovable());
    }

    pub(crate) fn faulted(&self, at: u64, got: bool) {
        self.passes.lock().tried(at, got);
    }

    pub(crate) fn end_pass(&self, pass: &PassPlan, result: &PassResult) {
        let sizes = self.sizes();
        self.passes
            .lock()
            .end(pass, result, self.parts.frames, sizes, self.parts.choice());
    }
}
