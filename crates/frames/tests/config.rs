//! What an allocator can and cannot be made of.

#![cfg(not(shuttle))]

use std::ops::Range;

use dirigible_frames::{
    AllocRequest, Config, ConfigError, CpuId, Fallback, FrameAllocator, FrameClass, FrameState,
    MAX_BLOCKS, MAX_ZONES, Order, Pfn, Placement, Watermarks, ZoneConfig,
};

fn range(start: u64, end: u64) -> Range<Pfn> {
    Pfn::new(start)..Pfn::new(end)
}

fn zone(ranges: &[Range<Pfn>]) -> ZoneConfig<'_> {
    ZoneConfig {
        name: "zone",
        ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    }
}

fn config<'a>(zones: &'a [ZoneConfig<'a>]) -> Config<'a> {
    Config {
        zones,
        reserved: &[],
        cpus: 1,
        placement: Placement::FullestFirst,
        fallback: Fallback::Steal,
        ..Config::default()
    }
}

/// Both functions must give the same error.
fn refused(config: &Config<'_>) -> ConfigError {
    let error = FrameAllocator::metadata_bytes(config).expect_err("unsound");
    let mut metadata = vec![0; 1 << 16];
    let again = FrameAllocator::new(config, &mut metadata).expect_err("unsound");
    assert_eq!(error, again);
    error
}

#[test]
fn the_number_of_zones() {
    assert_eq!(refused(&config(&[])), ConfigError::ZoneCount(0));
    let ranges: Vec<[Range<Pfn>; 1]> = (1..=5u64)
        .map(|at| [range(at * 512, at * 512 + 512)])
        .collect();
    let zones: Vec<ZoneConfig<'_>> = ranges.iter().map(|ranges| zone(ranges)).collect();
    assert_eq!(refused(&config(&zones)), ConfigError::ZoneCount(5));
    assert!(FrameAllocator::metadata_bytes(&config(&zones[..MAX_ZONES])).is_ok());
}

#[test]
fn empty_ranges() {
    let good = [range(512, 1024)];
    let wrong: [&[Range<Pfn>]; 3] = [
        &[],
        &[range(2048, 2048)],
        &[range(2048, 2049), range(4096, 4095)],
    ];
    for ranges in wrong {
        assert_eq!(
            refused(&config(&[zone(&good), zone(ranges)])),
            ConfigError::EmptyRange(1)
        );
        assert_eq!(
            refused(&config(&[zone(ranges), zone(&good)])),
            ConfigError::EmptyRange(0)
        );
    }
}

#[test]
fn overlapping_ranges() {
    let overlap = |first: &[Range<Pfn>], second: &[Range<Pfn>]| {
        refused(&config(&[zone(first), zone(second)]))
    };
    let twice = [range(600, 700), range(699, 800)];
    assert_eq!(
        overlap(&twice, &[range(2048, 4096)]),
        ConfigError::Overlap(Pfn::new(699))
    );
    let (outer, inner) = ([range(512, 4096)], [range(1024, 1536)]);
    assert_eq!(
        overlap(&outer, &inner),
        ConfigError::Overlap(Pfn::new(1024))
    );
    assert_eq!(
        overlap(&inner, &outer),
        ConfigError::Overlap(Pfn::new(1024))
    );
    // Ranges that touch are fine, in whatever order they come.
    let touching = [range(700, 800), range(600, 700)];
    assert!(FrameAllocator::metadata_bytes(&config(&[zone(&touching)])).is_ok());
}

#[test]
fn zones_in_one_block() {
    let (low, high) = ([range(1, 1000)], [range(1000, 2048)]);
    let error = refused(&config(&[zone(&low), zone(&high)]));
    assert_eq!(error, ConfigError::SharedBlock(0, 1));
    // Far apart in a block they share all the same.
    let (low, high) = ([range(1, 2)], [range(511, 512)]);
    assert_eq!(
        refused(&config(&[zone(&low), zone(&high)])),
        ConfigError::SharedBlock(0, 1)
    );
    // Whole blocks may alternate.
    let (even, odd) = ([range(0, 512), range(1024, 1536)], [range(512, 1024)]);
    assert!(FrameAllocator::metadata_bytes(&config(&[zone(&even), zone(&odd)])).is_ok());
}

#[test]
fn watermarks_out_of_order() {
    let ranges = [range(512, 1024)];
    for (min, low, high) in [(2, 1, 3), (1, 3, 2), (3, 2, 1)] {
        let watermarks = Watermarks { min, low, high };
        let wrong = ZoneConfig {
            watermarks,
            ..zone(&ranges)
        };
        assert_eq!(refused(&config(&[wrong])), ConfigError::Watermarks(0));
    }
    // A mark above all memory is legal: every request is refused.
    let watermarks = Watermarks {
        min: 1 << 40,
        low: 1 << 40,
        high: u64::MAX,
    };
    let marked = [ZoneConfig {
        watermarks,
        ..zone(&ranges)
    }];
    with(&config(&marked), |frames| {
        assert!(
            frames
                .alloc(CpuId::new(0), AllocRequest::movable())
                .is_err()
        );
    });
}

#[test]
fn no_cpu() {
    let ranges = [range(512, 1024)];
    let zones = [zone(&ranges)];
    let none = Config {
        cpus: 0,
        ..config(&zones)
    };
    assert_eq!(refused(&none), ConfigError::NoCpu);
}

#[test]
fn too_large_a_memory() {
    let most = [range(512, 512 * (MAX_BLOCKS + 1))];
    assert!(FrameAllocator::metadata_bytes(&config(&[zone(&most)])).is_ok());
    let more = [range(512, 512 * (MAX_BLOCKS + 1) + 1)];
    let error = refused(&config(&[zone(&more)]));
    assert_eq!(error, ConfigError::TooLarge(MAX_BLOCKS + 1));
    // What may be added counts, too.
    let zones = [zone(&most)];
    let later = Config {
        later: &[1],
        ..config(&zones)
    };
    assert_eq!(refused(&later), ConfigError::TooLarge(MAX_BLOCKS + 1));
    let all = [range(0, u64::MAX)];
    assert_eq!(
        refused(&config(&[zone(&all)])),
        ConfigError::TooLarge(1 << 55)
    );
}

fn with(config: &Config<'_>, test: impl FnOnce(&FrameAllocator<'_>)) {
    let bytes = FrameAllocator::metadata_bytes(config).expect("a sound configuration");
    let mut metadata = vec![0xff; bytes];
    let frames = FrameAllocator::new(config, &mut metadata).expect("enough metadata memory");
    test(&frames);
    frames.verify().expect("all counts fit");
}

