//! What a configuration asks for: checked, and as sizes of tables.

use core::ops::Range;

use crate::{
    BlockId, Config, ConfigError, FRAMES_PER_BLOCK, Pfn, ZoneId,
    config::{MAX_BLOCKS, MAX_ZONES},
};

/// The most segments that added memory can make beside those of the beginning.
const LATER_SEGMENTS: usize = 64;

/// How large everything is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub cpus: usize,
    pub segments: usize,
    /// Of each zone: blocks now, and blocks that may be added later.
    pub zones: [(u32, u32); MAX_ZONES],
}

impl Sizes {
    /// The zone's first block in the tables, and how many it may have.
    #[inline(never)]
    pub fn zone(&self, zone: ZoneId) -> (BlockId, u32) {
        let all = |(now, later): &(u32, u32)| now + later;
        let first = self.zones[..zone.index()].iter().map(all).sum();
        (BlockId::new(first), all(&self.zones[zone.index()]))
    }

    pub fn blocks(&self) -> usize {
        let all = self.zones.iter().map(|(now, later)| now + later);
        all.sum::<u32>() as usize
    }

    pub fn frames(&self) -> usize {
        self.blocks() * FRAMES_PER_BLOCK
    }
}

impl Config<'_> {
    /// How large the tables are, after all checks.
    pub(crate) fn sizes(&self) -> Result<Sizes, ConfigError> {
        if self.zones.is_empty() || self.zones.len() > MAX_ZONES {
            return Err(ConfigError::ZoneCount(self.zones.len()));
        }
        if self.cpus == 0 {
            return Err(ConfigError::NoCpu);
        }
        for (number, zone) in self.zones.iter().enumerate() {
            let marks = zone.watermarks;
            if marks.min > marks.low || marks.low > marks.high {
                return Err(ConfigError::Watermarks(number));
            }
            if zone.ranges.is_empty() || zone.ranges.iter().any(|r| r.start >= r.end) {
                return Err(ConfigError::EmptyRange(number));
            }
        }
        self.check_overlap()?;
        let mut zones = [(0, 0); MAX_ZONES];
        let (mut all, mut segments) = (0u64, 0);
        for (number, sizes) in zones.iter_mut().enumerate().take(self.zones.len()) {
            let mut now = 0;
            self.for_each_segment(ZoneId::new(number as u8), &mut |_, blocks| {
                segments += 1;
                now += blocks;
            });
            let later = self.later.get(number).copied().unwrap_or(0);
            segments += LATER_SEGMENTS.min(later as usize);
            all = all.saturating_add(now).saturating_add(u64::from(later));
            if all > MAX_BLOCKS {
                return Err(ConfigError::TooLarge(all));
            }
            *sizes = (now as u32, later);
        }
        Ok(Sizes {
            cpus: self.cpus as usize,
            segments,
            zones,
        })
    }

    /// Calls `each` with the segments of a zone, ascending: the first frame, aligned to a block, and the number of
    /// blocks. Ranges need not be sorted; they are few.
    pub(crate) fn for_each_segment(&self, zone: ZoneId, each: &mut dyn FnMut(Pfn, u64)) {
        const BLOCK: u64 = FRAMES_PER_BLOCK as u64;
        let blocks = |range: &Range<Pfn>| {
            let (start, end) = (range.start.get() / BLOCK, range.end.get().div_ceil(BLOCK));
            (start, end)
        };
        let mut done = 0;
        loop {
            let rest = self.zones[zone.index()].ranges.iter().map(blocks);
            let next = rest.filter(|(_, end)| *end > done).min();
            let Some((start, mut end)) = next else { return };
            // Ranges that begin inside or right behind are part of it.
            let touching = |end: u64| {
                let ranges = self.zones[zone.index()].ranges.iter().map(blocks);
                ranges
                    .filter(|(other, stop)| *other <= end && *stop > end)
                    .map(|(_, stop)| stop)
                    .max()
            };
            while let Some(further) = touching(end) {
                end = further;
            }
            each(Pfn::new(start.max(done) * BLOCK), end - start.max(done));
            done = end;
        }
    }

    /// Ranges are few, so every pair is compared.
    fn check_overlap(&self) -> Result<(), ConfigError> {
        let all = || {
            self.zones.iter().enumerate().flat_map(|(z, zone)| {
                zone.ranges
                    .iter()
                    .enumerate()
                    .map(move |(r, range)| ((z, r), range))
            })
        };
        for (a, one) in all() {
            for (b, two) in all().filter(|(b, _)| *b > a) {
                if one.start < two.end && two.start < one.end {
                    return Err(ConfigError::Overlap(one.start.max(two.start)));
                }
                let blocks = |range: &Range<Pfn>| {
                    let last = Pfn::new(range.end.get() - 1);
                    (range.start.block_base(), last.block_base())
                };
                let ((one_first, one_last), (two_first, two_last)) = (blocks(one), blocks(two));
                if a.0 != b.0 && one_first <= two_last && two_first <= one_last {
                    return Err(ConfigError::SharedBlock(a.0, b.0));
                }
            }
        }
        Ok(())
    }
}
