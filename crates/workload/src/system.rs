//! The real machine: allocator, compaction, paging, filler and balloon behind the two traits of
//! [`machine`](crate::machine).

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use dirigible_frames::{
    AllocRequest, FrameAllocator, FrameClass, Order, PageTables, Pfn, Watermarks,
};
use dirigible_paging::{
    Fault, FaultKind, MoveObserver, Page, PageSource, Paging, SlowPath, SpaceId,
};
use spin::Mutex;

use crate::{
    balloon::BalloonControl,
    content::{ContentLog, Pattern, When},
    filler::Filler,
    machine::{Check, KernelMemory, KernelRequest, LoadMemory, NoMemory, PassMachine, Space},
    passes::{Ended, PassBook, Sizes},
    report::{AttemptHost, PassReport},
    stalls::Stalls,
    timeline::{PassPlan, PassResult},
    user::UserMemory,
};

/// Key of kernel memory in its patterns.
const KERNEL: u64 = 0x6e72_6b00_0000_0000;
/// Key of the probe's huge pages.
const PROBE: u64 = 0x7072_6f00_0000_0000;

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
    /// The filler, also where it is switched off.
    pub filler: &'a Filler<'a, P>,
    /// How programs access their pages where the hardware walks the page tables. `None`: the platform reads and writes
    /// the frames directly.
    pub user: Option<&'a dyn UserMemory>,
    /// The balloon.
    pub balloon: &'a dyn BalloonControl,
    /// The errors that checks of contents found.
    pub contents: &'a ContentLog,
    /// How long requests stalled.
    pub stalls: &'a Stalls<'a, P>,
    /// The host's clock.
    pub host_clock: &'a dyn HostClock,
}

/// The real machine.
pub struct System<'a, P: PageTables> {
    pub(crate) parts: Parts<'a, P>,
    rested: Watermarks,
    serial: AtomicU64,
    kernel: AtomicU64,
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
            let note = (When::Moved, "job", page);
            self.contents
                .check_whole(self.platform, frame, pattern, note);
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
            serial: AtomicU64::new(0),
            kernel: AtomicU64::new(0),
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

    fn check_frame(
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

    /// The memory of the load, the filler and the balloon.
    fn sizes(&self) -> Sizes {
        // An estimate: in threaded mode the load goes on meanwhile. If the audit fails, it fails again at the end of
        // the run.
        let audit = self.parts.paging.audit().unwrap_or_default();
        Sizes {
            anonymous: audit.frames(),
            // Relaxed: a count for the report.
            kernel: self.kernel.load(Ordering::Relaxed) + audit.tables,
            filler: self.parts.filler.held(),
            balloon: self.parts.balloon.actual(),
        }
    }
}

impl<P: PageTables> System<'_, P> {
    /// Serves a page fault. A new page is filled with its pattern before it is mapped.
    pub(crate) fn serve_fault(
        &self,
        space: Space,
        page: u64,
        huge: bool,
    ) -> Result<Fault, NoMemory> {
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
        let (space, page) = (SpaceId::new(space.0), Page::new(page));
        let fault = paging.fault_filled(space, page, kind, memory, fill);
        fault.map_err(|_| NoMemory)
    }
}

pub(crate) fn pattern_of(space: Space, page: u64) -> Pattern {
    Pattern::new(u64::from(space.0), page)
}

