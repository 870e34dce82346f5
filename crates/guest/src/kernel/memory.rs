//! Who gets which memory: the kernel's image and tables, its heap, the allocator's metadata, and what is managed.

use core::ops::Range;

use arrayvec::ArrayVec;
use dirigible_frames::{FRAME_SIZE, FRAMES_PER_BLOCK, Pfn};
use thiserror::Error;

use super::arch::start_info::MAX_REGIONS;

/// Bytes in a pageblock.
const BLOCK: u64 = (FRAME_SIZE * FRAMES_PER_BLOCK) as u64;
/// The kernel's page tables: a page for each GiB, and some.
const TABLES: u64 = 2 << 20;
/// The least heap: with less not even a test can run.
const LEAST_HEAP: u64 = 8 << 20;
/// The kernel's image, tables, heap and metadata lie below this: the boot tables reach no further.
const LOW: u64 = 4 << 30;

/// The memory's parts, in bytes.
#[derive(Debug)]
pub struct Layout {
    /// For the kernel's page tables.
    pub tables: Range<u64>,
    /// For heap and metadata.
    pub own: Range<u64>,
    /// For the allocator: whole blocks.
    pub managed: ArrayVec<Range<Pfn>, MAX_REGIONS>,
}

/// The machine has too little memory.
#[derive(Debug, Error)]
#[error(
    "the machine has {has_mib} MiB of RAM in whole blocks beside the kernel and needs {needs_mib}: give it more memory (-m)"
)]
pub struct TooLittle {
    has_mib: u64,
    needs_mib: u64,
}

impl Layout {
    /// Divides `ram`. With `wanted` exactly that many frames are managed, and the kernel keeps all the rest; else it keeps
    /// `keep` bytes.
    ///
    /// # Errors
    ///
    /// There is too little.
    pub fn new(
        ram: &[Range<u64>],
        image_end: u64,
        wanted: Option<u64>,
        keep: u64,
    ) -> Result<Self, TooLittle> {
        let mut blocks: ArrayVec<Range<u64>, MAX_REGIONS> = ArrayVec::new();
        for region in ram {
            // What lies below the kernel's end is the firmware's and the image's.
            let start = region.start.max(image_end).next_multiple_of(BLOCK);
            let end = region.end / BLOCK * BLOCK;
            if start < end {
                blocks.push(start..end);
            }
        }
        let has: u64 = blocks.iter().map(|range| range.end - range.start).sum();
        let low = blocks
            .first()
            .map_or(0, |range| range.end.min(LOW) - range.start);
        let managed = match wanted {
            Some(frames) => frames * FRAME_SIZE as u64,
            None => has.saturating_sub(keep.next_multiple_of(BLOCK)),
        };
        let needs = managed + LEAST_HEAP + TABLES;
        let own = has.saturating_sub(managed);
        if managed == 0 || has < needs || own >= low {
            return Err(TooLittle {
                has_mib: has >> 20,
                needs_mib: needs.max(LEAST_HEAP + TABLES + BLOCK) >> 20,
            });
        }
        let start = blocks[0].start;
        blocks[0].start += own;
        let pfn = Pfn::containing;
        Ok(Self {
            tables: start..start + TABLES,
            own: start + TABLES..start + own,
            managed: blocks
                .iter()
                .map(|range| pfn(range.start)..pfn(range.end))
                .collect(),
        })
    }
}
