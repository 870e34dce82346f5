//! Programs' own loads and stores, on a machine whose hardware walks the page tables.

use dirigible_frames::PageTables;
use dirigible_paging::{Page, SpaceId};

use crate::{
    content::{LINES, When, four_lines},
    operator::Check,
    system::{System, Unserved, pattern_of},
};

/// Access to a program's memory at its virtual addresses.
///
/// The hardware walks the page tables of the space. When it faults, the fault handler calls `fault`, with interrupts
/// enabled and no lock held. If `fault` returns `true`, the access is repeated; if `false`, it fails. Each 64-byte line
/// of a page begins with one word of its pattern.
pub trait UserMemory: Sync {
    /// Stores `value` into line 0 of `page`. Returns whether it succeeded.
    fn store(
        &self,
        space: SpaceId,
        page: Page,
        value: u64,
        fault: &mut dyn FnMut() -> bool,
    ) -> bool;

    /// Loads all lines of `page`. Returns whether it succeeded.
    fn load(
        &self,
        space: SpaceId,
        page: Page,
        lines: &mut [u64; LINES],
        fault: &mut dyn FnMut() -> bool,
    ) -> bool;

    /// Loads `line` (0 to 63) of `page`. Returns `None` if the access failed.
    fn load_line(
        &self,
        space: SpaceId,
        page: Page,
        line: usize,
        fault: &mut dyn FnMut() -> bool,
    ) -> Option<u64>;
}

impl<P: PageTables> System<'_, P> {
    /// A program's first store into `page`, with the page fault that maps it. Returns whether it is part of a huge
    /// page.
    ///
    /// The fault fills the whole page, so that a migration before the store finds the contents complete.
    pub(crate) fn store_first_line(
        &self,
        user: &dyn UserMemory,
        space: SpaceId,
        page: u64,
        huge: bool,
    ) -> Result<bool, Unserved> {
        let mut served = None;
        let mut unserved = Unserved::NoMemory;
        let word = pattern_of(space, page).word(0);
        let (id, number) = (space, Page::new(page));
        let done = user.store(id, number, word, &mut || {
            match self.serve_fault(space, page, huge) {
                Ok(fault) => served = Some(fault),
                Err(why) => unserved = why,
            }
            served.is_some()
        });
        if !done {
            return Err(unserved);
        }
        let is_huge = || self.parts.paging.lookup(id, number).map(|now| now.huge);
        Ok(served
            .map(|fault| fault.huge)
            .or_else(is_huge)
            .unwrap_or(false))
    }

    /// A program loads `page` and compares its contents. Does nothing if the program has no such page.
    pub(crate) fn check_loaded(
        &self,
        user: &dyn UserMemory,
        space: SpaceId,
        page: u64,
        check: Check,
    ) -> Result<(), Unserved> {
        let pattern = pattern_of(space, page);
        let (id, number) = (space, Page::new(page));
        let mut result = Ok(());
        let fault = &mut || {
            let there = self.is_there(id, number);
            result = there.map(|_| ());
            there == Ok(true)
        };
        let contents = self.parts.contents;
        let wrong = match check {
            Check::Four(draw) => four_lines(draw).into_iter().find_map(|line| {
                let found = user.load_line(id, number, line, fault)?;
                pattern.wrong_read(line, found)
            }),
            Check::Whole => {
                let mut lines = [0; LINES];
                if !user.load(id, number, &mut lines, fault) {
                    return result;
                }
                contents.count_whole();
                pattern.first_wrong_read(&lines)
            }
        };
        if let Some(wrong) = wrong {
            // Its present frame: it may have been moved since.
            let frame = self.parts.paging.translate(id, number).unwrap_or_default();
            contents.record(frame, wrong, (When::Used, "program", page));
        }
        result
    }

    /// Serves a fault on a page that the program should have: waits until its migration is over, or brings it back from
    /// swap. Returns `false` if there is no such page.
    fn is_there(&self, space: SpaceId, page: Page) -> Result<bool, Unserved> {
        loop {
            match self.parts.paging.lookup(space, page) {
                None => return self.bring_back(space, page.get()),
                Some(mapping) if mapping.migrating => self.parts.platform.relax(),
                // It is mapped again, or the hardware had not seen the entry yet.
                Some(_) => return Ok(true),
            }
        }
    }
}
