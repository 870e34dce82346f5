//! Pages that go to swap and come back.
#![cfg(not(shuttle))]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use dirigible_frames::{AllocRequest, Event, FrameClass, FrameState, Order, Pfn};
use dirigible_mobility::{Fate, MovableOwner, Outcome};
use dirigible_paging::{FaultError, FaultKind, Page, PageSource, SpaceId};
use dirigible_reclaim::{Age, Evictable, Kept, Kind, Stamp};
use support::{Rationed, World, world, world_with_swap};

/// A world with a space that has pages 0 to `count` - 1, each with its number in word 3, and not used since.
fn old_pages(slots: usize, count: u64) -> (World, SpaceId, Vec<Pfn>) {
    let w = world_with_swap(8, slots);
    let space = w.space();
    let frames = (0..count).map(|page| w.map(space, page)).collect();
    (0..count).for_each(|page| w.write(space, page, 3, page));
    w.harvest();
    (w, space, frames)
}

#[test]
fn a_page_goes_out_and_comes_back() {
    let (w, space, frames) = old_pages(10, 3);
    assert_eq!(w.swap_out(&frames[1..2]), 1);
    let audit = w.check_at_rest();
    assert_eq!((audit.base, audit.swapped, audit.frames()), (2, 1, 2));
    let usage = w.paging.usage(space).unwrap();
    assert_eq!((usage.base, usage.swapped, usage.tables), (2, 1, 4));
    let page = Page::new(1);
    assert_eq!(w.paging.lookup(space, page), None);
    assert_eq!(w.paging.translate(space, page), None);
    assert_eq!(w.paging.pin(space, page), None);
    assert_eq!(w.read(space, 1, 3), None);
    assert_eq!(w.aged(), 2);

    let mut filled = 0;
    let fault = w
        .paging
        .fault_filled(space, page, FaultKind::HugeIfPossible, w.source, |_, _| {
            filled += 1
        })
        .unwrap();
    assert!(!fault.fresh && !fault.huge && filled == 0);
    assert_eq!(w.frames.state(fault.frame), FrameState::Listed);
    assert_eq!(w.read(space, 1, 3), Some(1));
    assert_eq!(w.event(Event::SwapFault), 1);
    assert_eq!(w.event(Event::PgFault), 4);
    let audit = w.check_at_rest();
    assert_eq!((audit.base, audit.swapped), (3, 0));
    assert_eq!(w.aged(), 3);
    assert_eq!(w.swap().space.slots().used(), 0);
}

#[test]
fn a_used_page_stays_and_is_young() {
    let (w, space, frames) = old_pages(10, 2);
    let ages = w.swap().generations;
    ages.add(frames[0], Age::New);
    ages.add(frames[1], Age::New);
    assert_eq!(ages.sizes(), [0, 2, 0, 0]);
    assert_eq!(w.read(space, 0, 3), Some(0));
    assert_eq!(w.swap_out(&frames), 1, "only the other one");
    assert_eq!(ages.sizes(), [0, 0, 0, 1]);
    assert_eq!(w.frames.state(frames[0]), FrameState::Listed);
    assert_eq!(w.read(space, 0, 3), Some(0));
    assert_eq!(w.check_at_rest().swapped, 1);
    assert_eq!(w.event(Event::SwapFull), 0);
}

/// Each look takes the accessed bit away.
#[test]
fn a_page_that_was_used_once_goes_at_the_second_look() {
    let (w, space, frames) = old_pages(10, 1);
    assert_eq!(w.read(space, 0, 3), Some(0));
    assert_eq!((w.swap_out(&frames), w.swap_out(&frames)), (0, 1));
    assert_eq!(w.check_at_rest().swapped, 1);
}

#[test]
fn compaction_is_told_of_old_pages_while_swap_has_room() {
    let (w, space, frames) = old_pages(3, 5);
    let ages = w.swap().generations;
    frames[..4]
        .iter()
        .for_each(|&frame| ages.add(frame, Age::New));
    assert_eq!(w.read(space, 1, 3), Some(1));
    let owner = w.paging.owner_id();
    let isolate = |frame: &Pfn| w.frames.try_isolate(*frame, owner).unwrap();
    frames.iter().for_each(isolate);
    let fates = || frames[..4].iter().map(|&frame| w.paging.plan(frame));
    let expected = [Fate::Write, Fate::Move, Fate::Write, Fate::Write];
    assert!(fates().eq(expected));
    assert_eq!(w.paging.plan(frames[4]), Fate::Move, "young");
    assert_eq!(w.paging.write_frames(&[frames[0], frames[2]]), 2);
    assert_eq!(w.paging.write_frames(&frames[3..4]), 1);
    [1, 4]
        .into_iter()
        .for_each(|at| w.paging.putback(frames[at]));
    assert_eq!(w.check_at_rest().swapped, 3);
    // Swap is full, and the page that was used once is old again.
    w.harvest();
    ages.add(frames[1], Age::New);
    isolate(&frames[1]);
    assert_eq!(w.paging.plan(frames[1]), Fate::Move);
    w.paging.putback(frames[1]);
    w.check_at_rest();
}

