//! Which block serves a request, what is counted when it is the wrong one, and how free memory is reported.

use dirigible_frames::{
    AllocError, AllocRequest, BlockState, Event, FRAMES_PER_BLOCK, Fallback, FrameClass,
    Migratetype, Order, Pfn,
};

use crate::machine::{A, B, Machine, Random, block, order, prepare, range};

#[test]
fn pitfall_50_a_block_is_filed_under_its_type() {
    for fallback in [Fallback::Steal, Fallback::Evacuate] {
        let mut machine = Machine::of_blocks(4);
        machine.fallback = fallback;
        machine.run(|frames| {
            let mut random = Random::new(50);
            let mut held: Vec<(Pfn, Order)> = Vec::new();
            for _ in 0..20_000 {
                match random.below(16) {
                    0..7 => {
                        let size = [0, 0, 0, 2, 5, 7, 9][random.below(7)];
                        let class = FrameClass::from_bits(random.below(4) as u8);
                        let request = AllocRequest::new(order(size), class);
                        held.extend(frames.alloc(A, request).map(|pfn| (pfn, order(size))));
                    }
                    7..14 if !held.is_empty() => {
                        let (pfn, size) = held.swap_remove(random.below(held.len()));
                        frames.free(B, pfn, size).expect("ours");
                    }
                    14 => {
                        let any = block(random.below(4) as u32);
                        if let Ok(token) = frames.isolate_block(any) {
                            frames.convert_block(token, Migratetype::ALL[random.below(3)]);
                        }
                    }
                    _ => frames.drain_cpu_caches(),
                }
                frames
                    .verify()
                    .expect("each block is in the class that its ledger asks for");
            }
        });
    }
}

/// Blocks by what they hold and how much of them is free, and which of them serves a request.
struct Row {
    blocks: &'static [(FrameClass, usize)],
    request: AllocRequest,
    taken_from: u32,
}

#[test]
fn pitfall_51_fallback_takes_from_the_emptiest_block() {
    use FrameClass::{Movable, Reclaimable, Unmovable};
    const UNMOVABLE: AllocRequest = AllocRequest::unmovable();
    const RECLAIMABLE: AllocRequest = AllocRequest::reclaimable();
    const MOVABLE: AllocRequest = AllocRequest::movable();
    let run = |class| AllocRequest::new(Order::new(3).expect("below 10"), class);
    let table = [
        // Immovable requests disturb the movable block with most free frames, not the one that is nearly full.
        Row {
            blocks: &[(Movable, 10), (Movable, 300), (Movable, 100)],
            request: UNMOVABLE,
            taken_from: 1,
        },
        Row {
            blocks: &[(Movable, 500), (Movable, 30)],
            request: RECLAIMABLE,
            taken_from: 0,
        },
        Row {
            blocks: &[(Movable, 1), (Movable, 3), (Movable, 2)],
            request: UNMOVABLE,
            taken_from: 1,
        },
        Row {
            blocks: &[(Movable, 16), (Movable, 128)],
            request: run(Unmovable),
            taken_from: 1,
        },
        // Of equals the lowest.
        Row {
            blocks: &[(Movable, 200), (Movable, 200)],
            request: UNMOVABLE,
            taken_from: 0,
        },
        // Blocks of their own come first, then the other immovable type's, however little is free in them.
        Row {
            blocks: &[(Movable, 500), (Unmovable, 1)],
            request: UNMOVABLE,
            taken_from: 1,
        },
        Row {
            blocks: &[(Movable, 500), (Reclaimable, 1)],
            request: UNMOVABLE,
            taken_from: 1,
        },
        Row {
            blocks: &[(Movable, 500), (Unmovable, 1)],
            request: RECLAIMABLE,
            taken_from: 1,
        },
        Row {
            blocks: &[(Unmovable, 5), (Reclaimable, 90)],
            request: UNMOVABLE,
            taken_from: 0,
        },
        // A block of the right type without a run that fits does not count.
        Row {
            blocks: &[(Movable, 40), (Unmovable, 7)],
            request: run(Unmovable),
            taken_from: 0,
        },
        // Movable ones fill their own fullest block, and go to reclaimable blocks before unmovable ones.
        Row {
            blocks: &[(Movable, 400), (Movable, 9), (Movable, 60)],
            request: MOVABLE,
            taken_from: 1,
        },
        Row {
            blocks: &[(Movable, 0), (Unmovable, 90), (Reclaimable, 5)],
            request: MOVABLE,
            taken_from: 2,
        },
        Row {
            blocks: &[(Movable, 0), (Unmovable, 90)],
            request: MOVABLE,
            taken_from: 1,
        },
    ];
    for Row {
        blocks,
        request,
        taken_from,
    } in table
    {
        Machine::of_blocks(blocks.len() as u64).run(|frames| {
            for (class, free) in blocks {
                prepare(frames, *class, *free);
            }
            let pfn = frames.alloc(A, request).expect("room somewhere");
            assert_eq!(
                frames.block_of(pfn),
                Some(block(taken_from)),
                "{blocks:?} {request:?}"
            );
        });
    }
}

