//! The slow path: what it tries, in which order, and that every request ends.

mod support;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dirigible_frames::{
    AllocRequest, BalloonPlacement, Event, Fallback, FrameClass, FrameState, Migratetype, Order,
    Pfn, Placement,
};
use dirigible_paging::{
    NoReclaim, OutOfMemory, Page, PageSource, Reclaim, SlowPath, SlowPathConfig, SpaceId,
};
use support::{MockGuest, World, leak, world_with};

/// Pages of one space that are freed oldest first, as a page cache does.
struct Filler {
    w: World,
    space: SpaceId,
    pages: Mutex<VecDeque<u64>>,
    calls: AtomicUsize,
    asked: AtomicUsize,
    /// Most frames that one call frees.
    generosity: usize,
}

impl Filler {
    /// Fills all free memory with pages.
    fn new(w: World, generosity: usize) -> &'static Self {
        let space = w.space();
        let mut pages = VecDeque::new();
        while let Ok(fault) = w.paging.fault(
            space,
            Page::new(pages.len() as u64),
            dirigible_paging::FaultKind::Base,
            w.source,
        ) {
            assert!(fault.fresh);
            pages.push_back(pages.len() as u64);
        }
        let (calls, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        leak(Self {
            w,
            space,
            pages: Mutex::new(pages),
            calls,
            asked,
            generosity,
        })
    }

    /// Frees the pages for which `goes` holds.
    fn punch(&self, goes: impl Fn(Pfn) -> bool) -> usize {
        let w = &self.w;
        let mut given = 0;
        self.pages.lock().unwrap().retain(|&page| {
            let frame = w.paging.translate(self.space, Page::new(page)).unwrap();
            let gone = goes(frame);
            if gone {
                given += w.unmap(self.space, page..page + 1);
            }
            !gone
        });
        w.frames.drain_cpu_caches();
        given
    }

    fn slow_path(&'static self, config: SlowPathConfig) -> SlowPath<'static, MockGuest> {
        SlowPath::new(self.w.mobility, self, config)
    }

    /// Calls since this was asked last.
    fn calls(&self) -> usize {
        self.calls.swap(0, Relaxed)
    }
}

impl Reclaim for Filler {
    fn reclaim(&self, frames: usize, _: Order) -> usize {
        self.calls.fetch_add(1, Relaxed);
        self.asked.fetch_add(frames, Relaxed);
        let given = Cell::new(0);
        for _ in 0..frames.min(self.generosity) {
            let Some(page) = self.pages.lock().unwrap().pop_front() else {
                break;
            };
            given.set(given.get() + self.w.unmap(self.space, page..page + 1));
        }
        given.get()
    }
}

fn config(fallback: Fallback) -> SlowPathConfig {
    SlowPathConfig {
        fallback,
        // All other means are tested without it.
        any_block_at_last: false,
        ..SlowPathConfig::default()
    }
}

fn filled(blocks: u64, fallback: Fallback, generosity: usize) -> &'static Filler {
    Filler::new(
        world_with(blocks, Placement::LowestFirst, fallback, 0),
        generosity,
    )
}

#[test]
fn what_is_free_is_taken_without_ado() {
    let w = world_with(4, Placement::LowestFirst, Fallback::Steal, 0);
    let slow = SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Steal));
    for request in [
        AllocRequest::movable(),
        AllocRequest::unmovable(),
        AllocRequest::huge(),
    ] {
        let frame = slow.alloc(request).unwrap();
        assert_eq!(w.frames.state(frame), FrameState::Allocated);
        slow.free(frame, request.order);
    }
    assert_eq!(
        (w.event(Event::AllocStall), w.event(Event::OutOfMemory)),
        (0, 0)
    );
    w.check_at_rest();
}