#[test]
fn what_was_unmapped_meanwhile_is_freed() {
    let (w, space, frames) = old_pages(10, 3);
    let owner = w.paging.owner_id();
    frames
        .iter()
        .for_each(|&frame| w.frames.try_isolate(frame, owner).unwrap());
    assert_eq!(w.unmap(space, 0..2), 2);
    assert_eq!(w.aged(), 1, "a frame that nothing maps has no age");
    assert_eq!(w.paging.swap_out(&frames), 1);
    assert_eq!(w.check_at_rest().swapped, 1);
    assert_eq!(w.paging.destroy_space(space), 0);
    assert_eq!(w.check_at_rest().swapped, 0);
}

#[test]
fn a_full_swap_keeps_the_rest() {
    let (w, space, frames) = old_pages(5, 8);
    assert!(w.paging.has_swap());
    assert_eq!(w.swap_out(&frames), 5);
    assert!(!w.paging.has_swap());
    assert_eq!(w.event(Event::SwapFull), 3);
    assert_eq!(w.check_at_rest().base, 3);
    for page in 0..8 {
        w.map(space, page);
        assert_eq!(w.read(space, page, 3), Some(page));
    }
    assert!(w.paging.has_swap());
    w.check_at_rest();
}

/// Slots that frames in use have left are another's: none is missing.
#[test]
fn swap_is_full_only_for_those_that_got_no_slot() {
    let (w, space, frames) = old_pages(5, 8);
    (0..3).for_each(|page| assert_eq!(w.read(space, page, 3), Some(page)));
    assert_eq!(w.swap_out(&frames), 5);
    assert_eq!(w.event(Event::SwapFull), 0);
    w.harvest();
    assert_eq!(w.swap_out(&frames[..3]), 0);
    assert_eq!(w.event(Event::SwapFull), 3);
    w.check_at_rest();
}

#[test]
fn one_shoot_down_serves_a_batch() {
    let (w, _, frames) = old_pages(100, 64);
    let before = w.guest.shoot_downs.load(Relaxed);
    assert_eq!(w.swap_out(&frames), 64);
    assert_eq!(w.guest.shoot_downs.load(Relaxed) - before, 2);
}

#[test]
fn contents_that_cannot_be_read_are_an_error() {
    let (w, space, frames) = old_pages(10, 2);
    assert_eq!(w.swap_out(&frames), 2);
    w.swap().space.broken.store(true, Relaxed);
    let fault = |page| {
        w.paging
            .fault(space, Page::new(page), FaultKind::Base, w.source)
    };
    assert_eq!(fault(0), Err(FaultError::SwapRead));
    assert_eq!(fault(0), Err(FaultError::SwapRead), "it stays so");
    assert_eq!(w.event(Event::SwapFault), 0);
    assert_eq!(w.check_at_rest().swapped, 2);
    // A page that was never in swap is not affected.
    assert!(fault(2).unwrap().fresh);
    w.swap().space.broken.store(false, Relaxed);
    assert!(!fault(0).unwrap().fresh);
    assert_eq!(w.read(space, 0, 3), Some(0));
}

#[test]
fn a_page_without_a_frame_stays_in_swap() {
    let (w, space, frames) = old_pages(10, 1);
    assert_eq!(w.swap_out(&frames), 1);
    let request = AllocRequest::movable();
    let taken: Vec<_> = std::iter::from_fn(|| w.source.alloc(request).ok()).collect();
    let fault = w
        .paging
        .fault(space, Page::new(0), FaultKind::Base, w.source);
    assert_eq!(fault, Err(FaultError::OutOfMemory));
    taken
        .into_iter()
        .for_each(|frame| w.source.free(frame, Order::BASE));
    // The source of anonymous frames is not asked: swap brings its own.
    let none = Rationed::new(w.source, 0);
    let fault = w.paging.fault(space, Page::new(0), FaultKind::Base, &none);
    assert!(!fault.unwrap().fresh);
    assert_eq!(w.read(space, 0, 3), Some(0));
    w.check_at_rest();
}

