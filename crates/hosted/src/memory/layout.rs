//! Where things lie in the guest's physical memory.

use core::ops::Range;

use dirigible_frames::{FRAME_SIZE, FRAMES_PER_BLOCK, Pfn};
use thiserror::Error;

/// The least memory a machine can have: below this the reserved part would be a large share of it.
pub const MIN_MEMORY: u64 = 16 << 20;
/// The most memory a machine can have: page frame numbers in balloon messages are 32 bits wide.
pub const MAX_MEMORY: u64 = 1 << 44;

/// The least that is reserved for metadata and DMA: one pageblock.
const MIN_RESERVED_FRAMES: u64 = FRAMES_PER_BLOCK as u64;
/// One in this many frames is reserved: 32 MiB of 4 GiB. Metadata needs 0.45 % of memory, the rest is the DMA area.
const RESERVED_SHARE: u64 = 128;
/// The least DMA memory: some dozen queues and request buffers.
const MIN_DMA_FRAMES: u64 = (512 << 10) / FRAME_SIZE as u64;
/// The DMA area's share of what is reserved.
const DMA_SHARE: u64 = 4;

/// Regions of guest memory that no machine can be made of.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// No memory at all.
    #[error("the memory size is zero; a machine needs at least {} MiB", MIN_MEMORY >> 20)]
    Zero,
    /// A size that does not end at a frame boundary.
    #[error("a memory size of {bytes} bytes is not a whole number of frames of {FRAME_SIZE} bytes")]
    NotWholeFrames {
        /// The size asked for.
        bytes: u64,
    },
    /// Less than [`MIN_MEMORY`].
    #[error("a memory size of {bytes} bytes is too small; a machine needs at least {} MiB", MIN_MEMORY >> 20)]
    TooSmall {
        /// The size asked for.
        bytes: u64,
    },
    /// Frame numbers above what a balloon message can carry.
    #[error("guest memory ends at {end:#x}, above the largest physical address, {MAX_MEMORY:#x}")]
    TooHigh {
        /// First byte behind the memory.
        end: u64,
    },
    /// Regions that are empty, overlap, touch or stand in the wrong order.
    #[error("the memory regions must not be empty, must ascend, and must leave holes between them")]
    BadRegions,
    /// Metadata and DMA area do not fit at the bottom of the first region.
    #[error("the first memory region has {frames} frames; the machine's own {reserved} do not fit")]
    FirstRegionTooSmall {
        /// Frames in the region.
        frames: u64,
        /// Frames to be reserved there.
        reserved: u64,
    },
}

/// The parts of guest memory: at the bottom of the first region what is reserved (the allocator's metadata, then the
/// DMA area), the rest is managed by the allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamLayout {
    regions: Vec<Range<Pfn>>,
    metadata: Range<Pfn>,
    dma: Range<Pfn>,
    managed: Vec<Range<Pfn>>,
}

impl RamLayout {
    /// One region from frame 0.
    pub fn contiguous(bytes: u64) -> Result<Self, LayoutError> {
        if bytes == 0 {
            return Err(LayoutError::Zero);
        }
        if !bytes.is_multiple_of(FRAME_SIZE as u64) {
            return Err(LayoutError::NotWholeFrames { bytes });
        }
        Self::with_regions(&[Pfn::new(0)..Pfn::containing(bytes)])
    }

    /// Several regions, ascending, with holes between them.
    pub fn with_regions(regions: &[Range<Pfn>]) -> Result<Self, LayoutError> {
        let (Some(first), Some(last)) = (regions.first(), regions.last()) else {
            return Err(LayoutError::Zero);
        };
        let in_order = regions.iter().all(|region| region.start < region.end)
            && regions.windows(2).all(|pair| pair[0].end < pair[1].start);
        if !in_order {
            return Err(LayoutError::BadRegions);
        }
        if last.end.get() > MAX_MEMORY / FRAME_SIZE as u64 {
            return Err(LayoutError::TooHigh {
                end: last.end.get().saturating_mul(FRAME_SIZE as u64),
            });
        }
        let total: u64 = regions.iter().map(frames_in).sum();
        if total * (FRAME_SIZE as u64) < MIN_MEMORY {
            return Err(LayoutError::TooSmall {
                bytes: total * FRAME_SIZE as u64,
            });
        }

        // It ends at a block's end, so that no block is partly reserved.
        let wanted = (total / RESERVED_SHARE).max(MIN_RESERVED_FRAMES);
        let end = (first.start.get() + wanted).next_multiple_of(FRAMES_PER_BLOCK as u64);
        let reserved = end - first.start.get();
        if reserved >= frames_in(first) {
            return Err(LayoutError::FirstRegionTooSmall {
                frames: frames_in(first),
                reserved,
            });
        }
        let dma_frames = (reserved / DMA_SHARE).max(MIN_DMA_FRAMES);
        let split = Pfn::new(end - dma_frames);
        let end = Pfn::new(end);

        let mut managed = regions.to_vec();
        managed[0].start = end;
        Ok(Self {
            regions: regions.to_vec(),
            metadata: first.start..split,
            dma: split..end,
            managed,
        })
    }

