//! Anonymous memory of a process, with patterns in it, and the memory that processes share.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    ops::Range,
    ptr::{self, NonNull, with_exposed_provenance_mut},
    sync::atomic::AtomicU64,
};

use dirigible_frames::FRAMES_PER_BLOCK;
use dirigible_workload::{
    calls::Check,
    content::{LINES, Pattern, Wrong},
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::{
    page_set::PageSet,
    pages::{PAGE, wrong_line},
};

const HUGE: u64 = FRAMES_PER_BLOCK as u64;
/// Bytes from one line of a page to the next.
const LINE: usize = PAGE / LINES;

/// A range that is not mapped, or not wholly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotMapped;

/// What a process has mapped. It stays mapped until it is unmapped or the process ends.
#[derive(Debug)]
pub struct Memory {
    mapped: PageSet,
    /// Pages that were stored into and have been there since.
    filled: PageSet,
    key: u64,
}

impl Memory {
    /// No memory yet; the patterns follow from `key`.
    pub fn new(key: u64) -> Self {
        Self {
            mapped: PageSet::default(),
            filled: PageSet::default(),
            key,
        }
    }

    /// Maps `pages` pages, aligned to 2 MiB and with huge pages advised if `huge`. Gives the number of the first.
    pub fn map(&mut self, pages: u64, huge: bool) -> io::Result<u64> {
        let spare = if huge { HUGE } else { 0 };
        let no_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        let all = pages.checked_add(spare).ok_or_else(no_memory)?;
        let bytes = usize::try_from(all)
            .ok()
            .and_then(|all| all.checked_mul(PAGE));
        let bytes = bytes.ok_or_else(no_memory)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, wherever the kernel has room: no other memory is touched.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, flags) }?;
        let start = (start.expose_provenance() / PAGE) as u64;
        let first = if huge {
            start.next_multiple_of(HUGE)
        } else {
            start
        };
        self.mapped.insert(start..start + all);
        if huge {
            self.unmap(start..first)
                .and_then(|()| self.unmap(first + pages..start + all))
                .ok();
            // Without huge pages in the kernel the advice is refused, and the memory is ordinary.
            let _ = self.advise(first..first + pages, Advice::LinuxHugepage);
        }
        Ok(first)
    }

    /// Stores the pattern into each page.
    pub fn touch(&mut self, pages: Range<u64>) -> Result<(), NotMapped> {
        self.demand(&pages)?;
        for page in pages.clone() {
            let pattern = Pattern::new(self.key, page);
            for line in 0..LINES {
                // SAFETY: the page is mapped for writing (`demand`), by this value alone, and nobody has a reference
                // into it; the word is aligned and inside the page.
                unsafe { word(page, line).write_volatile(pattern.word(line)) };
            }
        }
        self.filled.insert(pages);
        Ok(())
    }

    /// Compares the pages that are there; `wrong` gets what is wrong.
    pub fn check(
        &self,
        pages: Range<u64>,
        check: Check,
        mut wrong: impl FnMut(u64, Wrong),
    ) -> Result<(), NotMapped> {
        self.demand(&pages)?;
        for page in pages {
            if !self.filled.contains(page..page + 1) {
                continue;
            }
            // SAFETY: as in `touch`; it is only read.
            let read = |line| unsafe { word(page, line).read_volatile() };
            if let Some(found) = wrong_line(Pattern::new(self.key, page), check, read) {
                wrong(page, found);
            }
        }
        Ok(())
    }

    /// Gives the contents back.
    pub fn discard(&mut self, pages: Range<u64>) -> io::Result<()> {
        self.filled.remove(pages.clone());
        self.advise(pages, Advice::LinuxDontNeed)
    }

    /// Unmaps pages.
    pub fn unmap(&mut self, pages: Range<u64>) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        self.demand(&pages)
            .map_err(|NotMapped| io::ErrorKind::InvalidInput)?;
        self.mapped.remove(pages.clone());
        self.filled.remove(pages.clone());
        let (start, bytes) = bytes(&pages);
        // SAFETY: this value has mapped the pages and knows them no longer; nobody has a reference into them.
        unsafe { munmap(start.cast(), bytes) }?;
        Ok(())
    }

    fn advise(&self, pages: Range<u64>, advice: Advice) -> io::Result<()> {
        self.demand(&pages)
            .map_err(|NotMapped| io::ErrorKind::InvalidInput)?;
        let (start, bytes) = bytes(&pages);
        // SAFETY: the pages are this value's; nobody has a reference into them, so their contents may go.
        unsafe { madvise(start.cast(), bytes, advice) }?;
        Ok(())
    }

    fn demand(&self, pages: &Range<u64>) -> Result<(), NotMapped> {
        match self.mapped.contains(pages.clone()) {
            true => Ok(()),
            false => Err(NotMapped),
        }
    }
}

