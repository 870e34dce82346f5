//! The memory map that a boot loader hands over, and the frames that follow from it.

use core::ops::Range;

use arrayvec::ArrayVec;
use dirigible_frames::{FRAME_SIZE, Pfn};

/// Most entries of a map, and most ranges of frames that may follow from it.
pub const MAX_ENTRIES: usize = 64;

/// What a stretch of physical memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryKind {
    /// Free memory.
    Usable,
    /// Memory in use already that may be freed later: the kernel's image, modules, early page tables. The manager takes
    /// it over as allocated unmovable frames.
    InUse,
    /// Not to be touched: firmware, devices, bad memory. It takes precedence where it overlaps
    /// the other kinds.
    Reserved,
}

/// One stretch of physical memory, in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// First byte, and the first byte behind it.
    pub bytes: Range<u64>,
    /// What it is.
    pub kind: MemoryKind,
}

impl MapEntry {
    /// `bytes` are of `kind`.
    pub const fn new(bytes: Range<u64>, kind: MemoryKind) -> Self {
        Self { bytes, kind }
    }

    /// Frames that are usable.
    pub const fn usable(frames: &Range<Pfn>) -> Self {
        let bytes = frames.start.address()..frames.end.address();
        Self::new(bytes, MemoryKind::Usable)
    }
}

/// A memory map that no manager can be booted from.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// There is no whole usable frame.
    #[error("the memory map has no whole usable frame")]
    Empty,
    /// More entries than [`MAX_ENTRIES`], or more ranges that follow from them.
    #[error(
        "the memory map has more than {MAX_ENTRIES} entries or ranges; join neighbours of one kind"
    )]
    TooMany,
    /// An entry whose end lies before its beginning: begin plus length wrapped around, most likely.
    #[error("entry {index} of the memory map ends at {end:#x}, before it begins at {start:#x}")]
    Wraps {
        /// Position in the map.
        index: usize,
        /// First byte.
        start: u64,
        /// The end as given.
        end: u64,
    },
    /// Two entries of kind [`Usable`](MemoryKind::Usable), or two of kind [`InUse`](MemoryKind::InUse), have this byte.
    #[error("two entries of one kind overlap at {0:#x}")]
    Overlap(u64),
}

/// Ranges of frames, ascending, with gaps between them.
pub type Ranges = ArrayVec<Range<Pfn>, MAX_ENTRIES>;

/// A map, in frames.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    /// Frames to manage.
    pub managed: Ranges,
    /// Those of them that are in use already.
    pub in_use: Ranges,
}

/// Frames to manage in `map`, whose entries may stand in any order. Usable memory counts in whole frames; a frame that
/// is reserved in part is reserved, one that is in use in part is in use.
#[inline(never)]
pub(crate) fn frames(map: &[MapEntry]) -> Result<Frames, MapError> {
    if map.len() > MAX_ENTRIES {
        return Err(MapError::TooMany);
    }
    for (index, entry) in map.iter().enumerate() {
        let Range { start, end } = entry.bytes;
        if start > end {
            return Err(MapError::Wraps { index, start, end });
        }
    }
    let usable = disjoint(map, MemoryKind::Usable)?;
    let used = disjoint(map, MemoryKind::InUse)?;
    let mut memory: ArrayVec<Range<u64>, { 2 * MAX_ENTRIES }> = ArrayVec::new();
    memory.extend(usable.into_iter().chain(used.iter().cloned()));
    memory.sort_unstable_by_key(|range| range.start);
    let mut managed = Ranges::new();
    for range in joined(&memory) {
        let inner = Pfn::containing(range.start.saturating_add(FRAME_SIZE as u64 - 1))
            ..Pfn::containing(range.end);
        push(&mut managed, inner)?;
    }
    for entry in map
        .iter()
        .filter(|entry| entry.kind == MemoryKind::Reserved)
    {
        cut(&mut managed, &outer(&entry.bytes))?;
    }
    let mut in_use = Ranges::new();
    for range in &managed {
        for used in &used {
            let used = outer(used);
            let start = used
                .start
                .max(range.start)
                .max(in_use.last().map_or(Pfn::new(0), |r: &Range<Pfn>| r.end));
            push(&mut in_use, start..used.end.min(range.end))?;
        }
    }
    if managed.is_empty() {
        return Err(MapError::Empty);
    }
    Ok(Frames { managed, in_use })
}

