//! Single frames: marks, references, transitions, huge pages; and the counters' text.

#![cfg(not(shuttle))]

use std::collections::BTreeSet;

use dirigible_frames::{
    AllocError, AllocRequest, BalloonPlacement, BlockId, BlockState, Config, CpuId, Event,
    FRAMES_PER_BLOCK, Fallback, FrameAllocator, FrameClass, FrameFlags, FrameState, FreeError,
    IsolateError, Migratetype, Order, OwnerId, Pfn, Placement, Watermark, Watermarks, ZoneConfig,
    ZoneId,
};

const CPU: CpuId = CpuId::new(0);
const START: Pfn = Pfn::new(1024);

/// Four blocks; one whole block is kept.
fn with(test: impl FnOnce(&FrameAllocator<'_>)) {
    let ranges = [START..START.plus(4 * FRAMES_PER_BLOCK as u64)];
    let zones = [ZoneConfig {
        name: "Normal",
        ranges: &ranges,
        watermarks: Watermarks {
            min: 10,
            low: 20,
            high: 30,
        },
        reserve_blocks: 1,
    }];
    let config = Config {
        zones: &zones,
        reserved: &[],
        cpus: 2,
        placement: Placement::LowestFirst,
        fallback: Fallback::Evacuate,
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).expect("sound")];
    let frames = FrameAllocator::new(&config, &mut metadata).expect("enough metadata memory");
    test(&frames);
    frames.verify().expect("all counts fit");
}

#[test]
fn marks_and_references_of_a_frame() {
    with(|frames| {
        let pfn = frames
            .alloc(CPU, AllocRequest::movable())
            .expect("free memory");
        frames.set_flags(pfn, FrameFlags::DIRTY.union(FrameFlags::WRITEBACK));
        frames.clear_flags(pfn, FrameFlags::WRITEBACK);
        assert_eq!(frames.flags(pfn), FrameFlags::DIRTY);
        frames.set_generation(pfn, 13);
        assert_eq!(frames.generation(pfn), 13 & 7);
        assert!(!frames.put_ref(pfn), "there was none");
        for count in 1..=31 {
            assert!(frames.get_ref(pfn));
            assert_eq!(frames.frame(pfn).map(|info| info.refcount), Some(count));
        }
        assert!(!frames.get_ref(pfn), "the count is full");
        assert!(frames.put_ref(pfn));
        let info = frames.frame(pfn).expect("inside");
        assert_eq!((info.refcount, info.flags), (30, FrameFlags::DIRTY));
        assert_eq!(info.state, FrameState::Allocated, "nothing spilt over");
    });
}

#[test]
fn frames_outside_the_span_are_nobodys() {
    with(|frames| {
        for pfn in [
            Pfn::new(0),
            Pfn::new(1023),
            Pfn::new(1024 + 2048),
            Pfn::new(u64::MAX),
        ] {
            assert_eq!(frames.block_of(pfn), None);
            assert_eq!(frames.zone_of(pfn), None);
            assert_eq!(frames.frame(pfn), None);
            assert_eq!(frames.state(pfn), FrameState::Reserved);
            assert_eq!(frames.head(pfn), pfn);
            assert_eq!(
                (frames.owner(pfn), frames.owner_word(pfn)),
                (OwnerId::NONE, 0)
            );
            assert_eq!(frames.flags(pfn), FrameFlags::EMPTY);
            assert!(!frames.get_ref(pfn) && !frames.put_ref(pfn));
            frames.set_flags(pfn, FrameFlags::DIRTY);
            frames.set_owner(pfn, OwnerId::new(1).expect("not 0"), 1);
            frames.reclass(pfn, FrameClass::Balloon);
            frames.adjust_managed(pfn, 1);
            let edge = frames.transition(pfn, FrameState::Allocated, FrameState::Listed);
            assert_eq!(edge, Err(FrameState::Reserved));
            assert_eq!(
                frames.free(CPU, pfn, Order::BASE),
                Err(FreeError::Unknown(pfn))
            );
            assert_eq!(frames.free_bulk(CPU, &[pfn]), Err(FreeError::Unknown(pfn)));
        }
        assert_eq!(
            frames.isolate_block(BlockId::new(4)),
            Err(IsolateError::Unknown)
        );
        assert_eq!(frames.managed_frames(), 2048);
    });
}

