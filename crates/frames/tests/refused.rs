//! What refused requests cost others, and what they must not do.
#![cfg(not(shuttle))]

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use dirigible_frames::{
    AllocError, AllocRequest, Config, CpuId, FRAMES_PER_BLOCK, FrameAllocator, FrameClass,
    FreeError, Interrupts, Order, Pfn, Watermarks, ZoneConfig,
};

const A: CpuId = CpuId::new(0);
const B: CpuId = CpuId::new(1);

fn with_config(blocks: u64, config: &Config<'_>, test: impl FnOnce(&FrameAllocator<'_>)) {
    let ranges = [Pfn::new(0)..Pfn::new(blocks * FRAMES_PER_BLOCK as u64)];
    let zones = [ZoneConfig {
        name: "Normal",
        ranges: &ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    }];
    let config = Config {
        zones: &zones,
        cpus: 2,
        ..*config
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
    let frames = FrameAllocator::new(&config, &mut metadata).unwrap();
    test(&frames);
    frames.verify().expect("all counts fit");
}

fn with(blocks: u64, test: impl FnOnce(&FrameAllocator<'_>)) {
    with_config(blocks, &Config::default(), test);
}

fn order(order: u8) -> Order {
    Order::new(order).expect("0 to 10")
}

/// Sets its flag when it is dropped, also by a panic: the thread that waits for it must not wait for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One block is whole: a request for two in a row always fails, and must not hide the one from others.
#[test]
fn a_doomed_request_for_two_blocks_hides_no_whole_one() {
    with(12, |frames| {
        for block in 1..12 {
            let last = Pfn::new(block * FRAMES_PER_BLOCK as u64 + 511);
            frames
                .alloc_at(A, last, 1, AllocRequest::movable())
                .expect("free");
        }
        let pair = AllocRequest::new(Order::MAX, FrameClass::Movable);
        let huge = AllocRequest::new(Order::HUGE, FrameClass::Unmovable);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(frames.alloc(A, pair), Err(AllocError::Fragmented));
                }
            });
            let _over = Over(&over);
            for _ in 0..20_000 {
                let head = frames.alloc(B, huge).expect("there is one all the time");
                frames.free(B, head, Order::HUGE).expect("ours");
            }
        });
    });
}

/// A CPU whose requests keep failing leaves the caches of the others alone most of the time.
#[test]
fn requests_that_fail_in_a_row_do_not_drain_each_time() {
    with(2, |frames| {
        // Every second frame is used, so that no two stand together.
        let mut all = vec![Pfn::default(); 2 * FRAMES_PER_BLOCK];
        assert_eq!(
            frames.alloc_bulk(A, AllocRequest::movable(), &mut all),
            1024
        );
        all.sort_unstable();
        let odd: Vec<Pfn> = all.iter().copied().skip(1).step_by(2).collect();
        frames.free_bulk(A, &odd).expect("ours");
        let mut drains = 0;
        for _ in 0..500 {
            let pfn = frames
                .alloc(B, AllocRequest::movable())
                .expect("free memory");
            frames.free(B, pfn, Order::BASE).expect("ours");
            assert!(frames.cached_frames() > 0);
            let pair = AllocRequest::new(order(1), FrameClass::Movable);
            assert_eq!(frames.alloc(A, pair), Err(AllocError::Fragmented));
            drains += u32::from(frames.cached_frames() == 0);
        }
        assert!((1..=16).contains(&drains), "{drains} of 500");
        // If draining helps it is done again at once.
        frames.free_bulk(A, &all[..1]).expect("ours");
        frames.drain_cpu_caches();
        let pair = AllocRequest::new(order(1), FrameClass::Movable);
        assert!(frames.alloc(A, pair).is_ok());
    });
}

