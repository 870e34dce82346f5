//! A process's memory: what is mapped, and touching it.

use alloc::vec::Vec;
use core::ops::Range;

use dirigible_frames::{FRAMES_PER_BLOCK, Order, PageTables};

use super::process::Process;
use crate::calls::Failure;

const HUGE: u64 = FRAMES_PER_BLOCK as u64;
/// Pages that are touched between two looks whether the program is being killed.
const STRIDE: u64 = 64;

/// What a process has mapped.
#[derive(Default)]
pub(super) struct Areas {
    /// The first page that was never mapped; the lowest 2 MiB stay free.
    end: u64,
    /// Those with advice for huge pages.
    huge: Vec<Range<u64>>,
}

impl Areas {
    pub fn map(&mut self, pages: u64, huge: bool) -> u64 {
        let end = self.end.max(HUGE);
        let first = if huge {
            end.next_multiple_of(HUGE)
        } else {
            end
        };
        self.end = first + pages;
        if huge {
            self.huge.push(first..self.end);
        }
        first
    }

    pub fn unmap(&mut self, pages: &Range<u64>) {
        self.huge
            .retain(|area| area.start < pages.start || pages.end < area.end);
    }

    /// Whether the 2 MiB from `page` on are one huge page at best.
    fn is_huge(&self, page: u64) -> bool {
        let whole = |area: &Range<u64>| area.start <= page && page + HUGE <= area.end;
        page.is_multiple_of(HUGE) && self.huge.iter().any(whole)
    }
}

impl<P: PageTables> Process<'_, '_, '_, P> {
    pub(super) fn touch_pages(&self, pages: Range<u64>) -> Result<(), Failure> {
        let system = self.processes.system;
        let mut page = pages.start;
        let mut looked = 0;
        while page < pages.end {
            if looked % STRIDE == 0 {
                self.enter()?;
            }
            looked += 1;
            let huge = page + HUGE <= pages.end && self.areas.borrow().is_huge(page);
            match system.fault(self.space, page, huge) {
                Ok(true) => page += Order::HUGE.frames() as u64,
                Ok(false) => page += 1,
                Err(why) => return Err(self.unserved(why)),
            }
        }
        self.served();
        Ok(())
    }
}