#[test]
fn a_base_page_is_reclaimed_for_in_small_batches() {
    let filler = filled(4, Fallback::Steal, usize::MAX);
    let slow = filler.slow_path(config(Fallback::Steal));
    let frame = slow.alloc(AllocRequest::movable()).unwrap();
    let w = &filler.w;
    assert_eq!(
        (w.event(Event::AllocStall), w.event(Event::PgReclaimed)),
        (1, 32)
    );
    assert_eq!((filler.calls(), filler.asked.load(Relaxed)), (1, 32));
    // The rest of the batch serves the next requests.
    let more: Vec<_> = (0..31)
        .map(|_| slow.alloc(AllocRequest::movable()).unwrap())
        .collect();
    assert_eq!(filler.calls(), 0);
    more.into_iter()
        .chain([frame])
        .for_each(|frame| slow.free(frame, Order::BASE));
    w.check_at_rest();
}

#[test]
fn a_huge_page_is_captured_before_anything_is_reclaimed() {
    let filler = filled(8, Fallback::Steal, usize::MAX);
    // Half of every movable block is freed: four blocks' worth of frames, but no whole block.
    filler.punch(|frame| frame.get() % 2 == 0);
    assert_eq!(filler.w.frames.free_blocks(), 0);
    let slow = filler.slow_path(config(Fallback::Steal));
    let frame = slow.alloc(AllocRequest::huge()).unwrap();
    assert!(frame.is_aligned(Order::HUGE));
    assert_eq!(filler.calls(), 0);
    assert_eq!(filler.w.event(Event::CompactSuccess), 1);
    slow.free(frame, Order::HUGE);
    filler.w.check_at_rest();
}

#[test]
fn a_huge_page_takes_one_big_reclaim_at_most() {
    let filler = filled(8, Fallback::Steal, usize::MAX);
    let slow = filler.slow_path(config(Fallback::Steal));
    let w = &filler.w;
    let frame = slow.alloc(AllocRequest::huge()).unwrap();
    assert_eq!((filler.calls(), filler.asked.load(Relaxed)), (1, 1024));
    assert_eq!(
        (w.event(Event::AllocStall), w.event(Event::PgReclaimed)),
        (1, 1024)
    );
    slow.free(frame, Order::HUGE);
    w.check_at_rest();
}

#[test]
fn an_unmovable_request_evacuates_where_it_must_not_steal() {
    let filler = filled(8, Fallback::Evacuate, usize::MAX);
    let w = &filler.w;
    filler.punch(|frame| frame.get() % 3 == 0);
    let slow = filler.slow_path(config(Fallback::Evacuate));
    let mut taken = Vec::new();
    // More than there is room for in the blocks that hold tables.
    for i in 0..600 {
        let class = if i % 2 == 0 {
            FrameClass::Unmovable
        } else {
            FrameClass::Reclaimable
        };
        taken.push(slow.alloc(AllocRequest::new(Order::BASE, class)).unwrap());
    }
    assert!(w.event(Event::BlockEvacuated) > 0);
    assert_eq!(
        (w.event(Event::BlockStolen), w.event(Event::BlockPolluted)),
        (0, 0)
    );
    assert_eq!(w.frames.hybrid_blocks(), 0);
    taken
        .into_iter()
        .for_each(|frame| slow.free(frame, Order::BASE));
    w.check_at_rest();
}

#[test]
fn evacuation_without_room_reclaims_room_first() {
    // Every frame is in use, so evacuation finds no targets.
    let filler = filled(8, Fallback::Evacuate, usize::MAX);
    let slow = filler.slow_path(config(Fallback::Evacuate));
    let mut taken = Vec::new();
    for _ in 0..600 {
        taken.push(slow.alloc(AllocRequest::unmovable()).unwrap());
    }
    let w = &filler.w;
    assert_eq!(w.frames.hybrid_blocks(), 0);
    assert_eq!(w.event(Event::OutOfMemory), 0);
    taken
        .into_iter()
        .for_each(|frame| slow.free(frame, Order::BASE));
    w.check_at_rest();
}

