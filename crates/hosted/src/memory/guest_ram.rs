//! Guest memory: real mappings of this process.
//!
//! Three kinds of memory never mix, each with a mapping of its own: *metadata*, which the allocator gets as one slice
//! and nobody else can reach; the *DMA area*, which drivers and devices reach; *managed* frames, which devices and the
//! platform's accesses reach. So neither a caller's mistake nor an address in a virtqueue can touch the allocator's
//! tables.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use core::{ops::Range, ptr::NonNull};

use dirigible_frames::{FRAME_SHIFT, FRAME_SIZE, Pfn};
use rustix::mm::{Advice, madvise};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::memory::{
    dma::DmaArea,
    layout::{RamLayout, frames_in},
    managed::ManagedMemory,
    registry,
    residency::resident_pages,
};

/// What size of host page the host may use for guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backing {
    /// 4 KiB pages alone: what is resident is known to the frame.
    #[default]
    BasePages,
    /// Transparent huge pages where the host has them: faster, but a touched frame may bring 511 others with it.
    HugePages,
}

/// Guest memory that could not be had.
#[derive(Debug, Error)]
pub enum RamError {
    /// The kernel refused the mapping.
    #[error("the host maps no guest memory of {bytes} bytes: {reason}")]
    Map {
        /// Length of the mapping.
        bytes: u64,
        /// The kernel's answer.
        reason: String,
    },
    /// The kernel refused advice about it.
    #[error("the host takes no advice about guest memory: {0}")]
    Advice(#[source] io::Error),
}

/// Memory of one machine; clones share it.
#[derive(Clone, Debug)]
pub struct GuestRam {
    shared: Arc<RamShared>,
}

/// What the clones share.
#[derive(Debug)]
pub(crate) struct RamShared {
    /// Which machine it is, unique in the process.
    id: u64,
    layout: RamLayout,
    backing: Backing,
    metadata: MmapRegion,
    metadata_taken: AtomicBool,
    dma: Arc<DmaArea>,
    /// What devices see: DMA area and managed frames. It owns their mappings.
    view: GuestMemoryMmap,
    managed: ManagedMemory,
}

impl GuestRam {
    /// Maps memory laid out as `layout`. The host gives frames as they are touched.
    pub fn new(layout: RamLayout, backing: Backing) -> Result<Self, RamError> {
        /// Numbers machines from 1; 0 means none.
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);

        let metadata = map(&layout.metadata(), backing)?;
        let dma = map(&layout.dma(), backing)?;
        let dma_base = NonNull::new(dma.as_ptr()).ok_or_else(|| RamError::Map {
            bytes: dma.size() as u64,
            reason: "it lies at address 0".into(),
        })?;
        let dma = region(dma, layout.dma().start)?;
        let mut regions = vec![Arc::clone(&dma)];
        let mut spans = Vec::new();
        for range in layout.managed() {
            let mapping = map(range, backing)?;
            spans.push((range.clone(), mapping.as_ptr()));
            regions.push(region(mapping, range.start)?);
        }
        let view = GuestMemoryMmap::from_arc_regions(regions).map_err(|error| RamError::Map {
            bytes: layout.total_frames() << FRAME_SHIFT,
            reason: error.to_string(),
        })?;
        // SAFETY: each mapping is page-aligned, as long as its range, readable and writable, and owned by `view`, which
        // lives in the same `RamShared`; whoever clones `managed` keeps the `Arc` beside it. Nobody makes references
        // into these mappings: `view` is accessed by volatile copies, `managed` by atomics.
        let managed = unsafe { ManagedMemory::new(&spans) };
        let shared = Arc::new(RamShared {
            // Relaxed: only uniqueness matters.
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            dma: Arc::new(DmaArea::new(dma, dma_base)),
            layout,
            backing,
            metadata,
            metadata_taken: AtomicBool::new(false),
            view,
            managed,
        });
        let managed = shared.managed.host_ranges();
        let addresses = managed.map(|(range, first)| (range, first.address()));
        registry::register(shared.id, &shared.dma, addresses);
        Ok(Self { shared })
    }

    /// Where things lie in it.
    pub fn layout(&self) -> &RamLayout {
        &self.shared.layout
    }

    /// What size of host page may back it.
    pub fn backing(&self) -> Backing {
        self.shared.backing
    }

    /// The memory for the memory manager's tables: the first caller gets it, all later ones `None`.
    // `mut_from_ref`: the flag makes the reference unique, as a lock would.
    #[allow(clippy::mut_from_ref)]
    pub fn table_memory(&self) -> Option<&mut [MaybeUninit<u8>]> {
        let mapping = self.take_metadata()?;
        // SAFETY: a live, private mapping of that length, which `self` keeps for the lifetime of the result.
        // `take_metadata` gives it out once; it is in nobody's view (see the module's head), so the reference is
        // unique.
        Some(unsafe { core::slice::from_raw_parts_mut(mapping.as_ptr().cast(), mapping.size()) })
    }