impl<P: PageTables> LoadMemory for System<'_, P> {
    fn create_space(&self) -> Result<Space, NoMemory> {
        let made = self.parts.paging.create_space(self.parts.memory);
        made.map(|space| Space(space.get())).map_err(|_| NoMemory)
    }

    fn fault(&self, space: Space, page: u64, huge: bool) -> Result<u64, NoMemory> {
        let huge = match self.parts.user {
            Some(user) => self.store_first_line(user, space, page, huge)?,
            None => self.serve_fault(space, page, huge)?.huge,
        };
        Ok(if huge { Order::HUGE.frames() as u64 } else { 1 })
    }

    fn reuse(&self, space: Space, page: u64, draw: u32) {
        self.check(space, page..page + 1, Check::Four(draw));
    }

    fn check(&self, space: Space, pages: Range<u64>, check: Check) {
        for page in pages {
            let note = (When::Used, "job", page);
            if let Some(user) = self.parts.user {
                self.check_loaded(user, space, page, check);
                continue;
            }
            self.parts
                .paging
                .access(SpaceId::new(space.0), Page::new(page), false, |frame| {
                    self.check_frame(frame, pattern_of(space, page), check, note);
                });
        }
    }

    fn give_back(&self, space: Space, pages: Range<u64>) {
        let pages = Page::new(pages.start)..Page::new(pages.end);
        self.parts.paging.unmap(SpaceId::new(space.0), pages);
    }

    fn exit(&self, space: Space) {
        self.parts.paging.destroy_space(SpaceId::new(space.0));
    }

    fn kernel_alloc(&self, request: KernelRequest) -> Result<KernelMemory, NoMemory> {
        let class = if request.reclaimable {
            FrameClass::Reclaimable
        } else {
            FrameClass::Unmovable
        };
        let first = self.alloc(AllocRequest::new(request.order, class))?;
        let frames = request.order.frames() as u64;
        // Relaxed, here and below: numbers that only have to be unique, and a count for the report.
        let serial = self.serial.fetch_add(frames, Ordering::Relaxed);
        self.kernel.fetch_add(frames, Ordering::Relaxed);
        for offset in 0..frames {
            let pattern = Pattern::new(KERNEL, serial + offset);
            pattern.write(self.parts.platform, first.plus(offset));
        }
        Ok(KernelMemory {
            request,
            first,
            serial,
        })
    }

    fn kernel_free(&self, memory: KernelMemory, check: Check) {
        let KernelMemory {
            request,
            first,
            serial,
        } = memory;
        let frames = request.order.frames() as u64;
        for offset in 0..frames {
            let pattern = Pattern::new(KERNEL, serial + offset);
            let note = (When::Ended, "kernel", serial + offset);
            self.check_frame(first.plus(offset), pattern, check, note);
        }
        self.kernel.fetch_sub(frames, Ordering::Relaxed);
        self.parts.memory.free(first, request.order);
    }
}

/// A huge page of the probe.
#[derive(Debug)]
pub struct ProbeBlock(Pfn);

impl<P: PageTables> PassMachine for System<'_, P> {
    type Block = ProbeBlock;

    fn attempt(&self) -> Result<ProbeBlock, NoMemory> {
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

    fn release(&self, ProbeBlock(first): ProbeBlock) {
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

    fn set_balloon_target(&self, frames: u64) {
        self.parts.balloon.set_target(frames);
    }

    fn balloon_target(&self) -> u64 {
        self.parts.balloon.target()
    }

    fn balloon_actual(&self) -> u64 {
        self.parts.balloon.actual()
    }

    fn drop_filler(&self) {
        self.parts.filler.drop_all();
    }

    fn rest_watermarks(&self) {
        for zone in self.parts.frames.zones() {
            self.parts.frames.set_watermarks(zone, self.rested);
        }
    }

    fn begin_pass(&self, pass: &PassPlan, now: u64) {
        let balloon = self.balloon_actual();
        let mut passes = self.passes.lock();
        passes.begin(pass, self.parts.frames, balloon, now);
    }

    fn sample_pass(&self, now: u64) {
        let balloon = self.balloon_actual();
        let mut passes = self.passes.lock();
        passes.sample(now, self.parts.frames, balloon);
    }

    fn faulted(&self, at: u64, got: bool) {
        self.passes.lock().tried(at, got);
    }

    fn end_pass(&self, pass: &PassPlan, result: &PassResult) {
        let sizes = self.sizes();
        self.passes
            .lock()
            .end(pass, result, self.parts.frames, sizes);
    }
}