#[test]
#[cfg_attr(
    debug_assertions,
    should_panic(expected = "Allocated may not become Free")
)]
fn an_illegal_edge_is_refused() {
    with(|frames| {
        let pfn = frames
            .alloc(CPU, AllocRequest::movable())
            .expect("free memory");
        let edge = frames.transition(pfn, FrameState::Allocated, FrameState::Free);
        assert_eq!(edge, Err(FrameState::Allocated));
    });
}

#[test]
fn frames_that_nobody_holds_keep_their_class() {
    with(|frames| {
        let pfn = frames
            .alloc(CPU, AllocRequest::movable())
            .expect("free memory");
        let huge = frames
            .alloc(CPU, AllocRequest::huge())
            .expect("free memory");
        let run = AllocRequest::new(Order::new(3).expect("below 10"), FrameClass::Unmovable);
        let run = frames.alloc(CPU, run).expect("free memory");
        let ledgers = || {
            frames
                .blocks()
                .map(|b| frames.ledger(b))
                .collect::<Vec<_>>()
        };
        let before = ledgers();
        // Cached, free, and inside larger allocations.
        for pfn in [pfn.plus(1), pfn.plus(500), huge.plus(1), run.plus(7)] {
            frames.reclass(pfn, FrameClass::Balloon);
        }
        assert_eq!(ledgers(), before);
        frames.reclass(run, FrameClass::Balloon);
        let block = frames.block_of(run).expect("inside");
        assert_eq!(
            (
                frames.ledger(block).balloon(),
                frames.ledger(block).unmovable()
            ),
            (8, 0)
        );
    });
}

#[test]
fn a_free_that_fails_half_way_says_where() {
    with(|frames| {
        let mut out = [Pfn::default(); 5];
        assert_eq!(frames.alloc_bulk(CPU, AllocRequest::movable(), &mut out), 5);
        let [a, b, c, d, e] = out;
        frames
            .transition(c, FrameState::Allocated, FrameState::Listed)
            .expect("ours");
        let before = frames.free_frames();
        assert_eq!(
            frames.free_bulk(CPU, &[a, b, c, d]),
            Err(FreeError::NotAllocated(c))
        );
        assert_eq!(frames.free_frames(), before + 2, "those before it are free");
        assert_eq!(
            frames.state(d),
            FrameState::Allocated,
            "those after it are not"
        );
        assert_eq!(
            frames.free_bulk(CPU, &[d, e, d]),
            Err(FreeError::NotAllocated(d)),
            "twice"
        );
        assert_eq!(frames.events().get(Event::PgFree), 4);
    });
}

#[test]
fn a_huge_page_and_its_parts() {
    with(|frames| {
        let huge = frames
            .alloc(CPU, AllocRequest::huge())
            .expect("free memory");
        let block = frames.block_of(huge).expect("inside");
        frames.set_owner(huge, OwnerId::new(3).expect("not 0"), 77);
        assert_eq!(frames.head(huge.plus(511)), huge);
        assert_eq!(frames.isolate_block(block), Err(IsolateError::Huge));
        assert_eq!(frames.used_frames(block).count(), 512);
        let part = huge.plus(5);
        assert_eq!(
            frames.free(CPU, part, Order::BASE),
            Err(FreeError::NotAllocated(part))
        );
        assert_eq!(
            frames.free(CPU, huge, Order::BASE),
            Err(FreeError::WrongOrder(huge))
        );
        frames.split_huge(huge);
        assert_eq!(frames.ledger(block).state(), BlockState::Open);
        assert_eq!((frames.head(part), frames.order(part)), (part, Order::BASE));
        let info = frames.frame(part).expect("inside");
        assert_eq!(
            (info.state, info.word, info.owner.get()),
            (FrameState::Allocated, 77, 3)
        );
        for offset in 0..512 {
            frames
                .free(CPU, huge.plus(offset), Order::BASE)
                .expect("ours");
        }
        frames.drain_cpu_caches();
        assert_eq!(frames.free_blocks(), 4);
    });
}