    /// All memory, as given.
    pub fn regions(&self) -> &[Range<Pfn>] {
        &self.regions
    }

    /// Frames that hold the allocator's metadata. No device and no platform access reaches them.
    pub fn metadata(&self) -> Range<Pfn> {
        self.metadata.clone()
    }

    /// Frames of the DMA area: queues and request buffers. Devices reach them, platform accesses do not.
    pub fn dma(&self) -> Range<Pfn> {
        self.dma.clone()
    }

    /// What the allocator must be told to keep its hands off: metadata and DMA area, adjacent.
    pub fn reserved(&self) -> Range<Pfn> {
        self.metadata.start..self.dma.end
    }

    /// Frames for the allocator to manage.
    pub fn managed(&self) -> &[Range<Pfn>] {
        &self.managed
    }

    /// Number of frames in [`managed`](Self::managed).
    pub fn managed_frames(&self) -> u64 {
        self.managed.iter().map(frames_in).sum()
    }

    /// Number of all frames.
    pub fn total_frames(&self) -> u64 {
        self.regions.iter().map(frames_in).sum()
    }
}

/// Frames in a range.
pub(crate) fn frames_in(range: &Range<Pfn>) -> u64 {
    range.end.get() - range.start.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_gib_reserve_32_mib() {
        let layout = RamLayout::contiguous(4 << 30).unwrap();
        assert_eq!(layout.reserved(), Pfn::new(0)..Pfn::new(8192));
        assert_eq!(layout.metadata().end, layout.dma().start);
        assert_eq!(frames_in(&layout.dma()), 2048);
        assert_eq!(layout.managed_frames(), (1 << 20) - 8192);
        // 0.45 % of memory fit in the metadata.
        assert!(frames_in(&layout.metadata()) * 10_000 > layout.total_frames() * 45);
    }

    #[test]
    fn small_machines_reserve_a_block() {
        let layout = RamLayout::contiguous(MIN_MEMORY).unwrap();
        assert_eq!(frames_in(&layout.reserved()), 512);
        assert!(frames_in(&layout.dma()) >= MIN_DMA_FRAMES);
    }

    #[test]
    fn the_reserved_part_ends_at_a_block() {
        let regions = [
            Pfn::new(700)..Pfn::new(9000),
            Pfn::new(10_000)..Pfn::new(20_001),
        ];
        let layout = RamLayout::with_regions(&regions).unwrap();
        assert_eq!(layout.reserved().start, Pfn::new(700));
        assert_eq!(layout.reserved().end.offset_in_block(), 0);
        assert_eq!(layout.managed().len(), 2);
        assert_eq!(
            layout.managed_frames() + frames_in(&layout.reserved()),
            layout.total_frames()
        );
    }

    #[test]
    fn bad_sizes_are_named() {
        let pfn = Pfn::new;
        assert_eq!(RamLayout::contiguous(0), Err(LayoutError::Zero));
        assert_eq!(RamLayout::with_regions(&[]), Err(LayoutError::Zero));
        let error = RamLayout::contiguous((64 << 20) + 1).unwrap_err();
        assert!(matches!(error, LayoutError::NotWholeFrames { .. }));
        let error = RamLayout::contiguous(1 << 20).unwrap_err();
        assert!(error.to_string().contains("at least 16 MiB"), "{error}");
        let error = RamLayout::contiguous(1 << 50).unwrap_err();
        assert!(matches!(error, LayoutError::TooHigh { .. }));
        let touching = [pfn(0)..pfn(8192), pfn(8192)..pfn(9000)];
        assert_eq!(
            RamLayout::with_regions(&touching),
            Err(LayoutError::BadRegions)
        );
        let descending = [pfn(9000)..pfn(19_000), pfn(0)..pfn(8192)];
        assert_eq!(
            RamLayout::with_regions(&descending),
            Err(LayoutError::BadRegions)
        );
        let tiny_first = [pfn(0)..pfn(100), pfn(1000)..pfn(9000)];
        assert!(matches!(
            RamLayout::with_regions(&tiny_first),
            Err(LayoutError::FirstRegionTooSmall { frames: 100, .. })
        ));
    }
}