#[test]
fn pitfall_52_a_partial_steal_is_counted() {
    // Half free or more: the block changes sides. Less: it becomes a hybrid. In either case what it holds does not
    // move.
    for (free, converted) in [
        (1, false),
        (100, false),
        (255, false),
        (256, true),
        (511, true),
    ] {
        for request in [AllocRequest::unmovable(), AllocRequest::reclaimable()] {
            Machine::of_blocks(1).run(|frames| {
                prepare(frames, FrameClass::Movable, free);
                frames.alloc(A, request).expect("stolen");
                let ledger = frames.ledger(block(0));
                let expected = if converted {
                    request.class.migratetype()
                } else {
                    Migratetype::Movable
                };
                assert_eq!(ledger.migratetype(), expected, "{free} free");
                let count = |event| frames.events().get(event);
                assert_eq!(count(Event::BlockStolen), u64::from(converted));
                assert_eq!(count(Event::BlockPolluted), 1);
                assert!(frames.is_hybrid(block(0)));
                assert_eq!(
                    (frames.hybrid_blocks(), frames.pagetypeinfo().hybrid),
                    (1, 1)
                );
            });
        }
    }
    // Sharing among immovable types pollutes nothing.
    Machine::of_blocks(2).run(|frames| {
        prepare(frames, FrameClass::Movable, 0);
        prepare(frames, FrameClass::Reclaimable, 100);
        frames.alloc(A, AllocRequest::unmovable()).expect("shared");
        assert_eq!(frames.events().get(Event::BlockPolluted), 0);
        assert_eq!(frames.hybrid_blocks(), 0);
    });
    // Movable frames in an immovable block do.
    Machine::of_blocks(2).run(|frames| {
        prepare(frames, FrameClass::Movable, 0);
        prepare(frames, FrameClass::Unmovable, 300);
        frames.alloc(A, AllocRequest::movable()).expect("lent");
        assert_eq!(
            frames.ledger(block(1)).migratetype(),
            Migratetype::Unmovable
        );
        assert_eq!(frames.events().get(Event::BlockStolen), 0);
        assert_eq!(frames.events().get(Event::BlockPolluted), 1);
        assert_eq!(frames.hybrid_blocks(), 1);
    });
    // Reserved frames make no hybrid.
    let mut machine = Machine::of_blocks(1);
    machine.reserved = vec![range(1024, 1034)];
    machine.run(|frames| {
        frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        assert!(!frames.is_hybrid(block(0)));
    });
    // The other policy makes no hybrids: the caller evacuates.
    let mut machine = Machine::of_blocks(1);
    machine.fallback = Fallback::Evacuate;
    machine.run(|frames| {
        prepare(frames, FrameClass::Movable, 400);
        assert_eq!(
            frames.alloc(A, AllocRequest::unmovable()),
            Err(AllocError::Fragmented)
        );
        assert_eq!(frames.events().get(Event::BlockPolluted), 0);
    });
}

