//! Random memory layouts: unaligned ends, holes, reserved frames, zones interleaved by whole blocks.

use std::{iter::once, ops::Range};

use dirigible_frames::{
    BLOCK_SHIFT, Config, FRAMES_PER_BLOCK, Fallback, FrameAllocator, Pfn, Placement, Watermarks,
    ZoneConfig,
};
use proptest::{collection::vec, prelude::*};

/// What an allocator is made of, with its own storage.
#[derive(Clone, Debug)]
pub struct Geometry {
    pub zones: Vec<Zone>,
    pub reserved: Vec<Range<Pfn>>,
    pub cpus: u16,
    pub placement: Placement,
    pub fallback: Fallback,
}

#[derive(Clone, Debug)]
pub struct Zone {
    pub ranges: Vec<Range<Pfn>>,
    pub marks: Watermarks,
    pub reserve: u32,
}

/// Which frames of one block exist.
#[derive(Clone, Debug)]
enum Shape {
    All,
    From(u64),
    To(u64),
    /// Two ranges with a hole between them.
    Split(u64, u64),
}

impl Shape {
    fn ranges(&self) -> Vec<Range<u64>> {
        const END: u64 = FRAMES_PER_BLOCK as u64;
        match *self {
            Self::All => once(0..END).collect(),
            Self::From(start) => once(start..END).collect(),
            Self::To(end) => once(0..end).collect(),
            Self::Split(end, start) => vec![0..end, start..END],
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        6 => Just(Shape::All),
        1 => prop_oneof![Just(1u64), 1..512u64].prop_map(Shape::From),
        1 => prop_oneof![Just(511u64), 1..512u64].prop_map(Shape::To),
        1 => (1..256u64, 257..512u64).prop_map(|(end, start)| Shape::Split(end, start)),
    ]
}

fn marks() -> impl Strategy<Value = Watermarks> {
    (0..100u64, 0..64u64, 0..64u64).prop_map(|(min, low, high)| Watermarks {
        min,
        low: min + low,
        high: min + low + high,
    })
}

prop_compose! {
    /// Two to nine blocks in one to four zones; a block in zone number 4 is a hole.
    pub fn geometry()(
        first in 0..4u64,
        zone_count in 1..=4usize,
        blocks in vec((0..5usize, shape()), 2..=9),
        settings in vec((marks(), 0..3u32), 4),
        reserved in vec((0..9u64 * 512, 1..300u64), 0..4),
        cpus in 1..=3u16,
        placement in prop_oneof![Just(Placement::LowestFirst), Just(Placement::FullestFirst)],
        fallback in prop_oneof![Just(Fallback::Steal), Just(Fallback::Evacuate)],
    ) -> Geometry {
        let mut zones: Vec<Zone> = settings
            .iter()
            .take(zone_count)
            .map(|&(marks, reserve)| Zone { ranges: Vec::new(), marks, reserve })
            .collect();
        let base = first << BLOCK_SHIFT;
        for (number, (zone, shape)) in blocks.iter().enumerate() {
            // In most cases memory, sometimes a hole of a whole block.
            let zone = match *zone {
                4 if number > 0 => continue,
                zone => zone % zone_count,
            };
            let start = base + ((number as u64) << BLOCK_SHIFT);
            for range in shape.ranges() {
                // Frame 0 is not used, as on real machines.
                let (from, to) = ((start + range.start).max(1), start + range.end);
                if from < to {
                    zones[zone].ranges.push(Pfn::new(from)..Pfn::new(to));
                }
            }
        }
        zones.retain(|zone| !zone.ranges.is_empty());
        if zones.is_empty() {
            let (marks, reserve) = settings[0];
            zones.push(Zone { ranges: vec![Pfn::new(1)..Pfn::new(2)], marks, reserve });
        }
        let reserved = reserved
            .iter()
            .map(|&(start, len)| Pfn::new(base + start)..Pfn::new(base + start + len))
            .collect();
        Geometry { zones, reserved, cpus, placement, fallback }
    }
}

impl Geometry {
    /// Runs `test` with an allocator of this geometry.
    pub fn with<R>(&self, test: impl FnOnce(&FrameAllocator<'_>) -> R) -> R {
        let zones: Vec<ZoneConfig<'_>> = self
            .zones
            .iter()
            .map(|zone| ZoneConfig {
                name: "zone",
                ranges: &zone.ranges,
                watermarks: zone.marks,
                reserve_blocks: zone.reserve,
            })
            .collect();
        let config = Config {
            zones: &zones,
            reserved: &self.reserved,
            cpus: self.cpus,
            placement: self.placement,
            fallback: self.fallback,
            ..Config::default()
        };
        let bytes = FrameAllocator::metadata_bytes(&config).expect("a sound configuration");
        // Old contents must not matter.
        let mut metadata = vec![0xa5; bytes];
        test(&FrameAllocator::new(&config, &mut metadata).expect("enough metadata memory"))
    }

    /// The zone of a frame that may be handed out; `None` for holes and reserved frames.
    pub fn usable(&self, pfn: Pfn) -> Option<usize> {
        if self.reserved.iter().any(|range| range.contains(&pfn)) {
            return None;
        }
        self.zones
            .iter()
            .position(|zone| zone.ranges.iter().any(|range| range.contains(&pfn)))
    }
}