#[test]
fn the_last_frames_that_have_a_number() {
    let ranges = [range(u64::MAX - 600, u64::MAX)];
    with(&config(&[zone(&ranges)]), |frames| {
        assert_eq!(frames.free_frames(), 600);
        let mut out = [Pfn::default(); 600];
        let cpu = CpuId::new(0);
        assert_eq!(
            frames.alloc_bulk(cpu, AllocRequest::movable(), &mut out),
            600
        );
        assert_eq!(out.iter().max(), Some(&Pfn::new(u64::MAX - 1)));
        assert_eq!(
            frames
                .used_frames(frames.blocks().next_back().expect("two blocks"))
                .count(),
            511
        );
        assert_eq!(frames.buddyinfo(), [0; 11]);
        frames.free_bulk(cpu, &out).expect("ours");
    });
}

#[test]
fn metadata_memory_of_any_alignment_and_never_less_than_asked_for() {
    let ranges = [range(1, 3000)];
    let zones = [zone(&ranges)];
    let config = Config {
        cpus: 3,
        ..config(&zones)
    };
    let needed = FrameAllocator::metadata_bytes(&config).expect("a sound configuration");
    let mut memory = vec![0xff; needed + 128];
    for given in [0, 1, needed / 2, needed - 64, needed - 1] {
        for offset in [0, 1, 63] {
            let error = FrameAllocator::new(&config, &mut memory[offset..offset + given]);
            assert_eq!(error.err(), Some(ConfigError::Metadata { given, needed }));
        }
    }
    for offset in 0..64 {
        let frames = FrameAllocator::new(&config, &mut memory[offset..offset + needed])
            .expect("enough metadata memory");
        assert_eq!(frames.metadata_used(), needed);
        let huge = frames
            .alloc(CpuId::new(2), AllocRequest::huge())
            .expect("free memory");
        assert!(huge.is_aligned(Order::HUGE));
        frames.verify().expect("all counts fit");
    }
    assert_eq!(
        memory[63 + needed..],
        vec![0xff; 65],
        "what was not handed in is not touched"
    );
    // 12 bytes a frame, and 0.3 for everything else: 0.3 % of the memory.
    let large = [range(0, 1 << 20)];
    let zones = [zone(&large)];
    let bytes = FrameAllocator::metadata_bytes(&self::config(&zones)).expect("sound");
    assert!(bytes < (12 << 20) + (1 << 19), "{bytes}");
    assert!(bytes * 1000 <= (4 << 30) * 32 / 10, "at most 0.32 %");
}