#[test]
fn under_steal_nothing_is_evacuated_for_a_request() {
    let filler = filled(8, Fallback::Steal, usize::MAX);
    let slow = filler.slow_path(config(Fallback::Steal));
    let taken: Vec<_> = (0..600)
        .map(|_| slow.alloc(AllocRequest::unmovable()).unwrap())
        .collect();
    assert_eq!(filler.w.event(Event::BlockEvacuated), 0);
    taken
        .into_iter()
        .for_each(|frame| slow.free(frame, Order::BASE));
    filler.w.check_at_rest();
}

/// With every amount of free memory around the thresholds, and every kind of reclaimer, a request ends soon.
#[test]
fn pitfall_62_reclaim_and_compaction_do_not_wait_for_each_other() {
    let limits = SlowPathConfig::default();
    for fallback in [Fallback::Steal, Fallback::Evacuate] {
        for generosity in [0, 1, 31, 32, 33, usize::MAX] {
            for min in [511, 512, 513] {
                let w = world_with(6, Placement::LowestFirst, fallback, min);
                let filler = Filler::new(w, generosity);
                let slow = filler.slow_path(config(fallback));
                let w = &filler.w;
                for free in [0u32, 1, 2, 511, 512, 513] {
                    let first = Cell::new(free);
                    filler.punch(|_| first.replace(first.get().saturating_sub(1)) > 0);
                    filler.calls();
                    let huge = slow.alloc(AllocRequest::huge());
                    assert!(filler.calls() <= 1);
                    let base = slow.alloc(AllocRequest::movable());
                    assert!(filler.calls() <= limits.rounds);
                    let table = slow.alloc(AllocRequest::unmovable());
                    assert!(filler.calls() <= limits.rounds);
                    for (got, order) in [
                        (huge, Order::HUGE),
                        (base, Order::BASE),
                        (table, Order::BASE),
                    ] {
                        if let Ok(frame) = got {
                            slow.free(frame, order);
                        }
                    }
                    let [stall, success, fail] = [
                        Event::CompactStall,
                        Event::CompactSuccess,
                        Event::CompactFail,
                    ]
                    .map(|e| w.event(e));
                    assert_eq!(stall, success + fail);
                    w.check_at_rest();
                }
            }
        }
    }
}

/// Reclaim frees nothing, but there is memory that other means find.
#[test]
fn pitfall_64_no_failure_while_something_can_still_be_done() {
    // Unmovable: a movable block can be evacuated.
    let filler = filled(8, Fallback::Evacuate, 0);
    let w = &filler.w;
    filler.punch(|frame| frame.get() % 2 == 0);
    let slow = filler.slow_path(config(Fallback::Evacuate));
    let taken: Vec<_> = (0..700)
        .map(|_| slow.alloc(AllocRequest::unmovable()).unwrap())
        .collect();
    assert_eq!(w.event(Event::OutOfMemory), 0);
    taken
        .into_iter()
        .for_each(|frame| slow.free(frame, Order::BASE));
    w.check_at_rest();
    // Movable: every free frame, in whichever block, but the last.
    let movable: Vec<_> = std::iter::from_fn(|| slow.alloc(AllocRequest::movable()).ok()).collect();
    assert_eq!(w.event(Event::OutOfMemory), 1);
    w.frames.drain_cpu_caches();
    let idle = w.frames.blocks().filter(|&block| {
        w.frames.ledger(block).migratetype() == Migratetype::Movable
            && w.frames.ledger(block).free() > 0
    });
    assert_eq!(idle.count(), 0);
    movable
        .into_iter()
        .for_each(|frame| slow.free(frame, Order::BASE));
    w.check_at_rest();
}

#[test]
fn out_of_memory_is_counted_and_bounded() {
    let filler = filled(4, Fallback::Evacuate, 0);
    let slow = filler.slow_path(config(Fallback::Evacuate));
    let order_10 = AllocRequest::new(Order::MAX, FrameClass::Movable);
    for request in [AllocRequest::movable(), AllocRequest::huge(), order_10] {
        let before = filler.w.event(Event::OutOfMemory);
        assert_eq!(slow.alloc(request), Err(OutOfMemory));
        assert_eq!(filler.w.event(Event::OutOfMemory), before + 1);
        assert!(filler.calls() <= 1);
    }
    filler.w.check_at_rest();
}

