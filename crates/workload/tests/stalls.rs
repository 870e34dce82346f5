//! Which failures are due to lack of memory, and which to frames that compaction has set aside.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "../../paging/tests/support/guest.rs"]
mod guest;

use dirigible_frames::{
    AllocRequest, Config, FRAMES_PER_BLOCK, Fallback, FrameAllocator, Order, Pfn, Placement,
    Platform, Watermark, Watermarks, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility};
use dirigible_paging::{NoReclaim, OutOfMemory, PageSource, SlowPath, SlowPathConfig};
use dirigible_workload::stalls::Stalls;
use guest::{BASE, CPUS, MockGuest};

const BLOCKS: usize = 4;
const MIN: u64 = 64;

/// Allocates all memory but `MIN` frames, gives back the `given` lowest frames and isolates their block; then makes
/// `request`. Returns how many failures are counted in `min_failed`.
fn starved(fallback: Fallback, given: usize, request: AllocRequest) -> u64 {
    let ranges = [Pfn::new(BASE)..Pfn::new(BASE + (BLOCKS * FRAMES_PER_BLOCK) as u64)];
    let zone = ZoneConfig {
        name: "Normal",
        ranges: &ranges,
        watermarks: Watermarks {
            min: MIN,
            low: MIN,
            high: MIN,
        },
        reserve_blocks: 0,
    };
    let config = Config {
        zones: &[zone],
        reserved: &[],
        cpus: CPUS,
        placement: Placement::LowestFirst,
        fallback,
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
    let guest = MockGuest::new(BLOCKS * FRAMES_PER_BLOCK);
    let mobility = Mobility::new(&frames, &guest, CompactionConfig::default());
    let stalls = Stalls::new(&mobility, fallback);
    let settings = SlowPathConfig {
        fallback,
        ..SlowPathConfig::default()
    };
    let memory = SlowPath::new(&mobility, &NoReclaim, settings).observed_by(&stalls);

    let movable = AllocRequest::movable();
    let mut taken: Vec<Pfn> = std::iter::from_fn(|| memory.alloc(movable).ok()).collect();
    assert_eq!(frames.free_frames(), MIN);
    let report = stalls.report();
    assert_eq!((report.base.count, report.base.failed), (1, 1));
    assert_eq!(report.min_failed, 0, "the guest's memory is at its end");

    taken.sort_unstable();
    let block = frames.block_of(taken[0]).unwrap();
    for &frame in &taken[..given] {
        memory.free(frame, Order::BASE);
    }
    frames.drain_cpu_caches();
    let isolated = frames.isolate_block(block).unwrap();
    assert_eq!(frames.free_frames(), MIN);
    assert_eq!(memory.alloc(request), Err(OutOfMemory));
    frames.unisolate_block(isolated);
    let report = stalls.report();
    assert_eq!(report.base.failed + report.huge.failed, 2);
    if report.min_failed > 0 {
        let got = frames.alloc(guest.cpu(), request);
        assert!(got.is_ok(), "nothing was held that would have served it");
    }
    report.min_failed
}

#[test]
fn a_failure_while_compaction_holds_free_frames_is_counted() {
    for fallback in [Fallback::Steal, Fallback::Evacuate] {
        assert_eq!(starved(fallback, 100, AllocRequest::movable()), 1);
    }
    assert_eq!(starved(Fallback::Steal, 100, AllocRequest::unmovable()), 1);
}

#[test]
fn requests_that_cannot_use_those_frames_are_not_counted() {
    // With `Evacuate`, kernel memory does not come from movable blocks.
    let kernel = AllocRequest::unmovable();
    assert_eq!(starved(Fallback::Evacuate, 100, kernel), 0);
    // The request must leave more than `min`, or is for more than one frame.
    let low = AllocRequest::movable().with_watermark(Watermark::Low);
    assert_eq!(starved(Fallback::Steal, 100, low), 0);
    assert_eq!(starved(Fallback::Steal, 100, AllocRequest::huge()), 0);
    // The whole block is in use, and no targets are set aside for it yet.
    assert_eq!(starved(Fallback::Steal, 0, AllocRequest::movable()), 0);
}
