//! What it costs to choose a block, as memory and the number of hopeless blocks in it grow:
//! `cargo bench -p dirigible-mobility`, or with the allocator's figures `cargo xtask bench`.
//!
//! Times are medians over the requests of one run. Read them as ratios: down a column nothing should grow.
#![allow(missing_docs)]

use std::time::Instant;

use dirigible_frames::{
    AllocRequest, BalloonPlacement, Config, CpuId, FRAMES_PER_BLOCK, Fallback, FrameAllocator,
    FrameClass, FrameState, Order, OwnerId, Pfn, Placement, Platform, Watermark, Watermarks,
    ZoneConfig,
};
use dirigible_mobility::{
    CompactResult, CompactionConfig, Mobility, MovableOwner, MovePair, Outcome,
};

const CPU: CpuId = CpuId::new(0);
const OWNER: OwnerId = OwnerId::new(1).unwrap();
/// In the owner word of a frame: its owner does not give it up.
const KEPT: u64 = 1;
/// Blocks of a GiB.
const GIB: usize = 512;
/// Used frames of each block: little to move, so that the choice shows.
const USED: usize = 8;

/// Real time; frames have no contents.
struct Machine(Instant);

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CPU
    }
    fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
    fn relax(&self) {}
}

/// Gives up all frames but those that are marked.
struct Owner<'a>(&'a FrameAllocator<'a>);

impl MovableOwner for Owner<'_> {
    fn isolate(&self, frame: Pfn) -> bool {
        self.0.owner_word(frame) != KEPT && self.0.try_isolate(frame, OWNER).is_ok()
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        for pair in pairs {
            list(self.0, pair.to, 0);
            let left = self
                .0
                .transition(pair.from, FrameState::Isolated, FrameState::Allocated);
            assert!(left.is_ok());
            pair.outcome = Outcome::Moved;
        }
    }

    fn putback(&self, frame: Pfn) {
        let back = self
            .0
            .transition(frame, FrameState::Isolated, FrameState::Listed);
        assert!(back.is_ok());
    }
}

fn list(frames: &FrameAllocator<'_>, frame: Pfn, word: u64) {
    frames.set_owner(frame, OWNER, word);
    let listed = frames.transition(frame, FrameState::Allocated, FrameState::Listed);
    assert!(listed.is_ok());
}

fn with_memory(gib: usize, test: impl FnOnce(&FrameAllocator<'_>)) {
    let ranges = [Pfn::new(0)..Pfn::new((gib * GIB * FRAMES_PER_BLOCK) as u64)];
    let zones = [ZoneConfig {
        name: "Normal",
        ranges: &ranges,
        watermarks: Watermarks::default(),
        reserve_blocks: 0,
    }];
    let config = Config {
        zones: &zones,
        reserved: &[],
        cpus: 1,
        placement: Placement::FullestFirst,
        fallback: Fallback::Evacuate,
        ..Config::default()
    };
    let bytes = FrameAllocator::metadata_bytes(&config).expect("a good configuration");
    let mut metadata = vec![0; bytes];
    let frames = FrameAllocator::new(&config, &mut metadata).expect("enough metadata");
    test(&frames);
}

/// Every block keeps [`USED`] frames; in one of `every` blocks the first is not given up.
fn fill(frames: &FrameAllocator<'_>, every: usize) -> usize {
    let mut all = vec![Pfn::default(); frames.block_count() * FRAMES_PER_BLOCK];
    let count = frames.alloc_bulk(CPU, AllocRequest::movable(), &mut all);
    assert_eq!(count, all.len());
    let mut kept = 0;
    all.retain(|&frame| {
        let (block, offset) = (
            frame.get() as usize / FRAMES_PER_BLOCK,
            frame.offset_in_block(),
        );
        let stays = offset < USED;
        if stays {
            let is_kept = offset == 0 && every > 0 && block.is_multiple_of(every);
            kept += usize::from(is_kept);
            list(frames, frame, if is_kept { KEPT } else { 0 });
        }
        !stays
    });
    frames.free_bulk(CPU, &all).expect("they are ours");
    kept
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0)
}

