//! The DMA area: memory for queues and request buffers, handed out in whole pages, first fit.
#![allow(unsafe_code)]

use core::{ops::Range, ptr::NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dirigible_frames::FRAME_SIZE;
use virtio_drivers::PhysAddr;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// The DMA area of one machine. It keeps its mapping alive, also for a driver that outlives the machine.
#[derive(Debug)]
pub(crate) struct DmaArea {
    base: NonNull<u8>,
    address: PhysAddr,
    bytes: usize,
    pages: Mutex<DmaPages>,
    /// Owns the mapping.
    _region: Arc<GuestRegionMmap>,
}

// SAFETY: `base` is the only part that is not Send and Sync by itself. It is a plain address of a mapping that the
// value owns; whoever dereferences it does so under the HAL's contract.
unsafe impl Send for DmaArea {}
// SAFETY: as above.
unsafe impl Sync for DmaArea {}

impl DmaArea {
    /// The area that `region` maps from `base` on; all of its pages are free.
    pub(crate) fn new(region: Arc<GuestRegionMmap>, base: NonNull<u8>) -> Self {
        let bytes = region.len() as usize;
        Self {
            base,
            address: region.start_addr().0,
            bytes,
            pages: Mutex::new(DmaPages::new(bytes / FRAME_SIZE)),
            _region: region,
        }
    }

    /// Host address of the first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Physical address of the first byte; never 0, the metadata lie below.
    pub(crate) fn address(&self) -> PhysAddr {
        self.address
    }

    /// Host addresses.
    pub(crate) fn host_range(&self) -> Range<usize> {
        let start = self.base.as_ptr().expose_provenance();
        start..start + self.bytes
    }

    /// The area's pages. A panicking holder leaves them usable: each operation is one step.
    pub(crate) fn pages(&self) -> MutexGuard<'_, DmaPages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages of the DMA area, free or taken.
///
/// It hands out some dozens of small runs in a machine's life, so a plain table and a linear search do.
#[derive(Debug)]
pub(crate) struct DmaPages {
    /// 0: free. Otherwise the page is taken; at the head of a run stands its length, behind it [`TAIL`].
    pages: Vec<u32>,
}

/// Marks a page of a run that is not its head.
const TAIL: u32 = u32::MAX;

impl DmaPages {
    /// An area of `pages` free pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            pages: vec![0; pages],
        }
    }

    /// Takes `count` pages in a row; gives the index of the first.
    pub(crate) fn take(&mut self, count: usize) -> Option<usize> {
        if count == 0 || count > self.pages.len() {
            return None;
        }
        let first = self
            .pages
            .windows(count)
            .position(|run| run.iter().all(|&page| page == 0))?;
        self.pages[first..first + count].fill(TAIL);
        self.pages[first] = u32::try_from(count).ok()?;
        Some(first)
    }

    /// Gives back the run of `count` pages that begins at `first`; `false` if there is no such run.
    pub(crate) fn give_back(&mut self, first: usize, count: usize) -> bool {
        if count == 0 || self.pages.get(first).map(|&length| length as usize) != Some(count) {
            return false;
        }
        self.pages[first..first + count].fill(0);
        true
    }

    /// Pages that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.pages.iter().filter(|&&page| page != 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_do_not_overlap_and_come_back() {
        let mut area = DmaPages::new(8);
        let a = area.take(3).unwrap();
        let b = area.take(5).unwrap();
        assert_eq!((a, b), (0, 3));
        assert_eq!(area.take(1), None);
        assert!(area.give_back(a, 3));
        assert_eq!(area.take(4), None);
        assert_eq!(area.take(2), Some(0));
        assert_eq!(area.taken(), 7);
    }

    #[test]
    fn wrong_returns_change_nothing() {
        let mut area = DmaPages::new(8);
        let run = area.take(4).unwrap();
        assert!(!area.give_back(run, 3));
        assert!(!area.give_back(run + 1, 3));
        assert!(!area.give_back(run, 0));
        assert!(!area.give_back(100, 1));
        assert_eq!(area.taken(), 4);
        assert!(area.give_back(run, 4));
        assert!(!area.give_back(run, 4));
        assert_eq!(area.take(0), None);
        assert_eq!(area.take(9), None);
    }
}