/// The entries of `kind`, ascending.
fn disjoint(
    map: &[MapEntry],
    kind: MemoryKind,
) -> Result<ArrayVec<Range<u64>, MAX_ENTRIES>, MapError> {
    let of_kind = map
        .iter()
        .filter(|entry| entry.kind == kind && !entry.bytes.is_empty());
    let mut ranges: ArrayVec<_, MAX_ENTRIES> = of_kind.map(|entry| entry.bytes.clone()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    match ranges.windows(2).find(|pair| pair[1].start < pair[0].end) {
        Some(pair) => Err(MapError::Overlap(pair[1].start)),
        None => Ok(ranges),
    }
}

/// Ascending ranges with those joined that touch or overlap.
fn joined(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    let mut rest = ranges.iter().peekable();
    core::iter::from_fn(move || {
        let Range { start, mut end } = rest.next()?.clone();
        while let Some(next) = rest.next_if(|next| next.start <= end) {
            end = end.max(next.end);
        }
        Some(start..end)
    })
}

/// All frames that have a byte of `bytes`.
fn outer(bytes: &Range<u64>) -> Range<Pfn> {
    if bytes.is_empty() {
        return Pfn::new(0)..Pfn::new(0);
    }
    Pfn::containing(bytes.start)..Pfn::containing(bytes.end - 1).plus(1)
}

/// Adds a range unless it is empty.
pub(crate) fn push(ranges: &mut Ranges, range: Range<Pfn>) -> Result<(), MapError> {
    if range.start >= range.end {
        return Ok(());
    }
    ranges.try_push(range).map_err(|_| MapError::TooMany)
}

/// Takes the frames of `hole` out of `ranges`.
pub(crate) fn cut(ranges: &mut Ranges, hole: &Range<Pfn>) -> Result<(), MapError> {
    let mut at = 0;
    while at < ranges.len() {
        let Range { start, end } = ranges[at].clone();
        let (below, above) = (start..end.min(hole.start), start.max(hole.end)..end);
        match (below.start < below.end, above.start < above.end) {
            _ if hole.start >= hole.end => at += 1,
            (false, false) => {
                ranges.remove(at);
            }
            (true, false) => {
                ranges[at] = below;
                at += 1;
            }
            (false, true) => {
                ranges[at] = above;
                at += 1;
            }
            (true, true) => {
                ranges[at] = below;
                let inserted = ranges.try_insert(at + 1, above);
                inserted.map_err(|_| MapError::TooMany)?;
                at += 2;
            }
        }
    }
    Ok(())
}

/// Frames in all ranges.
pub(crate) fn count(ranges: &[Range<Pfn>]) -> u64 {
    ranges
        .iter()
        .map(|range| range.end.get() - range.start.get())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryKind::{InUse, Reserved, Usable};

    fn entry(bytes: Range<u64>, kind: MemoryKind) -> MapEntry {
        MapEntry::new(bytes, kind)
    }

    fn numbers(ranges: &Ranges) -> ArrayVec<Range<u64>, 16> {
        ranges
            .iter()
            .map(|range| range.start.get()..range.end.get())
            .collect()
    }

    #[test]
    fn usable_memory_counts_in_whole_frames() {
        let map = [
            entry(0..0x9_fc00, Usable),
            entry(0x10_0800..0x20_0000, Usable),
        ];
        assert_eq!(
            numbers(&frames(&map).unwrap().managed)[..],
            [0..0x9f, 0x101..0x200]
        );
    }

    #[test]
    fn reserved_memory_wins_and_takes_frames_that_it_touches() {
        let map = [
            entry(0x10_0000..0x20_0000, Usable),
            entry(0x14_0010..0x14_1001, Reserved),
            entry(0x1f_f000..0x30_0000, Reserved),
            entry(0x14_0000..0x14_0020, Reserved),
        ];
        let managed = frames(&map).unwrap().managed;
        assert_eq!(numbers(&managed)[..], [0x100..0x140, 0x142..0x1ff]);
    }

    #[test]
    fn what_is_in_use_is_managed_and_named() {
        // The kernel lies inside of usable memory, a module right behind it is an entry of its own.
        let map = [
            entry(0x10_0000..0x20_0000, Usable),
            entry(0x10_0000..0x10_8800, InUse),
            entry(0x20_0000..0x20_3000, InUse),
        ];
        let Frames { managed, in_use } = frames(&map).unwrap();
        assert_eq!(
            numbers(&managed).as_slice(),
            core::slice::from_ref(&(0x100..0x203))
        );
        assert_eq!(numbers(&in_use)[..], [0x100..0x109, 0x200..0x203]);
    }

    #[test]
    fn neighbours_in_use_that_share_a_frame_name_it_once() {
        let map = [entry(0..0x1800, InUse), entry(0x1800..0x3000, InUse)];
        let Frames { managed, in_use } = frames(&map).unwrap();
        assert_eq!(count(&managed), 3);
        assert_eq!(count(&in_use), 3);
    }

    #[test]
    fn the_order_of_the_entries_does_not_matter() {
        let mut map = [
            entry(0x40_0000..0x80_0000, Usable),
            entry(0..0x10_0000, Usable),
            entry(0x50_0000..0x50_1000, Reserved),
            entry(0x10_0000..0x20_0000, InUse),
        ];
        let first = frames(&map).unwrap();
        map.reverse();
        assert_eq!(frames(&map).unwrap().managed, first.managed);
        assert_eq!(
            numbers(&first.managed)[..],
            [0..0x200, 0x400..0x500, 0x501..0x800]
        );
    }

    #[test]
    fn bad_maps_are_refused() {
        assert_eq!(frames(&[]).unwrap_err(), MapError::Empty);
        assert_eq!(
            frames(&[entry(0..0xfff, Usable)]).unwrap_err(),
            MapError::Empty
        );
        let all = [entry(0..0x1000, Usable), entry(0..0x1000, Reserved)];
        assert_eq!(frames(&all).unwrap_err(), MapError::Empty);
        let overlap = [entry(0..0x3000, Usable), entry(0x2000..0x5000, Usable)];
        assert_eq!(frames(&overlap).unwrap_err(), MapError::Overlap(0x2000));
        let wraps = MapError::Wraps {
            index: 0,
            start: 0xffff_f000,
            end: 0x1000,
        };
        #[expect(clippy::reversed_empty_ranges)]
        let map = [entry(0xffff_f000..0x1000, Usable)];
        assert_eq!(frames(&map).unwrap_err(), wraps);
        let many: [_; MAX_ENTRIES + 1] = core::array::from_fn(|at| {
            entry(at as u64 * 0x2000..at as u64 * 0x2000 + 0x1000, Usable)
        });
        assert_eq!(frames(&many).unwrap_err(), MapError::TooMany);
    }

    #[test]
    fn memory_up_to_the_last_byte_is_no_overflow() {
        let map = [
            entry(0x1000..u64::MAX, Usable),
            entry(u64::MAX - 1..u64::MAX, Reserved),
        ];
        let managed = frames(&map).unwrap().managed;
        assert_eq!(
            numbers(&managed).as_slice(),
            core::slice::from_ref(&(1..u64::MAX >> 12))
        );
    }

    #[test]
    fn as_many_holes_as_entries_are_served() {
        let map: [_; MAX_ENTRIES] = core::array::from_fn(|at| match at {
            0 => entry(0..1 << 40, Usable),
            at => entry(at as u64 * 0x2000..at as u64 * 0x2000 + 1, Reserved),
        });
        assert_eq!(
            count(&frames(&map).unwrap().managed),
            (1 << 28) - (MAX_ENTRIES as u64 - 1)
        );
    }
}
