//! Faults, unmaps, splits, and the lifetime of address spaces, in one thread.

mod support;

use dirigible_frames::{Event, FrameContents, FrameFlags, FrameState, Order, Pfn};
use dirigible_mobility::MovableOwner;
use dirigible_paging::{
    Fault, FaultError, FaultKind, Page, SpaceError, SpaceId, SplitError, Usage,
};
use support::{BASE, Rationed, WORDS, world};

#[test]
fn a_fault_maps_a_zeroed_frame_once() {
    let w = world(4);
    let space = w.space();
    assert_eq!(w.read(space, 5, 0), None);
    let fault = |kind| w.paging.fault(space, Page::new(5), kind, w.source).unwrap();
    let Fault { frame, huge, fresh } = fault(FaultKind::Base);
    assert!(fresh && !huge);
    assert_eq!(
        fault(FaultKind::HugeIfPossible),
        Fault {
            frame,
            huge: false,
            fresh: false
        }
    );
    for index in 0..WORDS {
        assert_eq!(w.read(space, 5, index), Some(0));
    }
    assert_eq!(w.paging.translate(space, Page::new(5)), Some(frame));
    assert_eq!(w.frames.state(frame), FrameState::Listed);
    assert_eq!(w.frames.owner_word(frame), u64::from(space.get()) << 36 | 5);
    assert_eq!(
        w.paging.usage(space),
        Some(Usage {
            base: 1,
            huge: 0,
            swapped: 0,
            tables: 4
        })
    );
    assert_eq!(
        (w.event(Event::PgFault), w.event(Event::ThpFaultFallback)),
        (2, 0)
    );
    w.check_at_rest();
}

#[test]
fn accesses_mark_the_entry_as_hardware_does() {
    let w = world(4);
    let space = w.space();
    w.map(space, 0);
    let marks = || {
        let mapping = w.paging.lookup(space, Page::new(0)).unwrap();
        (mapping.accessed, mapping.dirty)
    };
    assert_eq!(marks(), (true, false));
    w.read(space, 0, 0);
    assert_eq!(marks(), (true, false));
    w.write(space, 0, 3, 7);
    assert_eq!(marks(), (true, true));
    assert_eq!(w.read(space, 0, 3), Some(7));
}

#[test]
fn contents_can_come_from_the_caller() {
    let w = world(4);
    let space = w.space();
    for (page, kind) in [(3, FaultKind::Base), (700, FaultKind::HugeIfPossible)] {
        let fault = w
            .paging
            .fault_filled(space, Page::new(page), kind, w.source, |head, order| {
                assert_eq!(w.frames.state(head), FrameState::Allocated);
                for i in 0..order.frames() as u64 {
                    w.guest.write_word(head.plus(i), 0, 100 + i);
                }
            })
            .unwrap();
        assert_eq!(fault.huge, kind == FaultKind::HugeIfPossible);
    }
    assert_eq!(w.read(space, 3, 0), Some(100));
    assert_eq!(w.read(space, 512, 0), Some(100));
    assert_eq!(w.read(space, 1023, 0), Some(611));
    w.check_at_rest();
}

#[test]
fn a_huge_fault_maps_the_whole_range() {
    let w = world(4);
    let space = w.space();
    let frame = w.map_huge(space, 1000);
    assert_eq!(frame.offset_in_block(), 1000 - 512);
    for page in 512..1024 {
        assert_eq!(w.map(space, page), frame.block_base().plus(page - 512));
    }
    assert_eq!(w.paging.translate(space, Page::new(511)), None);
    assert_eq!(
        w.paging.usage(space),
        Some(Usage {
            base: 0,
            huge: 1,
            swapped: 0,
            tables: 4
        })
    );
    assert_eq!(w.event(Event::ThpFaultAlloc), 1);
    let audit = w.check_at_rest();
    assert_eq!((audit.huge, audit.frames()), (1, 512));
    assert_eq!(w.unmap(space, 512..1024), 512);
    assert_eq!(
        w.paging.usage(space),
        Some(Usage {
            base: 0,
            huge: 0,
            swapped: 0,
            tables: 1
        })
    );
    w.check_at_rest();
}