/// A row of refusals ends with the first success, and spare blocks of a CPU are given back also while not everything is
/// drained.
#[test]
fn a_row_of_refusals_hides_nothing_for_long() {
    with(64, |frames| {
        let request = |size| AllocRequest::new(order(size), FrameClass::Movable);
        // Two free frames in a row are only in blocks 32 and above, which are whole.
        for block in 0..64 {
            for at in (0..256).filter(|_| block < 32) {
                let place = Pfn::new(block * FRAMES_PER_BLOCK as u64 + 2 * at);
                frames.alloc_at(A, place, 1, request(0)).expect("free");
            }
        }
        let rest: Vec<Pfn> = (0..32)
            .map(|_| frames.alloc(A, AllocRequest::new(Order::HUGE, FrameClass::Unmovable)))
            .map(|huge| huge.expect("as many"))
            .collect();
        let refuse = || {
            for _ in 0..20 {
                assert_eq!(frames.alloc(A, request(1)), Err(AllocError::Fragmented));
            }
        };
        refuse();
        for &huge in &rest {
            frames.free(B, huge, Order::HUGE).expect("ours");
        }
        // B keeps some; A asks for what only a whole block can serve.
        let kept = frames.alloc(B, AllocRequest::huge()).expect("free");
        frames.free(B, kept, Order::HUGE).expect("ours");
        let all = frames
            .alloc_range(A, 32 * FRAMES_PER_BLOCK, Order::HUGE, request(0))
            .expect("all of them");
        // The row is over: the cache of B is drained at once.
        frames
            .free_range(A, all, 32 * FRAMES_PER_BLOCK)
            .expect("ours");
        let all: Vec<Pfn> = (0..32)
            .map(|_| frames.alloc(A, AllocRequest::new(Order::HUGE, FrameClass::Unmovable)))
            .map(|huge| huge.expect("as many"))
            .collect();
        let one = frames.alloc(B, request(0)).expect("free");
        let pair = [one, Pfn::new(one.get() ^ 1)];
        frames.free_range(A, pair[1], 1).expect("one of ours");
        frames.free(B, one, Order::BASE).expect("ours");
        let run = frames.alloc(A, request(1)).expect("the only one");
        assert!(pair.contains(&run));
        frames.free(A, run, order(1)).expect("ours");
        for huge in all {
            frames.free(A, huge, Order::HUGE).expect("ours");
        }
    });
}

/// A request for a long range that fails hides nothing from others meanwhile.
#[test]
fn a_doomed_long_range_hides_no_frames() {
    with(256, |frames| {
        for at in (0..256 * FRAMES_PER_BLOCK as u64).step_by(600) {
            frames
                .alloc_at(A, Pfn::new(at), 1, AllocRequest::movable())
                .expect("free");
        }
        let half = frames.free_frames() as usize * 6 / 10;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let range = frames.alloc_range(A, half, Order::BASE, AllocRequest::movable());
                    assert_eq!(range, Err(AllocError::Fragmented));
                }
            });
            let _over = Over(&over);
            for _ in 0..200 {
                let long = half * 6 / 10;
                let mut out = vec![Pfn::default(); long];
                let got = frames.alloc_bulk(B, AllocRequest::movable(), &mut out);
                assert_eq!(got, long, "they are free all the time");
                frames.free_bulk(B, &out).expect("ours");
            }
        });
    });
}

/// Blocks with room and without a run: a request looks at some from each end of the order, and not at all of them.
#[test]
fn a_request_that_finds_no_run_looks_at_few_blocks() {
    const BLOCKS: u64 = 1400;
    with(BLOCKS, |frames| {
        let all = BLOCKS as usize * FRAMES_PER_BLOCK;
        frames
            .alloc_at(A, Pfn::new(0), all, AllocRequest::movable())
            .expect("free");
        // A third of the blocks each have 10, 40, and 160 single free frames.
        for block in 0..BLOCKS {
            let start = Pfn::new(block * FRAMES_PER_BLOCK as u64);
            let free: Vec<Pfn> = (0..[10, 40, 160][block as usize / 467])
                .map(|at| start.plus(2 * at))
                .collect();
            frames.free_bulk(A, &free).expect("ours");
        }
        let pair = AllocRequest::new(order(1), FrameClass::Movable);
        assert_eq!(frames.alloc(A, pair), Err(AllocError::Fragmented));
        // At either end one is found: the lowest of the fullest, and of the emptiest.
        for block in [0, 2 * 467] {
            let odd = Pfn::new(block * FRAMES_PER_BLOCK as u64 + 1);
            frames.free_bulk(A, &[odd]).expect("ours");
            let run = frames.alloc(A, pair).expect("found");
            assert!(run == odd.plus(1) || run.plus(1) == odd, "{run:?}");
        }
        // In the middle of the order it is not looked for; the caller compacts instead.
        frames
            .free_bulk(A, &[Pfn::new(700 * FRAMES_PER_BLOCK as u64 + 1)])
            .expect("ours");
        frames.drain_cpu_caches();
        assert_eq!(frames.alloc(B, pair), Err(AllocError::Fragmented));
    });
}

#[test]
fn references_are_for_what_somebody_holds() {
    with(1, |frames| {
        let pfn = frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        assert!(!frames.get_ref(pfn.plus(300)), "a free frame");
        assert!(!frames.get_ref(pfn.plus(1)), "a cached one");
        assert!(frames.get_ref(pfn));
        let refused = Err(FreeError::Referenced(pfn));
        assert_eq!(frames.free(A, pfn, Order::BASE), refused);
        assert_eq!(frames.free_bulk(A, &[pfn]), refused);
        assert_eq!(frames.free_range(A, pfn, 1), refused);
        assert!(frames.put_ref(pfn));
        frames.free(A, pfn, Order::BASE).expect("ours");
    });
}

