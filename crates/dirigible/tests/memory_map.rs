//! Memory maps against a model that looks at each byte.
#![allow(missing_docs)]

use core::ops::Range;

use dirigible::{
    boot::{BootConfig, BootError, BootPlan, Tables, ZoneSpec},
    memory_map::{MapEntry, MapError, MemoryKind},
};
use dirigible_frames::Pfn;
use proptest::prelude::*;

/// Bytes are looked at in pieces of this many.
const GRAIN: u64 = 512;
const GRAINS_PER_FRAME: usize = 4096 / GRAIN as usize;
const GRAINS: usize = 24 * GRAINS_PER_FRAME;

fn entry() -> impl Strategy<Value = MapEntry> {
    let kind = prop_oneof![
        3 => Just(MemoryKind::Usable),
        1 => Just(MemoryKind::InUse),
        1 => Just(MemoryKind::Reserved),
    ];
    (0..GRAINS as u64, 0..40u64, kind).prop_map(|(start, length, kind)| {
        let end = (start + length).min(GRAINS as u64);
        MapEntry::new(start * GRAIN..end * GRAIN, kind)
    })
}

/// Which pieces have an entry of `kind`; `None` when one has two.
fn pieces(map: &[MapEntry], kind: MemoryKind) -> Option<[bool; GRAINS]> {
    let mut pieces = [false; GRAINS];
    for entry in map.iter().filter(|entry| entry.kind == kind) {
        for piece in entry.bytes.start / GRAIN..entry.bytes.end / GRAIN {
            let piece = &mut pieces[piece as usize];
            if core::mem::replace(piece, true) && kind != MemoryKind::Reserved {
                return None;
            }
        }
    }
    Some(pieces)
}

proptest! {
    #[test]
    fn frames_are_what_their_bytes_are(map in prop::collection::vec(entry(), 0..10)) {
        let config = BootConfig { tables: Tables::Apart, ..BootConfig::default() };
        let plan = BootPlan::new(&map, config);
        let [usable, in_use, reserved] =
            [MemoryKind::Usable, MemoryKind::InUse, MemoryKind::Reserved].map(|kind| pieces(&map, kind));
        let (Some(usable), Some(in_use), Some(reserved)) = (usable, in_use, reserved) else {
            prop_assert!(matches!(plan.unwrap_err(), BootError::Map(MapError::Overlap(_))));
            return Ok(());
        };
        let of_frame = |frame: usize| frame * GRAINS_PER_FRAME..(frame + 1) * GRAINS_PER_FRAME;
        let managed: Vec<bool> = (0..GRAINS / GRAINS_PER_FRAME)
            .map(|frame| of_frame(frame).all(|at| (usable[at] || in_use[at]) && !reserved[at]))
            .collect();
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                prop_assert_eq!(error, BootError::Map(MapError::Empty));
                prop_assert!(!managed.contains(&true));
                return Ok(());
            }
        };
        for (frame, managed) in managed.into_iter().enumerate() {
            let used = managed && of_frame(frame).any(|at| in_use[at]);
            let frame = Pfn::new(frame as u64);
            let times = |ranges: &[core::ops::Range<Pfn>]| ranges.iter().filter(|range| range.contains(&frame)).count();
            prop_assert_eq!(times(plan.managed()), usize::from(managed), "frame {}", frame);
            prop_assert_eq!(times(plan.in_use()), usize::from(used), "frame {}", frame);
        }
    }

    #[test]
    fn tables_lie_in_usable_memory_that_nobody_uses(
        map in prop::collection::vec(entry(), 0..10),
        border in 1..8u64,
    ) {
        // The same maps, 128 times as large, with a border of zones in the middle.
        let scaled = |entry: &MapEntry| {
            let Range { start, end } = entry.bytes;
            MapEntry::new(start * 128..end * 128, entry.kind)
        };
        let map: Vec<MapEntry> = map.iter().map(scaled).collect();
        let low = ZoneSpec { name: "Low", below: border << 21, later: 0 };
        let zones = [low, ZoneSpec::all()];
        let config = BootConfig { zones: &zones, ..BootConfig::default() };
        let apart = BootPlan::new(&map, BootConfig { tables: Tables::Apart, ..config });
        let Ok(plan) = BootPlan::new(&map, config) else { return Ok(()) };
        let (apart, place) = (apart.unwrap(), plan.place().unwrap());
        let overlap = |range: &Range<Pfn>| range.start.max(place.start) < range.end.min(place.end);
        prop_assert!(apart.managed().iter().any(|range| range.start <= place.start && place.end <= range.end));
        prop_assert!(!plan.managed().iter().any(overlap));
        prop_assert!(!plan.in_use().iter().any(overlap));
        let frames = |ranges: &[Range<Pfn>]| ranges.iter().map(|range| range.end.get() - range.start.get()).sum::<u64>();
        let taken = place.end.get() - place.start.get();
        prop_assert_eq!(frames(plan.managed()) + taken, frames(apart.managed()));
    }
}
