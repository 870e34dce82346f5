//! The division of RAM: the kernel's page tables, its heap with the allocator's metadata, and the managed frames.

use core::ops::Range;

use arrayvec::ArrayVec;
use dirigible_frames::{FRAME_SIZE, FRAMES_PER_BLOCK, Pfn};
use thiserror::Error;

/// Most regions of RAM that are used. Firmware reports a handful.
pub const MAX_REGIONS: usize = 8;
/// Bytes in a pageblock.
const BLOCK: u64 = (FRAME_SIZE * FRAMES_PER_BLOCK) as u64;
/// Bytes for the kernel's page tables: a page for each GiB, and some more.
const TABLES: u64 = 2 << 20;
/// The smallest heap, in bytes, with which a test can run.
const LEAST_HEAP: u64 = 8 << 20;
/// The kernel's image, tables, heap and metadata lie below this address: the boot tables map no more.
const LOW: u64 = 4 << 30;
/// RAM above this address (256 GiB) is not used: the kernel's page tables have no room to map more.
pub const HIGHEST: u64 = 256 << 30;

/// The parts of memory, as physical addresses in bytes.
#[derive(Debug)]
pub struct Layout {
    /// For the kernel's page tables.
    pub tables: Range<u64>,
    /// For the heap, which also holds the allocator's metadata.
    pub own: Range<u64>,
    /// For the allocator, in whole blocks.
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
    /// Divides `ram` above the kernel's image, which ends at `image_end`. If `wanted` is given, exactly that many
    /// frames are managed, and the kernel keeps what it can use of the rest. Otherwise the kernel keeps `keep` bytes.
    ///
    /// # Errors
    ///
    /// There is too little memory.
    pub fn new(
        ram: &[Range<u64>],
        image_end: u64,
        wanted: Option<u64>,
        keep: u64,
    ) -> Result<Self, TooLittle> {
        let mut blocks: ArrayVec<Range<u64>, MAX_REGIONS> = ArrayVec::new();
        // Memory below the image's end belongs to the firmware and the image. Regions may overlap; blocks must not.
        let mut taken = image_end;
        for region in ram {
            let end = region.end.min(HIGHEST) / BLOCK * BLOCK;
            let start = region.start.max(taken).min(HIGHEST).next_multiple_of(BLOCK);
            if start < end && !blocks.is_full() {
                blocks.push(start..end);
                taken = end;
            }
        }
        let has: u64 = blocks.iter().map(|range| range.end - range.start).sum();
        let low = blocks
            .first()
            .map_or(0, |range| range.end.min(LOW).saturating_sub(range.start));
        let managed = match wanted {
            Some(frames) => frames * FRAME_SIZE as u64,
            None => has.saturating_sub(keep.next_multiple_of(BLOCK)),
        };
        let needs = managed + LEAST_HEAP + TABLES;
        // If the rest does not fit into low memory, what is left over is not used.
        let own = has.saturating_sub(managed).min(low.saturating_sub(BLOCK));
        let mut unused = has.saturating_sub(managed + own);
        while let Some(last) = blocks.last_mut().filter(|_| unused > 0) {
            let cut = unused.min(last.end - last.start);
            last.end -= cut;
            unused -= cut;
            if last.start == last.end {
                blocks.pop();
            }
        }
        if managed == 0 || has < needs || own < LEAST_HEAP + TABLES {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    /// The image's end in these tests.
    const IMAGE: u64 = 0x1d_3000;

    fn frames(layout: &Layout) -> u64 {
        let ranges = layout.managed.iter();
        ranges
            .map(|range| range.end.get() - range.start.get())
            .sum()
    }

    /// QEMU's memory map for q35 with 4,160 MiB: low RAM ends below firmware's tables, the rest is above 4 GiB.
    fn q35() -> [Range<u64>; 3] {
        [0..0x9_fc00, MIB..0x7ffd_f000, 4 * GIB..4 * GIB + 2112 * MIB]
    }

    #[test]
    fn exactly_what_is_wanted_is_managed() {
        let wanted = 4064 * MIB / 4096;
        let layout = Layout::new(&q35(), IMAGE, Some(wanted), 0).unwrap();
        assert_eq!(frames(&layout), wanted);
        assert_eq!(layout.managed.len(), 2);
        assert!(layout.managed.iter().all(|range| {
            range.start.get().is_multiple_of(512) && range.end.get().is_multiple_of(512)
        }));
        // The kernel's own memory is one run, between its image and the managed frames.
        assert!(layout.tables.start >= IMAGE && layout.tables.end == layout.own.start);
        assert_eq!(layout.own.end, layout.managed[0].start.address());
        assert_eq!(layout.managed[1].start.address(), 4 * GIB);
    }

    #[test]
    fn the_heap_begins_at_the_same_place_whatever_is_wanted() {
        let first = Layout::new(&q35(), IMAGE, None, 12 * MIB).unwrap();
        let last = Layout::new(&q35(), IMAGE, Some(4064 * MIB / 4096), 0).unwrap();
        assert_eq!(first.own.start, last.own.start);
        assert!(first.own.end - first.own.start >= 8 * MIB);
        assert!(last.own.end >= first.own.start + 8 * MIB);
    }

    #[test]
    fn more_than_is_wanted_is_left_alone() {
        let wanted = GIB / 4096;
        let layout = Layout::new(&q35(), IMAGE, Some(wanted), 0).unwrap();
        assert_eq!(frames(&layout), wanted);
        assert!(layout.own.end < 2 * GIB);
        let layout = Layout::new(&[MIB..2 * GIB, 4 * GIB..12 * GIB], IMAGE, Some(wanted), 0);
        assert_eq!(frames(&layout.unwrap()), wanted);
    }

    #[test]
    fn regions_that_overlap_are_used_once() {
        let ram = [MIB..2 * GIB, 512 * MIB..3 * GIB, GIB..2 * GIB];
        let layout = Layout::new(&ram, IMAGE, None, 12 * MIB).unwrap();
        let ends = layout.managed.iter().map(|range| range.end);
        let starts = layout.managed.iter().skip(1).map(|range| range.start);
        assert!(ends.zip(starts).all(|(end, start)| end <= start));
        assert_eq!(layout.managed.last().unwrap().end.address(), 3 * GIB);
        assert!(frames(&layout) < 3 * GIB / 4096);
        let ram = [MIB..u64::MAX, 4 * GIB..u64::MAX];
        let layout = Layout::new(&ram, IMAGE, None, 12 * MIB).unwrap();
        assert_eq!(layout.managed.last().unwrap().end.address(), HIGHEST);
    }

    #[test]
    fn too_little_says_how_much_is_needed() {
        let up_to = |end| core::iter::once(0..end).collect::<ArrayVec<_, 1>>();
        let wanted = Some(64 * MIB / 4096);
        let error = Layout::new(&up_to(64 * MIB), IMAGE, wanted, 0).unwrap_err();
        assert!(error.to_string().contains("and needs 74"), "{error}");
        assert!(Layout::new(&[], IMAGE, None, 12 * MIB).is_err());
        for end in [7, MIB, 3 * MIB, 13 * MIB] {
            let ram = up_to(end);
            assert!(Layout::new(&ram, IMAGE, None, 12 * MIB).is_err(), "{end}");
        }
    }

    #[test]
    fn without_low_memory_there_is_no_kernel() {
        let ram = [4 * GIB..6 * GIB, 8 * GIB..9 * GIB];
        assert!(Layout::new(&ram, IMAGE, None, 12 * MIB).is_err());
        // The kernel's own memory must not reach into the second region.
        let ram = [0..8 * MIB, 4 * GIB..6 * GIB];
        assert!(Layout::new(&ram, IMAGE, None, 12 * MIB).is_err());
    }
}
