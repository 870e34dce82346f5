//! States and marks of frames: what is checked, what is counted, what is cleared when a frame is freed.

use dirigible_frames::{
    AllocRequest, BalloonPlacement, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, FrameFlags,
    FrameState, FreeError, Migratetype, Order, OwnerId, Pfn, Watermark,
};

use crate::machine::{A, B, Machine, Random, block, order, prepare};

fn owner(number: u8) -> OwnerId {
    OwnerId::new(number).expect("not 0")
}

#[test]
fn pitfall_10_an_owner_word_of_another_kind_is_not_followed() {
    Machine::of_blocks(3).run(|frames| {
        let mut random = Random::new(10);
        let states = [
            FrameState::Allocated,
            FrameState::Entering,
            FrameState::Listed,
            FrameState::Isolated,
            FrameState::Leaving,
        ];
        let pfns = prepare(frames, FrameClass::Movable, 64);
        let mut expected = Vec::new();
        for &pfn in &pfns {
            let class = 1 + random.below(3) as u8;
            // Garbage in the word, and everything else at random.
            frames.set_owner(pfn, owner(class), random.below(usize::MAX) as u64);
            frames.set_flags(pfn, FrameFlags::from_bits(random.below(16) as u16));
            let state = states[random.below(states.len())];
            for step in path(state) {
                frames
                    .transition(pfn, frames.state(pfn), *step)
                    .expect("a legal edge");
            }
            let pinned = frames.flags(pfn).contains(FrameFlags::PINNED);
            expected.push(state == FrameState::Listed && class == 2 && !pinned);
        }
        for (pfn, expected) in pfns.iter().zip(expected) {
            let word = frames.owner_word(*pfn);
            assert_eq!(
                frames.try_isolate(*pfn, owner(2)).is_ok(),
                expected,
                "{pfn:?}"
            );
            assert_eq!(frames.owner_word(*pfn), word, "a look changes nothing");
        }
        // Free, cached, reserved and unknown frames, and the inside of huge pages, belong to nobody.
        let huge = frames
            .alloc(A, AllocRequest::huge())
            .expect("two blocks are whole");
        for pfn in [huge.plus(1), huge.plus(511), Pfn::new(0), Pfn::new(1 << 40)] {
            assert!(frames.try_isolate(pfn, owner(2)).is_err());
            assert_eq!(frames.owner(pfn), OwnerId::NONE);
        }
    });
}

/// How to come to a state from Allocated.
fn path(state: FrameState) -> &'static [FrameState] {
    use FrameState::{Entering, Isolated, Leaving, Listed};
    match state {
        Entering => &[Entering],
        Listed => &[Listed],
        Isolated => &[Listed, Isolated],
        Leaving => &[Entering, Listed, Leaving],
        _ => &[],
    }
}

#[test]
fn pitfall_18_each_way_out_of_isolation_is_counted() {
    Machine::of_blocks(2).run(|frames| {
        let open = |frames: &FrameAllocator<'_>| {
            frames.verify().expect("the count of isolated blocks fits");
            assert_eq!(frames.pagetypeinfo().isolated, 0);
            // At rest frees are cached again; a count that is too high would send them to the field.
            let pfn = frames
                .alloc(A, AllocRequest::movable())
                .expect("free memory");
            let cached = frames.cached_frames();
            frames.free(A, pfn, Order::BASE).expect("ours");
            assert_eq!(frames.cached_frames(), cached + 1);
        };
        let isolate = || frames.isolate_block(block(0)).expect("open");
        let whole = frames.free_frames();

        frames.unisolate_block(isolate());
        open(frames);
        frames.convert_block(isolate(), Migratetype::Reclaimable);
        open(frames);
        let again = isolate();
        assert!(
            frames.isolate_block(block(0)).is_err(),
            "refused: changes no count"
        );
        frames.unisolate_block(again);
        open(frames);

        frames.drain_cpu_caches();
        let huge = frames
            .capture_block(isolate(), FrameClass::Movable)
            .expect("wholly free");
        assert!(
            frames.isolate_block(block(0)).is_err(),
            "refused: changes no count"
        );
        open(frames);
        frames.free(A, huge, Order::HUGE).expect("ours");
        open(frames);

        frames.drain_cpu_caches();
        let kept = frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        let held = frames.block_of(kept).expect("inside");
        let token = frames.isolate_block(held).expect("open");
        let token = frames
            .capture_block(token, FrameClass::Movable)
            .expect_err("not wholly free");
        frames.unisolate_block(token);
        open(frames);
        frames.free(A, kept, Order::BASE).expect("ours");
        frames.drain_cpu_caches();
        assert_eq!(frames.free_frames(), whole);
    });
}