#[test]
fn pitfall_53_free_blocks_join_only_where_they_may() {
    let pair = AllocRequest::new(Order::MAX, FrameClass::Movable);
    // Four whole blocks are two runs of order 10, and nothing larger.
    Machine::of_blocks(4).run(|frames| {
        assert_eq!(frames.buddyinfo(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(Order::new(11), None);
        // Its halves do not join with a neighbour that is not theirs.
        let low = frames.alloc(A, AllocRequest::huge()).expect("whole");
        assert_eq!(low, Pfn::new(1024));
        assert_eq!(frames.buddyinfo(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        frames.alloc(A, pair).expect("the upper pair");
        assert_eq!(frames.alloc(A, pair), Err(AllocError::BelowWatermark));
    });
    // Blocks 1 and 2 are neighbours, and no pair.
    Machine::of_zones(vec![vec![range(512, 1536)]]).run(|frames| {
        assert_eq!(frames.buddyinfo(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(frames.alloc(A, pair), Err(AllocError::Fragmented));
    });
    // Nor do blocks of different zones.
    Machine::of_zones(vec![vec![range(1024, 1536)], vec![range(1536, 2048)]]).run(|frames| {
        assert_eq!(frames.buddyinfo(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert!(frames.alloc(A, pair).is_err());
    });
    // An isolated half joins with nothing until it is opened, whatever is freed on either side.
    Machine::of_blocks(2).run(|frames| {
        let inside = frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        let token = frames.isolate_block(block(0)).expect("open");
        frames.free(A, inside, Order::BASE).expect("ours");
        assert_eq!(frames.ledger(block(0)).free() as usize, FRAMES_PER_BLOCK);
        assert_eq!(frames.ledger(block(0)).state(), BlockState::Isolated);
        assert!(!frames.ledger(block(0)).is_whole());
        assert_eq!(frames.buddyinfo(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(frames.alloc(A, pair), Err(AllocError::BelowWatermark));
        frames.unisolate_block(token);
        assert_eq!(frames.buddyinfo(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frames.alloc(A, pair).expect("joined again");
    });
}

#[test]
fn pitfall_78_the_unusable_index_at_its_edges() {
    // No free memory, and one free frame.
    Machine::of_blocks(1).run(|frames| {
        let held = prepare(frames, FrameClass::Movable, 0);
        assert!(
            (0..=10).all(|size| frames.unusable_index(order(size)) == 0),
            "0 of 0 is 0"
        );
        frames.free_bulk(A, &held[7..8]).expect("ours");
        assert_eq!(frames.unusable_index(Order::BASE), 0);
        assert!((1..=10).all(|size| frames.unusable_index(order(size)) == 1000));
    });
    // One whole block, and a pair of them.
    Machine::of_blocks(1).run(|frames| {
        assert!((0..=9).all(|size| frames.unusable_index(order(size)) == 0));
        assert_eq!(
            frames.unusable_index(Order::MAX),
            1000,
            "one block is no pair"
        );
    });
    Machine::of_blocks(2).run(|frames| {
        assert!((0..=10).all(|size| frames.unusable_index(order(size)) == 0));
        // All of it isolated: there is no free memory to share out.
        let tokens = [0, 1].map(|number| frames.isolate_block(block(number)).expect("open"));
        assert!((0..=10).all(|size| frames.unusable_index(order(size)) == 0));
        tokens
            .into_iter()
            .for_each(|token| frames.unisolate_block(token));
    });
    // One whole block and 3 scattered frames of another: 3 of 515 are 5 thousandths, truncated.
    Machine::of_blocks(2).run(|frames| {
        let held = prepare(frames, FrameClass::Movable, 0);
        let scattered = [held[0], held[10], held[400]];
        frames.free_bulk(A, &scattered).expect("ours");
        assert_eq!(frames.unusable_index(Order::BASE), 0);
        assert!((1..=9).all(|size| frames.unusable_index(order(size)) == 5));
        assert_eq!(frames.unusable_index(Order::MAX), 1000);
    });
    // An aligned half is usable up to order 8, an odd run only by its aligned parts.
    Machine::of_blocks(1).run(|frames| {
        let held = prepare(frames, FrameClass::Movable, 256);
        assert_eq!(
            [8, 9].map(|size| frames.unusable_index(order(size))),
            [0, 1000]
        );
        // 3 and 4 frames at position 1: runs of order 0, 1 and 2 at 1, 2 and 4.
        frames.free_bulk(A, &held[1..8]).expect("ours");
        let expected = [0, 3, 11, 26];
        assert_eq!(
            [0, 1, 2, 3].map(|size| frames.unusable_index(order(size))),
            expected
        );
    });
}

/// The watermark is the same for requests of each order: what is left afterwards counts, and is not halved.
#[test]
fn pitfall_56_the_watermark_is_the_same_for_each_order() {
    for size in 0..=9 {
        let frames_wanted = 1 << size;
        for lacking in [0, 1] {
            let mut machine = Machine::of_blocks(2);
            let min = 2 * FRAMES_PER_BLOCK as u64 - frames_wanted + lacking;
            machine.marks = dirigible_frames::Watermarks {
                min,
                low: min,
                high: min,
            };
            machine.run(|frames| {
                let request = AllocRequest::new(order(size), FrameClass::Movable);
                let found = frames.alloc(A, request).map(|_| ());
                let expected = match lacking {
                    0 => Ok(()),
                    _ => Err(AllocError::BelowWatermark),
                };
                assert_eq!(found, expected, "order {size}, {lacking} too few");
            });
        }
    }
}