#[test]
fn errors_say_what_to_mend() {
    let table = [
        (
            ConfigError::ZoneCount(9),
            "an allocator needs 1 to 4 zones, not 9",
        ),
        (ConfigError::EmptyRange(1), "zone 1 has an empty range"),
        (
            ConfigError::Overlap(Pfn::new(0x200)),
            "two ranges overlap at frame 0x200",
        ),
        (
            ConfigError::SharedBlock(0, 1),
            "zones 0 and 1 share a pageblock; move their border to a multiple of 512 frames",
        ),
        (
            ConfigError::Watermarks(2),
            "the watermarks of zone 2 are not in the order min, low, high",
        ),
        (
            ConfigError::NoCpu,
            "an allocator needs at least one processor",
        ),
        (
            ConfigError::Metadata {
                given: 1,
                needed: 2,
            },
            "1 bytes of metadata memory given, 2 needed",
        ),
    ];
    for (error, text) in table {
        assert_eq!(error.to_string(), text);
    }
    assert!(
        ConfigError::TooLarge(1 << 55)
            .to_string()
            .contains("36028797018963968 pageblocks")
    );
}

#[test]
fn frames_in_use_at_boot_are_allocated_and_can_be_freed() {
    let (low, high) = ([range(0, 3 * 512)], [range(3 * 512 + 100, 6 * 512)]);
    let zones = [zone(&low), zone(&high)];
    // Over the zones' border and the hole behind it, twice, with a reserved frame in the middle.
    let in_use = [
        Pfn::new(3 * 512 - 10)..Pfn::new(3 * 512 + 110),
        Pfn::new(3 * 512 - 5)..Pfn::new(3 * 512 - 1),
    ];
    let reserved = [Pfn::new(3 * 512 - 3)..Pfn::new(3 * 512 - 2)];
    let config = Config {
        zones: &zones,
        reserved: &reserved,
        in_use: &in_use,
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
    frames.verify().unwrap();
    let memory = 6 * 512 - 100;
    assert_eq!(
        frames.managed_frames(),
        memory - 1,
        "all but the reserved one"
    );
    assert_eq!(frames.free_frames(), memory - 20);
    assert_eq!(frames.state(Pfn::new(3 * 512 - 3)), FrameState::Reserved);
    assert_eq!(frames.class(Pfn::new(3 * 512 + 105)), FrameClass::Unmovable);
    let cpu = CpuId::new(0);
    for (first, count) in [(3 * 512 - 10, 7), (3 * 512 - 2, 2), (3 * 512 + 100, 10)] {
        frames.free_range(cpu, Pfn::new(first), count).unwrap();
    }
    frames.drain_cpu_caches();
    frames.verify().unwrap();
    assert_eq!(frames.free_frames(), frames.managed_frames());
}