/// A mark that no sum can reach refuses everything.
#[test]
fn the_highest_mark_grants_nothing() {
    with(2, |frames| {
        let zone = dirigible_frames::ZoneId::new(0);
        for min in [u64::MAX, 1 << 63, i64::MAX as u64] {
            let marks = Watermarks {
                min,
                low: min,
                high: min,
            };
            frames.set_watermarks(zone, marks);
            assert_eq!(frames.watermarks(zone), marks);
            for request in [AllocRequest::movable(), AllocRequest::huge()] {
                assert_eq!(frames.alloc(A, request), Err(AllocError::BelowWatermark));
            }
        }
    });
}

/// Far from the mark a CPU keeps a part of the sum to itself; near it the mark is exact for others all the same.
#[test]
fn the_mark_is_exact_whoever_keeps_the_sum() {
    with(64, |frames| {
        let mark = 5000;
        let marks = Watermarks {
            min: mark,
            low: mark,
            high: mark,
        };
        frames.set_watermarks(dirigible_frames::ZoneId::new(0), marks);
        for first in [A, B] {
            let second = if first == A { B } else { A };
            let mut held = Vec::new();
            // Both ways: what was taken and what came back is in the first CPU's part.
            for _ in 0..250 {
                held.push(frames.alloc(first, AllocRequest::movable()).expect("far"));
            }
            for pfn in held.drain(100..) {
                frames.free(first, pfn, Order::BASE).expect("ours");
            }
            while let Ok(pfn) = frames.alloc(second, AllocRequest::movable()) {
                held.push(pfn);
            }
            assert_eq!((frames.free_frames(), frames.cached_frames()), (mark, 0));
            frames.free_bulk(second, &held).expect("ours");
            frames.drain_cpu_caches();
        }
    });
}

/// Counts how deep the mask is.
#[derive(Debug)]
struct Counting {
    depth: AtomicU32,
    most: AtomicU32,
    times: AtomicU32,
}

impl Interrupts for Counting {
    fn mask(&self) -> bool {
        let before = self.depth.fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(before + 1, Ordering::Relaxed);
        self.times.fetch_add(1, Ordering::Relaxed);
        before == 0
    }

    fn restore(&self, before: bool) {
        let depth = self.depth.fetch_sub(1, Ordering::Relaxed);
        assert_eq!(before, depth == 1, "what was found comes back");
    }
}

/// One at a time: the counts are shared by all tests of this process.
static MASK: Counting = Counting {
    depth: AtomicU32::new(0),
    most: AtomicU32::new(0),
    times: AtomicU32::new(0),
};
static ALONE: Mutex<()> = Mutex::new(());

/// Masked for as long as a CPU's lock is held and no longer, in one layer: the lock is a leaf.
#[test]
fn interrupts_are_masked_once_and_come_back() {
    let _alone = ALONE.lock().expect("no panic");
    let config = Config {
        interrupts: Some(&MASK),
        ..Config::default()
    };
    with_config(64, &config, |frames| {
        let mut held = Vec::new();
        for size in [0, 0, 3, 9, 9, 10, 0] {
            let request = AllocRequest::new(order(size), FrameClass::Movable);
            held.push((frames.alloc(A, request).expect("free memory"), order(size)));
            assert_eq!(MASK.depth.load(Ordering::Relaxed), 0);
        }
        let range = frames
            .alloc_range(B, 700, Order::BASE, AllocRequest::unmovable())
            .expect("free memory");
        let refused = frames.alloc_range(B, 1 << 20, Order::BASE, AllocRequest::movable());
        assert!(refused.is_err());
        let token = frames
            .isolate_block(frames.blocks().next_back().expect("64"))
            .expect("open");
        frames.unisolate_block(token);
        for (pfn, order) in held {
            assert!(frames.free(B, pfn.plus(1 << 40), order).is_err());
            frames.free(B, pfn, order).expect("ours");
        }
        frames.free_range(B, range, 700).expect("ours");
        frames.drain_cpu_caches();
        frames.verify().expect("all counts fit");
        assert_eq!(MASK.depth.load(Ordering::Relaxed), 0);
        assert_eq!(
            MASK.most.load(Ordering::Relaxed),
            1,
            "no lock inside another"
        );
        assert!(MASK.times.load(Ordering::Relaxed) > 20);
    });
}