    /// The same memory for an allocator alone, zeroed: one of the two is given, once.
    #[allow(clippy::mut_from_ref)]
    pub fn metadata_slice(&self) -> Option<&mut [u8]> {
        let mapping = self.take_metadata()?;
        // SAFETY: as in `table_memory`; the mapping is zeroed, and nobody else has had it.
        Some(unsafe { core::slice::from_raw_parts_mut(mapping.as_ptr(), mapping.size()) })
    }

    fn take_metadata(&self) -> Option<&MmapRegion> {
        // Relaxed: whoever wins has the memory alone, there is nothing to be published with it.
        let is_taken = self.shared.metadata_taken.swap(true, Ordering::Relaxed);
        (!is_taken).then_some(&self.shared.metadata)
    }

    /// Managed frames that the host has memory for, by `mincore`. A frame that was only read counts too.
    pub fn resident_frames(&self) -> io::Result<u64> {
        self.shared
            .managed
            .host_ranges()
            .map(|(range, _)| resident_pages(range))
            .sum()
    }

    /// Whether the host has memory for a managed frame; `false` for all others.
    pub fn is_resident(&self, pfn: Pfn) -> io::Result<bool> {
        match self.shared.managed.host_address(pfn) {
            Some(address) => Ok(resident_pages(address..address + FRAME_SIZE)? == 1),
            None => Ok(false),
        }
    }

    /// Bytes that the host has memory for, metadata and DMA area included.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let metadata = self.shared.metadata.as_ptr().addr();
        let own = resident_pages(metadata..metadata + self.shared.metadata.size())?
            + resident_pages(self.shared.dma.host_range())?;
        Ok((own + self.resident_frames()?) << FRAME_SHIFT)
    }

    /// Makes the host give memory for all managed frames, whose contents stay.
    pub fn touch_all(&self) {
        for (range, first) in self.shared.managed.host_ranges() {
            let address = core::ptr::with_exposed_provenance_mut(range.start);
            // SAFETY: a live mapping of this machine; populating changes no content.
            let populated = unsafe { madvise(address, range.len(), Advice::LinuxPopulateWrite) };
            if populated.is_err() {
                // Before Linux 5.14: one write a frame that changes nothing.
                for offset in 0..(range.len() >> FRAME_SHIFT) as u64 {
                    self.shared
                        .managed
                        .word(first.plus(offset), 0)
                        .fetch_or(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// Pages of the DMA area that drivers hold.
    pub fn dma_pages_taken(&self) -> usize {
        self.shared.dma.pages().taken()
    }

    /// What the clones share.
    pub(crate) fn shared(&self) -> &Arc<RamShared> {
        &self.shared
    }
}

impl RamShared {
    /// Which machine it is.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What devices see.
    pub(crate) fn view(&self) -> &GuestMemoryMmap {
        &self.view
    }

    /// The managed frames. A clone must stay beside a clone of the `Arc`.
    pub(crate) fn managed(&self) -> &ManagedMemory {
        &self.managed
    }

    /// Number of all frames.
    pub(crate) fn frames(&self) -> u64 {
        self.layout.total_frames()
    }
}

impl Drop for RamShared {
    fn drop(&mut self) {
        registry::unregister(self.id);
    }
}

/// Maps anonymous memory for the frames of `range`.
fn map(range: &Range<Pfn>, backing: Backing) -> Result<MmapRegion, RamError> {
    let bytes = frames_in(range) << FRAME_SHIFT;
    let refused = |reason: String| RamError::Map { bytes, reason };
    let length = usize::try_from(bytes).map_err(|error| refused(error.to_string()))?;
    let mapping = MmapRegion::new(length).map_err(|error| refused(error.to_string()))?;
    let advice = match backing {
        Backing::BasePages => Advice::LinuxNoHugepage,
        Backing::HugePages => Advice::LinuxHugepage,
    };
    // SAFETY: our own mapping, whole; this advice changes no content.
    let advised = unsafe { madvise(mapping.as_ptr().cast(), length, advice) };
    match advised {
        // A kernel without transparent huge pages has nothing to be kept from, and no more to give.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(mapping),
        Err(error) => Err(RamError::Advice(error.into())),
    }
}

/// Gives a mapping its place in guest memory.
fn region(mapping: MmapRegion, first: Pfn) -> Result<Arc<GuestRegionMmap>, RamError> {
    let bytes = mapping.size() as u64;
    let region = GuestRegionMmap::new(mapping, GuestAddress(first.address()));
    region.map(Arc::new).ok_or_else(|| RamError::Map {
        bytes,
        reason: "it ends beyond the address space".into(),
    })
}