#[test]
fn no_huge_page_where_a_base_page_lies() {
    let w = world(4);
    let space = w.space();
    w.map(space, 600);
    w.map_huge(space, 601);
    assert_eq!(w.paging.usage(space).map(|usage| usage.huge), Some(0));
    // The allocator was not asked, so it refused nothing.
    assert_eq!(w.event(Event::ThpFaultFallback), 0);
    w.unmap(space, 600..602);
    w.map_huge(space, 601);
    assert_eq!(w.paging.usage(space).map(|usage| usage.huge), Some(1));
    w.check_at_rest();
}

#[test]
fn a_huge_fault_falls_back_to_a_base_page() {
    let w = world(4);
    let space = w.space();
    let mut source = Rationed::new(w.source, usize::MAX);
    source.no_huge = true;
    let kind = FaultKind::HugeIfPossible;
    let fault = w.paging.fault(space, Page::new(9), kind, &source).unwrap();
    assert!(!fault.huge && fault.fresh);
    assert_eq!(
        (
            w.event(Event::ThpFaultAlloc),
            w.event(Event::ThpFaultFallback)
        ),
        (0, 1)
    );
    w.check_at_rest();
}

#[test]
fn out_of_memory_at_any_step_loses_nothing() {
    for kind in [FaultKind::Base, FaultKind::HugeIfPossible] {
        let w = world(4);
        let space = w.space();
        let before = w.frames.free_frames() + w.frames.cached_frames();
        for rations in 0..4 {
            let source = Rationed::new(w.source, rations);
            let result = w.paging.fault(space, Page::new(77), kind, &source);
            assert_eq!(
                result,
                Err(FaultError::OutOfMemory),
                "{rations} allocations"
            );
            assert_eq!(w.frames.free_frames() + w.frames.cached_frames(), before);
            w.check_at_rest();
        }
        let source = Rationed::new(w.source, 4);
        assert!(
            w.paging
                .fault(space, Page::new(77), kind, &source)
                .unwrap()
                .fresh
        );
        w.check_at_rest();
    }
}