/// What is left of an earlier life would make a new holder's frame look like somebody else's.
fn assert_blank(frames: &FrameAllocator<'_>, pfn: Pfn) {
    let info = frames.frame(pfn).expect("inside");
    assert_eq!(info.state, FrameState::Allocated);
    assert_eq!(
        (info.owner, info.flags),
        (OwnerId::NONE, FrameFlags::EMPTY),
        "{pfn:?}"
    );
    assert_eq!((info.refcount, info.generation), (0, 0), "{pfn:?}");
}

/// Leaves all marks that a frame can have.
fn mark(frames: &FrameAllocator<'_>, pfn: Pfn) {
    frames.set_owner(pfn, owner(31), u64::MAX);
    frames.set_flags(pfn, FrameFlags::from_bits(u16::MAX));
    // What is pinned cannot be freed.
    assert_eq!(
        frames.free(A, pfn, frames.order(pfn)),
        Err(FreeError::Pinned(pfn))
    );
    frames.clear_flags(pfn, FrameFlags::PINNED);
    frames.set_generation(pfn, 7);
    // Nor what others refer to.
    assert!(frames.get_ref(pfn));
    assert_eq!(
        frames.free(A, pfn, frames.order(pfn)),
        Err(FreeError::Referenced(pfn))
    );
    assert!(frames.put_ref(pfn));
}

#[test]
fn pitfall_24_a_new_frame_bears_no_old_mark() {
    Machine::of_blocks(4).run(|frames| {
        for _ in 0..3 {
            let mut singles = vec![Pfn::default(); 300];
            let count = frames.alloc_bulk(A, AllocRequest::movable(), &mut singles);
            let mut balloon = vec![Pfn::default(); 100];
            let placement = BalloonPlacement::FillHoles;
            let inflated = frames.alloc_balloon(A, placement, Watermark::Min, &mut balloon);
            let mut targets = vec![Pfn::default(); 20];
            let taken = frames.take_targets(block(3), Watermark::None, &mut targets);
            assert_eq!((count, inflated, taken), (300, 100, 20));
            let runs: Vec<(Pfn, Order)> = [1, 5, 8, 9]
                .map(|size| {
                    let request = AllocRequest::new(order(size), FrameClass::Movable);
                    (frames.alloc(B, request).expect("room"), order(size))
                })
                .to_vec();
            let singles = || singles.iter().chain(&balloon).chain(&targets);
            for &pfn in singles().chain(runs.iter().map(|(pfn, _)| pfn)) {
                assert_blank(frames, pfn);
                mark(frames, pfn);
            }
            // Through the cache, in bulk, and as runs.
            let (cached, bulk): (Vec<Pfn>, Vec<Pfn>) = singles().partition(|p| p.get() % 3 == 0);
            for pfn in cached {
                frames.free(A, pfn, Order::BASE).expect("ours");
            }
            frames.free_bulk(B, &bulk).expect("ours");
            for (pfn, size) in runs {
                frames.free(B, pfn, size).expect("ours");
            }
        }
        frames.drain_cpu_caches();
        let token = frames.isolate_block(block(0)).expect("open");
        let captured = frames
            .capture_block(token, FrameClass::Movable)
            .expect("wholly free");
        assert_blank(frames, captured);
    });
}

#[test]
fn pitfall_48_a_captured_block_has_one_holder() {
    Machine::of_blocks(2).run(|frames| {
        let kept = frames
            .alloc(A, AllocRequest::movable())
            .expect("free memory");
        let held = frames.block_of(kept).expect("inside");
        let token = frames.isolate_block(held).expect("open");
        frames.free(A, kept, Order::BASE).expect("ours");
        // All other memory is requested, before and after.
        let other = frames
            .alloc(B, AllocRequest::huge())
            .expect("the other block");
        assert!(frames.alloc(B, AllocRequest::huge()).is_err());
        assert!(frames.alloc(B, AllocRequest::movable()).is_err());
        let huge = frames
            .capture_block(token, FrameClass::Movable)
            .expect("wholly free");
        assert_eq!(frames.block_of(huge), Some(held));
        assert_ne!(huge, other);
        assert!(frames.alloc(B, AllocRequest::movable()).is_err());
        assert_eq!(frames.state(huge), FrameState::Allocated);
        assert_eq!(frames.state(huge.plus(300)), FrameState::Tail);
        // The request was dropped meanwhile: an ordinary free gives the block back, once.
        frames.free(A, huge, Order::HUGE).expect("ours");
        assert!(frames.free(A, huge, Order::HUGE).is_err());
        assert_eq!(frames.free_frames(), FRAMES_PER_BLOCK as u64);
    });
}