/// The address and the length of mapped pages.
fn bytes(pages: &Range<u64>) -> (*mut u8, usize) {
    let start = with_exposed_provenance_mut(pages.start as usize * PAGE);
    (start, (pages.end - pages.start) as usize * PAGE)
}

/// The first word of a line.
fn word(page: u64, line: usize) -> *mut u64 {
    with_exposed_provenance_mut(page as usize * PAGE + line * LINE)
}

/// Maps the first page of a file that processes share, for good. The file has that page.
pub fn map_shared(file: &File) -> io::Result<&'static [AtomicU64]> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping, wherever the kernel has room: no other memory is touched.
    let start = unsafe { mmap(ptr::null_mut(), PAGE, protection, flags, file, 0) }?;
    let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: the page is never unmapped, aligned, zeroed or what other processes have stored, and atomics are what all
    // of them access it by. The file is a memory file that nobody makes shorter.
    Ok(unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), PAGE / size_of::<u64>()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(memory: &Memory, pages: Range<u64>) -> Vec<u64> {
        let mut found: Vec<u64> = vec![];
        memory
            .check(pages, Check::Whole, |page, _| found.push(page))
            .unwrap();
        found
    }

    #[test]
    fn contents_are_compared_and_given_back() {
        let mut memory = Memory::new(7);
        let first = memory.map(20, false).unwrap();
        let all = first..first + 20;
        assert!(wrong(&memory, all.clone()).is_empty());
        memory.touch(all.clone()).unwrap();
        assert!(wrong(&memory, all.clone()).is_empty());
        // SAFETY: a mapped page, to which nobody has a reference.
        unsafe { word(first + 3, 9).write_volatile(1) };
        assert_eq!(wrong(&memory, all.clone()), [first + 3]);
        memory.discard(first + 3..first + 5).unwrap();
        assert!(wrong(&memory, all.clone()).is_empty());
        memory.touch(first + 3..first + 4).unwrap();
        assert!(wrong(&memory, all.clone()).is_empty());
        memory.unmap(first..first + 7).unwrap();
        assert_eq!(memory.touch(first + 6..first + 8), Err(NotMapped));
        assert!(memory.discard(first..first + 20).is_err());
        assert!(memory.unmap(first..first + 1).is_err());
        assert!(wrong(&memory, first + 7..first + 20).is_empty());
    }

    #[test]
    fn huge_ranges_are_aligned_and_exact() {
        let mut memory = Memory::new(7);
        for pages in [512, 1024] {
            let first = memory.map(pages, true).unwrap();
            assert_eq!(first % HUGE, 0);
            memory.touch(first..first + pages).unwrap();
            assert!(wrong(&memory, first..first + pages).is_empty());
            assert!(memory.touch(first..first + pages + 1).is_err());
            memory.unmap(first..first + pages).unwrap();
        }
        assert!(memory.map(u64::MAX, false).is_err());
        assert!(memory.map(u64::MAX, true).is_err());
    }
}