#[test]
#[should_panic(expected = "is no huge page")]
fn a_base_page_is_not_split() {
    with(|frames| {
        let pfn = frames
            .alloc(CPU, AllocRequest::movable())
            .expect("free memory");
        frames.split_huge(pfn);
    });
}

#[test]
fn pitfall_59_the_reserve_is_kept_from_movable_frames_alone() {
    with(|frames| {
        let mut out = vec![Pfn::default(); 2048];
        let count = frames.alloc_bulk(CPU, AllocRequest::movable(), &mut out);
        assert_eq!((count, frames.free_blocks()), (3 * 512, 1));
        assert_eq!(
            frames.alloc(CPU, AllocRequest::movable()),
            Err(AllocError::Fragmented)
        );
        let any = Watermark::None;
        for placement in [BalloonPlacement::FillHoles, BalloonPlacement::WholeBlocks] {
            assert_eq!(
                frames.alloc_balloon(CPU, placement, any, &mut out[1600..]),
                0
            );
        }
        let huge = frames
            .alloc(CPU, AllocRequest::huge().with_watermark(any))
            .expect("whole");
        frames.free(CPU, huge, Order::HUGE).expect("ours");
        let broken = |frames: &FrameAllocator<'_>| frames.events().get(Event::ReserveBroken);
        assert_eq!(broken(frames), 0);
        let last = AllocRequest::movable().breaking_reserve();
        frames.alloc(CPU, last).expect("the reserve is for this");
        assert_eq!((broken(frames), frames.free_blocks()), (1, 0));
    });
    with(|frames| {
        for _ in 0..3 {
            frames
                .alloc(CPU, AllocRequest::huge())
                .expect("free memory");
        }
        frames
            .alloc(CPU, AllocRequest::unmovable())
            .expect("kernel memory may claim it");
        assert_eq!(frames.free_blocks(), 0);
        assert_eq!(
            frames.ledger(BlockId::new(3)).migratetype(),
            Migratetype::Unmovable
        );
    });
}

#[test]
fn events_have_names_of_their_own_and_print_as_vmstat_does() {
    let names: BTreeSet<&str> = Event::ALL.iter().map(|event| event.name()).collect();
    assert_eq!(names.len(), Event::COUNT);
    with(|frames| {
        let events = frames.events();
        for (times, event) in Event::ALL.iter().enumerate() {
            events.add(CpuId::new(1), *event, times as u64);
            events.add(CPU, *event, 1);
        }
        assert!(events.snapshot().into_iter().eq(1..=Event::COUNT as u64));
        let mut text = String::new();
        events.write_vmstat(&mut text).expect("a string takes all");
        assert_eq!(text.lines().count(), Event::COUNT);
        assert_eq!(text.lines().next(), Some("pgalloc 1"));
        assert!(text.lines().all(|line| line.split(' ').count() == 2));
    });
}

#[test]
fn zones_by_their_numbers() {
    with(|frames| {
        let zone = ZoneId::new(0);
        assert_eq!(frames.zones().collect::<Vec<_>>(), [zone]);
        assert_eq!(frames.zone_name(zone), "Normal");
        assert_eq!(
            (frames.reserve_blocks(zone), frames.zone_free_blocks(zone)),
            (1, 4)
        );
        assert_eq!(
            frames.watermarks(zone),
            Watermarks {
                min: 10,
                low: 20,
                high: 30
            }
        );
        assert_eq!(frames.block_start(BlockId::new(3)), START.plus(3 * 512));
        assert_eq!((frames.cpu_count(), frames.block_count()), (2, 4));
    });
}
