//! From memory maps to allocators.
#![allow(missing_docs)]

mod machine;

use core::mem::MaybeUninit;

use dirigible::{
    ManagerConfig, MemoryManager,
    boot::{BootConfig, BootError, BootPlan, Booted, Marks, Tables, ZoneSpec},
    memory_map::{MapEntry, MapError, MemoryKind},
};
use dirigible_frames::{AllocRequest, ConfigError, CpuId, FrameClass, FrameState, Pfn, Watermarks};
use machine::Machine;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn usable(bytes: core::ops::Range<u64>) -> MapEntry {
    MapEntry::new(bytes, MemoryKind::Usable)
}

/// What QEMU's q35 gives a guest of 4 GiB, with a kernel at 1 MiB.
fn q35() -> [MapEntry; 6] {
    [
        usable(0..0x9_fc00),
        MapEntry::new(0xf_0000..0x10_0000, MemoryKind::Reserved),
        usable(MIB..0x7ffd_f000),
        MapEntry::new(0x7ffd_f000..0x8000_0000, MemoryKind::Reserved),
        usable(4 * GIB..6 * GIB),
        MapEntry::new(MIB..3 * MIB + 0x123, MemoryKind::InUse),
    ]
}

fn memory(plan: &BootPlan<'_>) -> Vec<MaybeUninit<u8>> {
    vec![MaybeUninit::new(0xa5); plan.bytes()]
}

#[test]
fn a_guests_map_becomes_an_allocator_with_its_tables_inside() {
    let plan = BootPlan::new(
        &q35(),
        BootConfig {
            cpus: 4,
            ..BootConfig::default()
        },
    )
    .unwrap();
    let place = plan.place().unwrap();
    // The first range is too small, and the kernel lies at the start of the second.
    assert!(
        place.start.address() >= 3 * MIB && place.end.address() < 64 * MIB,
        "{place:?}"
    );
    assert!(place.end.get() - place.start.get() >= plan.bytes() as u64 / 4096);
    for range in plan.managed() {
        assert!(
            range.end <= place.start || range.start >= place.end,
            "{range:?}"
        );
    }
    let mut memory = memory(&plan);
    let Booted { frames, room } = plan.boot(&mut memory, &Machine).unwrap();
    let tables = place.end.get() - place.start.get();
    let all = 0x9f + (0x7ffdf - 0x100) + ((2 * GIB) >> 12);
    assert_eq!(frames.managed_frames(), all - tables);
    assert_eq!(frames.free_frames(), all - tables - 0x201);
    assert_eq!(frames.cpu_count(), 4);
    frames.verify().unwrap();
    assert!(room.bytes_left() > 0);
    // Nobody gets the kernel's frames before the kernel gives them back.
    let kernel = Pfn::containing(MIB);
    assert_eq!(frames.state(kernel), FrameState::Allocated);
    assert_eq!(frames.class(kernel), FrameClass::Unmovable);
    frames.free_range(CpuId::new(3), kernel, 0x201).unwrap();
    assert_eq!(frames.free_frames(), frames.managed_frames());
    frames.drain_cpu_caches();
    frames.verify().unwrap();
}