#[test]
fn an_old_huge_page_is_split_and_its_parts_go_one_by_one() {
    let w = world_with_swap(8, 600);
    let space = w.space();
    let head = w.map_huge(space, 512);
    w.write(space, 700, 3, 42);
    assert_eq!(w.aged(), 1, "the head stands for all");
    assert_eq!(w.swap_out(&[head]), 0);
    assert_eq!(w.check_at_rest().huge, 1, "it was used since");
    w.harvest();
    assert_eq!(w.swap_out(&[head]), 0);
    let audit = w.check_at_rest();
    assert_eq!((audit.huge, audit.base), (0, 512));
    assert_eq!(w.aged(), 512);
    assert_eq!(w.event(Event::ThpSplit), 1);
    w.harvest();
    let parts: Vec<_> = (0..512).map(|part| head.plus(part)).collect();
    assert_eq!(w.swap_out(&parts), 512);
    let audit = w.check_at_rest();
    assert_eq!((audit.base, audit.swapped, audit.tables), (0, 512, 4));
    // The table is in use, so the range is not empty for a huge page.
    assert_eq!(w.map_huge(space, 700), w.map(space, 700));
    assert_eq!(w.read(space, 700, 3), Some(42));
    assert_eq!(w.check_at_rest().huge, 0);
}

#[test]
fn ages_move_along() {
    let w = world_with_swap(8, 10);
    let space = w.space();
    let (base, huge) = (w.map(space, 0), w.map_huge(space, 512));
    for (frame, order) in [(base, Order::BASE), (huge, Order::HUGE)] {
        let age = w.frames.generation(frame);
        assert_ne!(age, 0);
        assert_eq!(w.move_frame(frame, order), Outcome::Moved);
        assert_eq!(w.aged(), 2);
        w.check_at_rest();
    }
    let moved = w.paging.translate(space, Page::new(0)).unwrap();
    w.harvest();
    assert_eq!(w.swap_out(&[moved]), 1);
    assert_eq!(w.aged(), 1);
    assert_eq!(w.paging.destroy_space(space), 512);
    assert_eq!(w.aged(), 0);
    w.check_at_rest();
}

#[test]
fn pitfall_69_a_space_kept_in_memory_stays_so_when_its_pages_move() {
    let w = world_with_swap(8, 10);
    let (space, other) = (w.space(), w.space());
    let frames = [w.map(space, 0), w.map_huge(space, 512), w.map(other, 0)];
    assert_eq!(w.aged(), 3);
    assert!(w.paging.keep_in_memory(space));
    assert_eq!(w.aged(), 1);
    w.map(space, 1);
    assert_eq!(w.move_frame(frames[0], Order::BASE), Outcome::Moved);
    w.paging.split_huge(space, Page::new(512)).unwrap();
    w.harvest();
    assert_eq!(w.aged(), 1);
    let moved = w.paging.translate(space, Page::new(0)).unwrap();
    assert_eq!(w.swap_out(&[moved, frames[2]]), 1, "the other's");
    assert_eq!(w.paging.usage(space).unwrap().swapped, 0);
    w.check_at_rest();
    assert_eq!(w.paging.destroy_space(space), 514);
    assert!(!w.paging.keep_in_memory(space));
    w.check_at_rest();
}

/// The exempted space's old frames have none either when a pin or an isolation held them meanwhile.
#[test]
fn pinned_and_isolated_frames_are_exempted_too() {
    let w = world_with_swap(8, 10);
    let space = w.space();
    let frames = [w.map(space, 0), w.map(space, 1)];
    assert_eq!(w.paging.pin(space, Page::new(0)), Some(frames[0]));
    w.frames
        .try_isolate(frames[1], w.paging.owner_id())
        .unwrap();
    assert!(w.paging.keep_in_memory(space));
    assert_eq!(w.aged(), 0);
    assert_eq!(w.paging.swap_out(&frames[1..]), 0);
    w.paging.unpin(frames[0]);
    w.check_at_rest();
}

#[test]
fn anonymous_frames_are_never_dropped_or_written_in_place() {
    let (w, space, frames) = old_pages(10, 1);
    w.frames
        .try_isolate(frames[0], w.paging.owner_id())
        .unwrap();
    let dropped = w.paging.drop_clean(frames[0], Stamp::default());
    assert_eq!(dropped, Err(Kept::InUse));
    assert_eq!(w.paging.begin_write(frames[0]), 0);
    assert_eq!(Evictable::kind(w.paging), Kind::Anonymous);
    assert_eq!(w.paging.dirty_and_writeback(), (0, 0));
    w.paging.put_back(frames[0]);
    assert_eq!(w.read(space, 0, 3), Some(0));
    w.check_at_rest();
}