#[test]
fn real_exhaustion_is_an_error_and_everything_comes_back() {
    let w = world(2);
    let space = w.space();
    let mut page = 0;
    let error = loop {
        match w
            .paging
            .fault(space, Page::new(page), FaultKind::HugeIfPossible, w.source)
        {
            Ok(_) => page += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, FaultError::OutOfMemory);
    let audit = w.check_at_rest();
    assert_eq!(audit.frames() + audit.tables, 1024);
    assert_eq!(w.paging.destroy_space(space) as u64, audit.frames());
    w.check_at_rest();
    assert_eq!(w.frames.free_blocks(), 2);
}

#[test]
fn unmap_takes_ranges_of_every_shape() {
    let w = world(8);
    let space = w.space();
    // Pages with gaps in three tables, and one page in the last range.
    for page in (100..1500).step_by(3) {
        w.map(space, page);
    }
    w.map(space, Page::LIMIT.get() - 1);
    assert_eq!(w.unmap(space, 700..700), 0);
    #[allow(clippy::reversed_empty_ranges)]
    {
        assert_eq!(w.unmap(space, 700..100), 0);
    }
    assert_eq!(w.unmap(space, 0..100), 0);
    assert_eq!(w.unmap(space, 101..106), 1);
    assert_eq!(w.read(space, 103, 0), None);
    assert_eq!(w.read(space, 106, 0), Some(0));
    w.check_at_rest();
    assert_eq!(w.unmap(space, 500..1100), 200);
    w.check_at_rest();
    assert_eq!(w.unmap(space, 0..u64::MAX), 467 - 201 + 1);
    assert_eq!(
        w.paging.usage(space),
        Some(Usage {
            base: 0,
            huge: 0,
            swapped: 0,
            tables: 1
        })
    );
    w.check_at_rest();
}

#[test]
fn unmapping_a_part_splits_a_huge_page_without_memory() {
    let w = world(4);
    let space = w.space();
    let head = w.map_huge(space, 512);
    for page in 512..1024 {
        w.write(space, page, 8, page);
    }
    // No frame is free: the split uses the deposited table.
    let mut page = 10_000;
    while w
        .paging
        .fault(space, Page::new(page), FaultKind::Base, w.source)
        .is_ok()
    {
        page += 1;
    }
    assert_eq!(w.unmap(space, 600..700), 100);
    assert_eq!(w.event(Event::ThpSplit), 1);
    for page in 512..1024 {
        let expected = (!(600..700).contains(&page)).then_some(page);
        assert_eq!(w.read(space, page, 8), expected);
    }
    assert_eq!(
        w.paging.translate(space, Page::new(1023)),
        Some(head.plus(511))
    );
    assert!(
        w.paging.lookup(space, Page::new(512)).unwrap().dirty,
        "marks go to every part"
    );
    w.check_at_rest();
    assert_eq!(w.unmap(space, 0..5000), 412);
    w.check_at_rest();
}

#[test]
fn a_huge_page_splits_on_request() {
    let w = world(4);
    let space = w.space();
    let head = w.map_huge(space, 0);
    w.map(space, 512);
    assert_eq!(
        w.paging.split_huge(space, Page::new(512)),
        Err(SplitError::NotHuge)
    );
    assert_eq!(
        w.paging.split_huge(space, Page::new(9999)),
        Err(SplitError::NotHuge)
    );
    assert_eq!(w.paging.split_huge(space, Page::new(3)), Ok(()));
    assert_eq!(
        w.paging.split_huge(space, Page::new(3)),
        Err(SplitError::NotHuge)
    );
    assert_eq!(w.paging.translate(space, Page::new(3)), Some(head.plus(3)));
    assert_eq!(
        w.paging.usage(space),
        Some(Usage {
            base: 513,
            huge: 0,
            swapped: 0,
            tables: 5
        })
    );
    w.check_at_rest();
}

#[test]
fn ids_of_dead_spaces_reach_nothing() {
    let w = world(4);
    let old = w.space();
    w.map(old, 1);
    assert_eq!(w.paging.destroy_space(old), 1);
    let new = w.space();
    assert_ne!(old, new);
    w.map(new, 1);
    for stranger in [
        old,
        SpaceId::new(0),
        SpaceId::new(u32::MAX),
        SpaceId::new(0x0fff_ffff),
    ] {
        assert_eq!(w.unmap(stranger, 0..10), 0);
        assert_eq!(w.read(stranger, 1, 0), None);
        assert_eq!(w.paging.translate(stranger, Page::new(1)), None);
        assert_eq!(w.paging.usage(stranger), None);
        assert_eq!(w.paging.pin(stranger, Page::new(1)), None);
        assert_eq!(
            w.paging.split_huge(stranger, Page::new(1)),
            Err(SplitError::NotHuge)
        );
        assert_eq!(w.paging.destroy_space(stranger), 0);
        let fault = w
            .paging
            .fault(stranger, Page::new(1), FaultKind::Base, w.source);
        assert_eq!(fault, Err(FaultError::NoSuchSpace));
    }
    assert_eq!(w.read(new, 1, 0), Some(0));
    assert_eq!(w.paging.destroy_space(new), 1);
    // Reserved numbers: those of an empty slot, and of a space that is being destroyed.
    for number in [0, new.get() | 1 << 31] {
        assert_eq!(w.paging.lookup(SpaceId::new(number), Page::new(1)), None);
        assert_eq!(w.paging.usage(SpaceId::new(number)), None);
    }
    w.check_at_rest();
}

#[test]
fn page_numbers_beyond_the_tables_are_refused() {
    let w = world(4);
    let space = w.space();
    for page in [Page::LIMIT, Page::new(u64::MAX)] {
        let fault = w.paging.fault(space, page, FaultKind::Base, w.source);
        assert_eq!(fault, Err(FaultError::NoSuchPage));
        assert_eq!(w.paging.translate(space, page), None);
        assert_eq!(w.paging.access(space, page, true, |_| ()), None);
        assert_eq!(w.paging.pin(space, page), None);
        assert_eq!(w.paging.unmap(space, page..Page::new(u64::MAX)), 0);
    }
    w.check_at_rest();
}

#[test]
fn spaces_run_out_cleanly() {
    let w = world(4);
    let spaces: Vec<_> = (0..8).map(|_| w.space()).collect();
    assert_eq!(
        w.paging.create_space(w.source),
        Err(SpaceError::TooManySpaces)
    );
    w.paging.destroy_space(spaces[3]);
    let none = Rationed::new(w.source, 0);
    assert_eq!(w.paging.create_space(&none), Err(SpaceError::OutOfMemory));
    assert_eq!(w.check_at_rest().spaces, 7);
    w.space();
    assert_eq!(w.check_at_rest().spaces, 8);
}

#[test]
fn a_pinned_page_outlives_its_mapping() {
    let w = world(4);
    let space = w.space();
    for (page, order) in [(5, Order::BASE), (1024, Order::HUGE)] {
        let head = w.map_huge(space, page);
        if order == Order::BASE {
            w.paging.split_huge(space, Page::new(page)).unwrap();
        }
        assert_eq!(w.paging.pin(space, Page::new(page)), Some(head));
        assert_eq!(w.paging.pin(space, Page::new(page)), Some(head));
        assert!(w.frames.flags(head).contains(FrameFlags::PINNED));
        assert_eq!(w.paging.audit().unwrap().pinned, 1);
        w.paging.unpin(head);
        assert_eq!(
            w.unmap(space, page..page + order.frames() as u64),
            order.frames()
        );
        assert_eq!(
            w.frames.state(head),
            FrameState::Allocated,
            "still in use by the pinner"
        );
        w.paging.unpin(head);
        assert!(matches!(
            w.frames.state(head),
            FrameState::Free | FrameState::Cached
        ));
        w.check_at_rest();
    }
    // When the pin ends and the page is mapped, the frame can move again.
    let frame = w.map(space, 4000);
    w.paging.pin(space, Page::new(4000));
    assert!(!w.paging.isolate(frame));
    w.paging.unpin(frame);
    assert!(w.paging.isolate(frame));
    w.paging.putback(frame);
    w.check_at_rest();
}

#[test]
fn faults_charge_what_they_do() {
    use std::sync::atomic::Ordering::Relaxed;
    let w = world(4);
    let space = w.space();
    w.map(space, 0);
    w.map_huge(space, 512);
    w.map(space, 512);
    assert_eq!(
        (w.guest.faults.load(Relaxed), w.guest.filled.load(Relaxed)),
        (3, 513)
    );
    assert!(w.map(space, 1) >= Pfn::new(BASE));
}

/// There is no page of zeroes that all share: what was only read is as private as what was written.
#[test]
fn pitfall_73_pages_that_were_only_read_share_no_frame() {
    let w = world(4);
    let (one, other) = (w.space(), w.space());
    let read = |space, page| {
        let fault = w
            .paging
            .fault(space, Page::new(page), FaultKind::Base, w.source);
        assert_eq!(w.read(space, page, 7), Some(0));
        fault.unwrap().frame
    };
    let frames = [read(one, 3), read(one, 4), read(other, 3)];
    assert!(frames[0] != frames[1] && frames[0] != frames[2] && frames[1] != frames[2]);
    w.write(one, 3, 7, 42);
    let found = [w.read(one, 3, 7), w.read(one, 4, 7), w.read(other, 3, 7)];
    assert_eq!(found, [Some(42), Some(0), Some(0)]);
    assert_eq!(w.paging.translate(one, Page::new(3)), Some(frames[0]));
    assert_eq!(
        (w.paging.destroy_space(one), w.paging.destroy_space(other)),
        (2, 1)
    );
}
