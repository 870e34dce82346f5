//! Collapsing base pages of programs into huge pages, as a daemon.

use dirigible_frames::{PageTables, Pfn};
use dirigible_paging::{
    CollapseConfig, CollapseCursor, CollapseError, Page, PageSource, Paging, SpaceId,
};

use crate::daemon::{Daemon, Next};

/// How much the daemon looks at, and how long it rests. The defaults are Linux's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KhugepagedConfig {
    /// Page-table entries that one pass looks at (`pages_to_scan`). Default 4096: eight ranges of 2 MiB.
    pub pages: u64,
    /// Time from the end of a pass to the next, in nanoseconds (`scan_sleep_millisecs`). Default 10 s.
    pub sleep_ns: u64,
    /// The same after a pass that ended because there was no huge page (`alloc_sleep_millisecs`). Default 60 s.
    pub alloc_sleep_ns: u64,
    /// Which ranges are worth a huge page.
    pub collapse: CollapseConfig,
}

impl Default for KhugepagedConfig {
    fn default() -> Self {
        Self {
            pages: 4096,
            sleep_ns: 10_000_000_000,
            alloc_sleep_ns: 60_000_000_000,
            collapse: CollapseConfig::default(),
        }
    }
}

/// Writes what a fault would write into a page that was not mapped: gets its space, its number, and the new frame.
pub type Fill<'k> = &'k (dyn Fn(SpaceId, Page, Pfn) + Sync);

/// Goes around all spaces of a [`Paging`] at a steady pace, and replaces base pages by huge pages where a program
/// wanted one and got none.
///
/// A step looks at ranges until it has tried one, so it copies one huge page at most. It waits for what its source of
/// memory waits for: with [`FreeFrames`](dirigible_paging::FreeFrames) for nothing, so it takes only blocks that are
/// whole already; with a slow path ([`MemoryManager::khugepaged`](crate::MemoryManager::khugepaged)) for compaction
/// and reclaim, as in Linux. Then it needs a thread, or a program of a schedule, of its own.
pub struct Khugepaged<'k, 'a, P> {
    paging: &'k Paging<'a, P>,
    memory: &'k dyn PageSource,
    fill: Fill<'k>,
    config: KhugepagedConfig,
    cursor: CollapseCursor,
    /// Entries that this pass still looks at.
    left: u64,
}

impl<'k, 'a, P: PageTables> Khugepaged<'k, 'a, P> {
    /// The daemon for the spaces of `paging`, with huge pages from `memory`. A `Paging` has one.
    pub fn new(
        paging: &'k Paging<'a, P>,
        memory: &'k dyn PageSource,
        fill: Fill<'k>,
        config: KhugepagedConfig,
    ) -> Self {
        Self {
            paging,
            memory,
            fill,
            config,
            cursor: CollapseCursor::default(),
            left: config.pages,
        }
    }

    /// Ends a pass.
    fn rest(&mut self, now: u64, ns: u64) -> Next {
        self.left = self.config.pages;
        Next::At(now.saturating_add(ns))
    }
}

impl<P: PageTables> Daemon for Khugepaged<'_, '_, P> {
    fn step(&mut self, now: u64) -> Next {
        let next = self.paging.next_eligible(&mut self.cursor, &mut self.left);
        let Some((space, page)) = next else {
            return self.rest(now, self.config.sleep_ns);
        };
        let fill = |page, frame| (self.fill)(space, page, frame);
        let collapse = self.config.collapse;
        let result = self
            .paging
            .collapse(space, page, collapse, self.memory, fill);
        match result {
            Err(CollapseError::OutOfMemory) => self.rest(now, self.config.alloc_sleep_ns),
            // Another range is worth the same look whatever came of this one.
            _ if self.left > 0 => Next::At(now),
            _ => self.rest(now, self.config.sleep_ns),
        }
    }
}