#[test]
fn without_swap_everything_is_put_back() {
    let w = world(8);
    let space = w.space();
    let frame = w.map(space, 0);
    assert!(!w.paging.has_swap());
    Evictable::harvest(w.paging);
    assert_eq!(w.swap_out(&[frame]), 0);
    assert!(w.paging.keep_in_memory(space));
    w.check_at_rest();
}

#[test]
fn neighbours_of_pages_in_swap_are_mapped_as_ever() {
    let (w, space, frames) = old_pages(10, 4);
    assert_eq!(w.swap_out(&frames), 4);
    let usage = w.paging.usage(space).unwrap();
    assert_eq!((usage.base, usage.tables), (0, 4), "the table stays");
    for kind in [FaultKind::Base, FaultKind::HugeIfPossible] {
        let page = Page::new(100 + kind as u64);
        let fault = w.paging.fault(space, page, kind, w.source).unwrap();
        assert!(fault.fresh && !fault.huge);
        assert_eq!(w.read(space, page.get(), 3), Some(0));
    }
    // The last slot takes the table with it.
    assert_eq!(w.unmap(space, 100..102), 2);
    assert_eq!(w.unmap(space, 0..3), 0);
    assert_eq!(w.check_at_rest().tables, 4);
    assert_eq!(w.unmap(space, 0..100), 0);
    assert_eq!(w.check_at_rest().tables, 1);
    assert_eq!(w.swap().space.slots().used(), 0);
}

/// An old huge page that somebody has isolated or pinned is not split, and nothing of it changes.
#[test]
fn pitfall_70_reclaim_splits_no_pinned_huge_page() {
    let w = world_with_swap(8, 10);
    let space = w.space();
    let head = w.map_huge(space, 512);
    w.write(space, 513, 3, 7);
    w.harvest();
    assert!(w.paging.pin(space, Page::new(513)).is_some());
    // A pinned frame cannot be isolated, so reclaim cannot hand it over.
    let owner = w.paging.owner_id();
    assert!(w.frames.try_isolate(head, owner).is_err());
    w.paging.unpin(head.plus(1));
    assert!(w.paging.isolate(head));
    assert!(w.paging.split_huge(space, Page::new(512)).is_err());
    let age = w.frames.generation(head);
    w.paging.putback(head);
    assert_eq!(w.frames.generation(head), age);
    assert_eq!(w.frames.frame(head).unwrap().class, FrameClass::Movable);
    assert_eq!(w.read(space, 513, 3), Some(7));
    assert_eq!((w.check_at_rest().huge, w.aged()), (1, 1));
}

/// At every step, each slot that is used belongs to one entry.
#[test]
fn pitfall_74_no_slot_is_lost() {
    let w = world_with_swap(8, 2000);
    let space = w.space();
    let check = |swapped: u64| {
        // Compares the slots with the entries.
        let audit = w.check_at_rest();
        assert_eq!(audit.swapped, swapped);
        assert_eq!(w.swap().space.slots().used(), swapped);
    };
    let head = w.map_huge(space, 512);
    let base: Vec<_> = (1024..1124).map(|page| w.map(space, page)).collect();
    w.harvest();
    assert_eq!(w.swap_out(&[head]), 0);
    check(0);
    w.harvest();
    let mut all: Vec<_> = (0..512).map(|part| head.plus(part)).collect();
    all.extend(base);
    // Every third one is used meanwhile, and stays.
    (512..1124)
        .step_by(3)
        .for_each(|page| w.write(space, page, 0, 1));
    assert_eq!(w.swap_out(&all), 408);
    check(408);
    // Some come back, from memory and from the disk.
    w.swap().space.writes.store(false, Relaxed);
    for page in 513..600 {
        w.map(space, page);
    }
    check(350);
    w.harvest();
    let again: Vec<_> = (513..600)
        .filter_map(|page| w.paging.translate(space, Page::new(page)))
        .collect();
    assert_eq!(w.swap_out(&again), 87);
    check(437);
    w.map(space, 590);
    check(436);
    w.swap().space.write_all();
    check(436);
    // Unmapped, in part and with the whole range; the last pages go with the space.
    w.unmap(space, 520..560);
    check(396);
    w.unmap(space, 0..1024);
    check(67);
    w.paging.destroy_space(space);
    check(0);
}