/// Where it may, a request takes what is free in a block of another type before it fails: all of it, and no more.
#[test]
fn blocks_of_other_types_are_the_last_means() {
    let filler = filled(4, Fallback::Evacuate, 0);
    let w = &filler.w;
    let config = SlowPathConfig {
        any_block_at_last: true,
        ..config(Fallback::Evacuate)
    };
    let slow = filler.slow_path(config);
    w.frames.drain_cpu_caches();
    let free = w.frames.free_frames();
    assert!(free > 0 && w.frames.hybrid_blocks() == 0);
    let taken: Vec<_> = std::iter::from_fn(|| slow.alloc(AllocRequest::movable()).ok()).collect();
    assert_eq!(taken.len() as u64, free);
    assert!(w.frames.hybrid_blocks() > 0);
    taken
        .into_iter()
        .for_each(|frame| slow.free(frame, Order::BASE));
    w.frames.drain_cpu_caches();
    assert_eq!(w.frames.hybrid_blocks(), 0);
    w.check_at_rest();
}

#[test]
fn a_large_run_does_not_empty_the_reclaimer() {
    let filler = filled(16, Fallback::Steal, usize::MAX);
    // A frame in each block cannot be reclaimed, so that no run of order 10 can become free.
    let stays = |frame: Pfn| frame.offset_in_block() == 77;
    filler.pages.lock().unwrap().retain(|&page| {
        !stays(
            filler
                .w
                .paging
                .translate(filler.space, Page::new(page))
                .unwrap(),
        )
    });
    let slow = filler.slow_path(config(Fallback::Steal));
    let order_10 = AllocRequest::new(Order::MAX, FrameClass::Movable);
    assert_eq!(slow.alloc(order_10), Err(OutOfMemory));
    assert_eq!(filler.calls(), SlowPathConfig::default().costly_rounds);
    filler.w.check_at_rest();
}

#[test]
fn the_balloon_gets_what_reclaim_gives() {
    let filler = filled(8, Fallback::Steal, usize::MAX);
    let slow = filler.slow_path(config(Fallback::Steal));
    let mut out = [Pfn::new(0); 256];
    assert_eq!(slow.take_balloon(BalloonPlacement::Ordinary, &mut out), 256);
    assert_eq!(filler.calls(), 8);
    for &frame in &out {
        assert_eq!(
            filler.w.frames.frame(frame).unwrap().class,
            FrameClass::Balloon
        );
        slow.free(frame, Order::BASE);
    }
    filler.w.check_at_rest();
}

#[test]
fn the_balloon_is_told_how_much_there_is() {
    let filler = filled(4, Fallback::Steal, usize::MAX);
    // Only 100 frames can be reclaimed.
    filler.pages.lock().unwrap().truncate(100);
    let slow = filler.slow_path(config(Fallback::Steal));
    let mut out = [Pfn::new(0); 256];
    let taken = slow.take_balloon(BalloonPlacement::Ordinary, &mut out);
    assert_eq!(taken, 100);
    assert!(filler.calls() <= 5);
    assert_eq!(filler.w.event(Event::OutOfMemory), 0);
    out[..taken]
        .iter()
        .for_each(|&frame| slow.free(frame, Order::BASE));
    filler.w.check_at_rest();
}

#[test]
fn a_pinned_balloon_evacuates_like_any_unmovable_request() {
    let filler = filled(8, Fallback::Evacuate, usize::MAX);
    filler.punch(|frame| frame.get() % 2 == 0);
    let slow = filler.slow_path(config(Fallback::Evacuate));
    let mut out = [Pfn::new(0); 700];
    assert_eq!(
        slow.take_balloon(BalloonPlacement::Unmovable, &mut out),
        700
    );
    let w = &filler.w;
    assert!(w.event(Event::BlockEvacuated) > 0);
    assert_eq!(w.frames.hybrid_blocks(), 0);
    out.iter().for_each(|&frame| slow.free(frame, Order::BASE));
    w.check_at_rest();
}