#[test]
fn watermarks_grow_with_memory_unless_they_are_given() {
    let map = [usable(0..4 * GIB)];
    let config = BootConfig {
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    let plan = BootPlan::new(&map, config).unwrap();
    assert_eq!(plan.place(), None);
    let mut scaled = memory(&plan);
    let frames = plan.boot(&mut scaled, &Machine).unwrap().frames;
    let zone = frames.zones().next().unwrap();
    assert_eq!(
        frames.watermarks(zone),
        Watermarks {
            min: 2048,
            low: 3096,
            high: 4144
        }
    );
    assert_eq!(frames.reserve_blocks(zone), 4);
    let marks = Watermarks {
        min: 1,
        low: 2,
        high: 3,
    };
    let plan = BootPlan::new(
        &map,
        BootConfig {
            marks: Marks::Fixed(marks),
            ..config
        },
    )
    .unwrap();
    let mut fixed = memory(&plan);
    let frames = plan.boot(&mut fixed, &Machine).unwrap().frames;
    assert_eq!(frames.watermarks(zone), marks);
}

#[test]
fn zones_divide_memory_at_their_borders() {
    let zones = [
        ZoneSpec {
            name: "DMA32",
            below: 4 * GIB,
            later: 0,
        },
        ZoneSpec {
            name: "Normal",
            below: u64::MAX,
            later: 0,
        },
    ];
    let config = BootConfig {
        zones: &zones,
        tables: Tables::InMap { below: GIB },
        ..BootConfig::default()
    };
    let plan = BootPlan::new(&q35(), config).unwrap();
    assert!(plan.place().unwrap().end.address() <= GIB);
    let mut tables = memory(&plan);
    let frames = plan.boot(&mut tables, &Machine).unwrap().frames;
    let managed: Vec<u64> = frames
        .zones()
        .map(|zone| frames.zone_managed(zone))
        .collect();
    assert_eq!(managed[1], (2 * GIB) >> 12);
    assert_eq!(
        frames
            .zones()
            .map(|zone| frames.zone_name(zone))
            .collect::<Vec<_>>(),
        ["DMA32", "Normal"]
    );
    // A zone without memory does not exist, and what is in use may lie across a border.
    let map = [
        usable(0..6 * GIB),
        MapEntry::new(4 * GIB - MIB..4 * GIB + MIB, MemoryKind::InUse),
    ];
    let plan = BootPlan::new(&map, config).unwrap();
    let mut tables = memory(&plan);
    let frames = plan.boot(&mut tables, &Machine).unwrap().frames;
    assert_eq!(
        frames.managed_frames() - frames.free_frames(),
        (2 * MIB) >> 12
    );
    let plan = BootPlan::new(
        &[usable(5 * GIB..6 * GIB)],
        BootConfig {
            tables: Tables::Apart,
            ..config
        },
    )
    .unwrap();
    let mut tables = memory(&plan);
    let frames = plan.boot(&mut tables, &Machine).unwrap().frames;
    assert_eq!(frames.zones().count(), 1);
}

#[test]
fn tables_keep_off_what_is_in_use_across_a_border() {
    let zones = [
        ZoneSpec {
            name: "DMA",
            below: 16 * MIB,
            later: 0,
        },
        ZoneSpec::all(),
    ];
    let map = [
        usable(0..256 * MIB),
        MapEntry::new(MIB..17 * MIB, MemoryKind::InUse),
    ];
    let config = BootConfig {
        zones: &zones,
        ..BootConfig::default()
    };
    let plan = BootPlan::new(&map, config).unwrap();
    let place = plan.place().unwrap();
    for used in plan.in_use() {
        assert!(
            place.end <= used.start || used.end <= place.start,
            "{place:?}"
        );
    }
    let mut tables = memory(&plan);
    let frames = plan.boot(&mut tables, &Machine).unwrap().frames;
    assert_eq!(
        frames.managed_frames() - frames.free_frames(),
        (16 * MIB) >> 12
    );
}

#[test]
fn a_zone_grows_by_what_was_asked_for_it_and_not_for_another() {
    let zones = [
        ZoneSpec {
            name: "DMA32",
            below: 4 * GIB,
            later: 0,
        },
        ZoneSpec {
            later: 2,
            ..ZoneSpec::all()
        },
    ];
    let config = BootConfig {
        zones: &zones,
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    // There is no memory below 4 GiB, so the second zone is the allocator's first.
    let plan = BootPlan::new(&[usable(4 * GIB..5 * GIB)], config).unwrap();
    let mut tables = memory(&plan);
    let frames = plan.boot(&mut tables, &Machine).unwrap().frames;
    let zone = frames.zones().next().unwrap();
    let more = Pfn::containing(5 * GIB)..Pfn::containing(5 * GIB + 4 * MIB);
    frames.add_range(zone, more).unwrap();
    assert_eq!(frames.managed_frames(), (GIB + 4 * MIB) >> 12);
}

#[test]
fn a_border_that_cuts_one_range_too_many_is_refused() {
    let map: [MapEntry; 64] =
        core::array::from_fn(|at| usable(at as u64 * 8 * MIB..at as u64 * 8 * MIB + 4 * MIB));
    let zones = [
        ZoneSpec {
            name: "Low",
            below: 2 * MIB,
            later: 0,
        },
        ZoneSpec::all(),
    ];
    let config = BootConfig {
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    assert!(BootPlan::new(&map, config).is_ok());
    let zones = BootConfig {
        zones: &zones,
        ..config
    };
    assert_eq!(
        BootPlan::new(&map, zones).unwrap_err(),
        BootError::Map(MapError::TooMany)
    );
}

#[test]
fn bad_maps_and_settings_are_refused() {
    let refused =
        |map: &[MapEntry], config: BootConfig<'_>| BootPlan::new(map, config).unwrap_err();
    let default = BootConfig::default();
    assert_eq!(refused(&[], default), BootError::Map(MapError::Empty));
    let overlap = [usable(0..2 * MIB), usable(MIB..4 * MIB)];
    assert_eq!(
        refused(&overlap, default),
        BootError::Map(MapError::Overlap(MIB))
    );
    let small = [usable(0..48 << 10)];
    let BootError::NoPlace { needed, .. } = refused(&small, default) else {
        panic!("the tables do not fit into 48 KiB");
    };
    assert!(needed > 48 << 10);
    let none = BootConfig { cpus: 0, ..default };
    assert_eq!(
        refused(&[usable(0..GIB)], none),
        BootError::Config(ConfigError::NoCpu)
    );
    let high = BootConfig {
        tables: Tables::InMap { below: GIB },
        ..default
    };
    assert!(matches!(
        refused(&[usable(GIB..2 * GIB)], high),
        BootError::NoPlace { below: GIB, .. }
    ));
    for (zones, why) in [
        (
            vec![ZoneSpec {
                name: "Odd",
                below: MIB,
                later: 0,
            }],
            BootError::ZoneBorder("Odd"),
        ),
        (
            vec![
                ZoneSpec {
                    name: "A",
                    below: GIB,
                    later: 0,
                },
                ZoneSpec {
                    name: "B",
                    below: GIB,
                    later: 0,
                },
            ],
            BootError::ZoneBorder("B"),
        ),
        (
            vec![ZoneSpec {
                name: "A",
                below: GIB,
                later: 0,
            }],
            BootError::AboveZones(GIB),
        ),
        (vec![], BootError::Config(ConfigError::ZoneCount(0))),
    ] {
        let config = BootConfig {
            zones: &zones,
            ..default
        };
        assert_eq!(refused(&[usable(0..2 * GIB)], config), why);
    }
    let reversed = Marks::Fixed(Watermarks {
        min: 3,
        low: 2,
        high: 1,
    });
    let config = BootConfig {
        marks: reversed,
        ..default
    };
    assert_eq!(
        refused(&[usable(0..GIB)], config),
        BootError::Config(ConfigError::Watermarks(0))
    );
    let huge = [usable(0..u64::MAX)];
    assert!(matches!(
        refused(&huge, default),
        BootError::Config(ConfigError::TooLarge(_))
    ));
}

#[test]
fn memory_that_is_too_small_is_refused_and_can_be_used_again() {
    let plan = BootPlan::new(&[usable(0..256 * MIB)], BootConfig::default()).unwrap();
    let mut memory = memory(&plan);
    for bytes in [0, 1, plan.bytes() / 2] {
        let error = plan.boot(&mut memory[..bytes], &Machine).unwrap_err();
        assert!(matches!(error, BootError::NoRoom(_)), "{error}");
    }
    // The room that is left is for the manager, and is enough wherever the memory begins.
    for shift in [0, 1, 7, 63] {
        let mut memory = vec![MaybeUninit::new(0xa5); plan.bytes() + shift];
        let Booted { frames, room } = plan.boot(&mut memory[shift..], &Machine).unwrap();
        let manager =
            MemoryManager::new_in(room, frames, &Machine, ManagerConfig::for_frames(frames))
                .unwrap();
        manager.verify().unwrap();
        assert!(frames.alloc(CpuId::new(0), AllocRequest::huge()).is_ok());
    }
}
