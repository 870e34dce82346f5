//! Zones that begin and end anywhere, and what must stay inside them.

use std::collections::BTreeSet;

use dirigible_frames::{
    AllocRequest, BalloonPlacement, FRAME_SIZE, FRAMES_PER_BLOCK, FrameClass, FrameState, Order,
    Pfn, Watermark,
};

use crate::machine::{A, Machine, Random, block, order, prepare, range};

#[test]
fn pitfall_20_a_frame_is_4_kib_whatever_the_order() {
    assert_eq!(FRAME_SIZE, 4096);
    assert_eq!(FRAME_SIZE * FRAMES_PER_BLOCK, 2 << 20);
    for size in 0..=10 {
        let order = order(size);
        assert_eq!(order.frames(), 1 << size);
        let pfn = Pfn::new(order.frames() as u64 * 3);
        assert!(pfn.is_aligned(order));
        assert_eq!(pfn.address(), pfn.get() * 4096);
        for inside in [0, 1, 4095] {
            assert_eq!(Pfn::containing(pfn.address() + inside), pfn);
        }
    }
    assert_eq!(Order::new(11), None);
    // A larger allocation counts as many frames as are reported to a device.
    Machine::of_blocks(2).run(|frames| {
        let before = frames.free_frames();
        frames
            .alloc(A, AllocRequest::new(order(4), FrameClass::Balloon))
            .expect("free memory");
        assert_eq!(before - frames.free_frames(), 16);
        assert_eq!(frames.ledger(block(0)).balloon(), 16);
    });
}

#[test]
fn pitfall_22_what_zones_manage_sums_up() {
    let zones = vec![
        vec![range(1, 1024)],
        vec![range(1024, 2048)],
        vec![range(2048, 4096)],
    ];
    Machine::of_zones(zones).run(|frames| {
        let zones: Vec<_> = frames.zones().collect();
        let all: u64 = zones.iter().map(|zone| frames.zone_managed(*zone)).sum();
        let mut balloon = vec![0u64; zones.len()];
        let mut held: Vec<Pfn> = Vec::new();
        let mut random = Random::new(22);
        // The balloon grows, shrinks and moves its frames from zone to zone.
        for _ in 0..2000 {
            let grow = |held: &mut Vec<Pfn>, balloon: &mut Vec<u64>| {
                let request = AllocRequest::new(Order::BASE, FrameClass::Balloon);
                let Ok(pfn) = frames.alloc(A, request) else {
                    return;
                };
                frames.adjust_managed(pfn, -1);
                balloon[frames.zone_of(pfn).expect("inside").index()] += 1;
                held.push(pfn);
            };
            let shrink = |held: &mut Vec<Pfn>, balloon: &mut Vec<u64>, at: usize| {
                let pfn = held.swap_remove(at);
                frames.adjust_managed(pfn, 1);
                balloon[frames.zone_of(pfn).expect("inside").index()] -= 1;
                frames.free(A, pfn, Order::BASE).expect("ours");
            };
            match random.below(3) {
                0 if !held.is_empty() => {
                    let at = random.below(held.len());
                    shrink(&mut held, &mut balloon, at);
                }
                1 if !held.is_empty() => {
                    // The new one first, as a host that is promised a size demands.
                    let at = random.below(held.len());
                    grow(&mut held, &mut balloon);
                    shrink(&mut held, &mut balloon, at);
                }
                _ => (0..8).for_each(|_| grow(&mut held, &mut balloon)),
            }
            let managed: u64 = zones.iter().map(|zone| frames.zone_managed(*zone)).sum();
            assert_eq!(managed + balloon.iter().sum::<u64>(), all);
            assert_eq!(frames.managed_frames(), managed);
        }
        for zone in zones {
            let present = [1023, 1024, 2048][zone.index()];
            assert_eq!(frames.zone_managed(zone) + balloon[zone.index()], present);
        }
        assert!(
            balloon.iter().all(|count| *count > 0),
            "all zones took part"
        );
    });
}