/// Nanoseconds of each of so many requests for a huge page.
fn requests(mobility: &Mobility<'_, Machine>, count: usize, captured: &mut usize) -> Vec<u64> {
    (0..count)
        .map(|_| {
            let begun = Instant::now();
            let result = mobility.compact_direct(CPU, FrameClass::Movable);
            let time = begun.elapsed().as_nanos() as u64;
            *captured += usize::from(matches!(result, CompactResult::Captured(_)));
            time
        })
        .collect()
}

fn stuck_blocks() {
    println!(
        "A request for a huge page, {USED} frames to be moved (ns, median; the first meets the stuck blocks)"
    );
    println!(
        "{:>8} {:>8} {:>10} {:>10} {:>10}",
        "GiB", "stuck", "first 1000", "next 1000", "captured"
    );
    for (gib, every) in [(4, 0), (16, 0), (16, 8), (16, 4), (16, 2)] {
        with_memory(gib, |frames| {
            let machine = Machine(Instant::now());
            let owner = Owner(frames);
            let mobility = Box::new(Mobility::new(frames, &machine, CompactionConfig::default()));
            mobility
                .register(OWNER, &owner)
                .expect("the number is free");
            let stuck = fill(frames, every);
            let mut captured = 0;
            let first = median(requests(&mobility, 1000, &mut captured));
            let next = median(requests(&mobility, 1000, &mut captured));
            println!("{gib:>8} {stuck:>8} {first:>10} {next:>10} {captured:>10}");
        });
    }
}

fn deferred() {
    println!("\nA deferred request: memory is full but for a frame in each 32nd block (ns, mean)");
    println!("{:>8} {:>10}", "GiB", "ns");
    for gib in [4, 16] {
        with_memory(gib, |frames| {
            let machine = Machine(Instant::now());
            let owner = Owner(frames);
            let mobility = Box::new(Mobility::new(frames, &machine, CompactionConfig::default()));
            mobility
                .register(OWNER, &owner)
                .expect("the number is free");
            // Free frames that are no targets: in blocks of another type.
            let mut kernel = [Pfn::default(); 3 * FRAMES_PER_BLOCK];
            let count = frames.alloc_bulk(CPU, AllocRequest::unmovable(), &mut kernel);
            assert_eq!(count, kernel.len());
            let mut hole = 0usize;
            while let Ok(frame) = frames.alloc(CPU, AllocRequest::movable()) {
                list(frames, frame, 0);
            }
            for block in frames.blocks().skip(3).step_by(32) {
                let frame = frames.block_start(block).plus(3);
                if frames
                    .transition(frame, FrameState::Listed, FrameState::Allocated)
                    .is_ok()
                {
                    hole += usize::from(frames.free(CPU, frame, Order::BASE).is_ok());
                }
            }
            assert!(hole > 0);
            let half: Vec<Pfn> = kernel.iter().copied().step_by(2).collect();
            frames.free_bulk(CPU, &half).expect("they are ours");
            frames.drain_cpu_caches();
            let mut times = Vec::new();
            while times.len() < 2000 {
                let begun = Instant::now();
                let result = mobility.compact_direct(CPU, FrameClass::Movable);
                let time = begun.elapsed().as_nanos() as u64;
                match result {
                    CompactResult::Deferred => times.push(time),
                    CompactResult::Failed => {}
                    other => panic!("{other:?}"),
                }
            }
            let mean = times.iter().sum::<u64>() / times.len() as u64;
            println!("{gib:>8} {mean:>10}");
        });
    }
}

fn inflation() {
    println!("\nA balloon that grows to all of memory (ns a frame)");
    println!("{:>8} {:>14} {:>12}", "GiB", "whole blocks", "fill holes");
    for gib in [2, 8, 32] {
        let mut row = Vec::new();
        for how in [BalloonPlacement::WholeBlocks, BalloonPlacement::FillHoles] {
            with_memory(gib, |frames| {
                let mut out = [Pfn::default(); 256];
                let begun = Instant::now();
                let mut taken = 0;
                loop {
                    let got = frames.alloc_balloon(CPU, how, Watermark::None, &mut out);
                    if got == 0 {
                        break;
                    }
                    taken += got;
                }
                assert_eq!(taken, gib * GIB * FRAMES_PER_BLOCK);
                row.push(begun.elapsed().as_nanos() as f64 / taken as f64);
            });
        }
        println!("{gib:>8} {:>14.1} {:>12.1}", row[0], row[1]);
    }
}

fn main() {
    stuck_blocks();
    deferred();
    inflation();
}
