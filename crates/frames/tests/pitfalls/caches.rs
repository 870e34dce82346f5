//! Frames in CPU caches: neither lost nor in the way.

use dirigible_frames::{
    AllocError, AllocRequest, CpuId, FRAMES_PER_BLOCK, FrameClass, FrameState, Migratetype, Order,
    Pfn, Watermarks,
};

use crate::machine::{A, B, Machine, Random, block, prepare};

#[test]
fn pitfall_55_caches_do_not_reach_below_the_watermark() {
    let mut machine = Machine::of_blocks(2);
    machine.cpus = 8;
    machine.marks = Watermarks {
        min: 700,
        low: 750,
        high: 800,
    };
    machine.run(|frames| {
        let mut random = Random::new(55);
        let mut held: Vec<(CpuId, Pfn)> = Vec::new();
        let mut refused = 0;
        for _ in 0..4000 {
            let cpu = CpuId::new(random.below(8) as u16);
            if random.below(3) > 0 {
                let request = [AllocRequest::movable(), AllocRequest::unmovable()][random.below(2)];
                match frames.alloc(cpu, request) {
                    Ok(pfn) => held.push((cpu, pfn)),
                    Err(error) => {
                        refused += 1;
                        assert_eq!(error, AllocError::BelowWatermark);
                        // What other CPUs had cached was used before a request was refused.
                        assert_eq!(frames.cached_frames(), 0);
                    }
                }
            } else if !held.is_empty() {
                let (cpu, pfn) = held.swap_remove(random.below(held.len()));
                frames.free(cpu, pfn, Order::BASE).expect("ours");
            }
            let (free, cached) = (frames.free_frames(), frames.cached_frames());
            assert!(free >= 700, "{free} left");
            assert_eq!(free + cached + held.len() as u64, 1024);
        }
        assert!(refused > 100, "the mark was reached");
    });
}

/// A processor is given what it freed last, which is still in its cache of memory.
#[test]
fn pitfall_54_what_was_freed_last_is_handed_out_first() {
    let machine = Machine::of_blocks(4);
    machine.run(|frames| {
        let mut random = Random::new(54);
        let request = AllocRequest::movable();
        let mut held: Vec<Pfn> = (0..600)
            .map(|_| frames.alloc(A, request).unwrap())
            .collect();
        for _ in 0..200 {
            let frame = held.swap_remove(random.below(held.len()));
            frames.free(A, frame, Order::BASE).expect("ours");
            assert_eq!(frames.alloc(A, request), Ok(frame));
            held.push(frame);
        }
    });
}

#[test]
fn pitfall_57_cached_frames_hold_no_block() {
    let mut machine = Machine::of_blocks(1);
    machine.cpus = 3;
    machine.run(|frames| {
        // Every CPU's caches are full of frames of the only block.
        let fill = || {
            let mut out = [Pfn::default(); 450];
            let mut held = Vec::new();
            for (cpu, class) in [
                (0, FrameClass::Movable),
                (1, FrameClass::Movable),
                (2, FrameClass::Movable),
            ] {
                let request = AllocRequest::new(Order::BASE, class);
                let count = frames.alloc_bulk(CpuId::new(cpu), request, &mut out[..150]);
                held.extend(out[..count].iter().map(|pfn| (CpuId::new(cpu), *pfn)));
            }
            assert_eq!(held.len(), 450);
            for (cpu, pfn) in held {
                frames.free(cpu, pfn, Order::BASE).expect("ours");
            }
            assert!(frames.cached_frames() > 300);
            assert_eq!(frames.free_blocks(), 0);
        };
        fill();
        let token = frames.isolate_block(block(0)).expect("open");
        assert_eq!(frames.cached_frames(), 0);
        let huge = frames
            .capture_block(token, FrameClass::Movable)
            .expect("wholly free");
        frames.free(A, huge, Order::HUGE).expect("ours");
        // An ordinary request for a huge page empties the caches, too.
        fill();
        let huge = frames
            .alloc(A, AllocRequest::huge())
            .expect("wholly free but for caches");
        frames.free(A, huge, Order::HUGE).expect("ours");
        fill();
        frames.drain_cpu_caches();
        assert_eq!(frames.free_blocks(), 1);
    });
}

#[test]
fn pitfall_58_a_block_changes_its_type_under_cached_frames() {
    // By conversion: the caches give the block's frames back first.
    Machine::of_blocks(2).run(|frames| {
        let pfn = frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        assert_eq!(frames.state(pfn.plus(1)), FrameState::Cached);
        let token = frames
            .isolate_block(frames.block_of(pfn).expect("inside"))
            .expect("open");
        assert_eq!(frames.state(pfn.plus(1)), FrameState::Free);
        frames.convert_block(token, Migratetype::Unmovable);
        frames.verify().expect("all counts fit");
        // The cache is no longer refilled from the block: movable requests go elsewhere.
        let next = frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        assert_ne!(frames.block_of(next), frames.block_of(pfn));
    });
    // By stealing: the frames stay cached as what they are, and come back as what they were.
    Machine::of_blocks(1).run(|frames| {
        prepare(frames, FrameClass::Movable, 400);
        let movable = frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        assert_eq!(frames.cached_frames(), 63);
        let kernel = frames.alloc(B, AllocRequest::unmovable()).expect("stolen");
        assert_eq!(
            frames.ledger(block(0)).migratetype(),
            Migratetype::Unmovable
        );
        frames.verify().expect("all counts fit");
        assert_eq!(frames.ledger(block(0)).movable(), 112 + 64);
        frames.free(A, movable, Order::BASE).expect("ours");
        frames.drain_cpu_caches();
        let ledger = frames.ledger(block(0));
        assert_eq!((ledger.movable(), ledger.unmovable()), (112, 1));
        assert_eq!(ledger.free() as usize, FRAMES_PER_BLOCK - 113);
        frames.free(B, kernel, Order::BASE).expect("ours");
    });
}