#[test]
fn pitfall_42_zones_begin_and_end_anywhere() {
    /// First frame and one past the last.
    type Ranges = [(u64, u64)];
    /// Ranges of each zone, and what is reserved in them.
    type Geometry<'a> = (&'a [&'a Ranges], &'a Ranges);
    let table: [Geometry<'_>; 8] = [
        (&[&[(1, 2)]], &[]),
        (&[&[(1, 513)]], &[]),
        (&[&[(511, 1025)]], &[]),
        (&[&[(700, 5000)]], &[(700, 701), (4999, 6000)]),
        // Holes inside a block, and of several blocks.
        (&[&[(100, 200), (300, 400), (5000, 5001)]], &[(150, 350)]),
        // Interleaved by whole blocks, the odd ones in another zone.
        (
            &[
                &[(0, 512), (1024, 1536), (2048, 2560)],
                &[(512, 1024), (1536, 2048)],
            ],
            &[],
        ),
        // Touching blocks of different zones, each used in part.
        (
            &[&[(1, 500)], &[(512, 900)], &[(1024, 1025)], &[(1600, 2047)]],
            &[],
        ),
        // Nothing is left.
        (&[&[(512, 1024)]], &[(0, 1 << 40)]),
    ];
    for (zones, reserved) in table {
        let ranges = |list: &[(u64, u64)]| list.iter().map(|(s, e)| range(*s, *e)).collect();
        let mut machine = Machine::of_zones(zones.iter().map(|zone| ranges(zone)).collect());
        machine.reserved = ranges(reserved);
        let reserved: Vec<_> = machine.reserved.clone();
        let usable: BTreeSet<Pfn> = zones
            .iter()
            .flat_map(|zone| zone.iter().flat_map(|(start, end)| *start..*end))
            .map(Pfn::new)
            .filter(|pfn| !reserved.iter().any(|range| range.contains(pfn)))
            .collect();
        machine.run(|frames| {
            assert_eq!(frames.managed_frames(), usable.len() as u64);
            assert_eq!(frames.free_frames(), usable.len() as u64);
            assert_eq!(frames.class_frames().free, usable.len() as u64);
            assert_eq!(frames.base().offset_in_block(), 0);
            // The largest runs first, then what is left, until there is nothing.
            let mut taken = BTreeSet::new();
            let mut runs = Vec::new();
            for size in (0..=10).rev().map(order) {
                let request = AllocRequest::new(size, FrameClass::Movable);
                while let Ok(pfn) = frames.alloc(A, request) {
                    let run = pfn.get()..pfn.get() + size.frames() as u64;
                    assert!(run.map(Pfn::new).all(|pfn| taken.insert(pfn)));
                    let last = pfn.plus(size.frames() as u64 - 1);
                    assert_eq!(frames.zone_of(pfn), frames.zone_of(last));
                    runs.push((pfn, size));
                }
            }
            assert_eq!(taken, usable, "all of it, and nothing else");
            frames.verify().expect("all counts fit");
            for (pfn, size) in runs {
                frames.free(A, pfn, size).expect("ours");
            }
            frames.drain_cpu_caches();
            assert_eq!(frames.free_frames(), usable.len() as u64);
        });
    }
}

#[test]
fn pitfall_43_targets_come_from_the_zone_first_and_never_from_the_block() {
    let zones = vec![vec![range(512, 512 * 5)], vec![range(512 * 5, 512 * 9)]];
    Machine::of_zones(zones).run(|frames| {
        // Zone 1 fills first: its blocks 4 to 7 get 10, 20, 30 and 40 free frames, then blocks 0 to 2 of zone 0 get 50
        // each.
        for free in [10, 20, 30, 40, 50, 50, 50] {
            prepare(frames, FrameClass::Movable, free);
        }
        assert_eq!(frames.free_blocks(), 1, "block 3 stays whole");
        let source = block(5);
        let mut out = vec![Pfn::default(); 1000];
        let count = frames.take_targets(source, Watermark::None, &mut out);
        assert_eq!(
            count,
            10 + 30 + 40 + 150,
            "all but the block's own and the whole block's"
        );
        let home = frames.zone_of_block(source);
        let zones: Vec<_> = out[..count]
            .iter()
            .map(|pfn| frames.zone_of(*pfn) == Some(home))
            .collect();
        assert_eq!(zones.iter().filter(|home| **home).count(), 80);
        assert!(zones.is_sorted_by(|a, b| a >= b), "the zone's own first");
        assert!(
            out[..count]
                .iter()
                .all(|pfn| frames.block_of(*pfn) != Some(source))
        );
        assert_eq!(
            (frames.free_blocks(), frames.ledger(source).free()),
            (1, 20)
        );
    });
}

#[test]
fn pitfall_77_nothing_unavailable_is_ever_handed_out() {
    // A hole of a block, reserved frames, an isolated block and a huge page: no request may get one of them.
    let mut machine = Machine::of_zones(vec![vec![range(1, 1000), range(1536, 512 * 8)]]);
    machine.reserved = vec![range(0, 100), range(1700, 1800)];
    for how in 0..6 {
        machine.run(|frames| {
            prepare(frames, FrameClass::Movable, 100);
            let huge = frames.alloc(A, AllocRequest::huge()).expect("whole blocks");
            let isolated = block(6);
            let token = frames.isolate_block(isolated).expect("open");
            let mut out = vec![Pfn::default(); 5000];
            let any = Watermark::None;
            let count = match how {
                0 => frames.alloc_bulk(A, AllocRequest::movable(), &mut out),
                1 => frames.alloc_bulk(A, AllocRequest::unmovable(), &mut out),
                2 => frames.alloc_balloon(A, BalloonPlacement::WholeBlocks, any, &mut out),
                3 => frames.alloc_balloon(A, BalloonPlacement::FillHoles, any, &mut out),
                4 => frames.alloc_balloon(A, BalloonPlacement::Unmovable, any, &mut out),
                _ => frames.take_targets(block(0), Watermark::None, &mut out),
            };
            assert!(count >= 100);
            for &pfn in &out[..count] {
                let number = pfn.get();
                let present = (100..1000).contains(&number)
                    || ((1536..512 * 8).contains(&number) && !(1700..1800).contains(&number));
                assert!(present, "{pfn:?} is reserved or no memory");
                assert_ne!(frames.block_of(pfn), Some(isolated));
                assert_ne!(frames.block_of(pfn), frames.block_of(huge));
                assert_eq!(frames.state(pfn), FrameState::Allocated);
            }
            frames.unisolate_block(token);
        });
    }
}
