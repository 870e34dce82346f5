//! Collapses while other processors use, unmap, split and move the same pages.

mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use dirigible_frames::{Event, FrameContents, Order, Pfn};
use dirigible_mobility::MovableOwner;
use dirigible_paging::{CollapseConfig, CollapseCursor, FaultKind, Page, SpaceId};
use support::{Rationed, World, run_on, world};

/// Ranges of 2 MiB that are used.
const REGIONS: u64 = 3;
const TIME: Duration = Duration::from_millis(1500);

/// What a page holds in its first and its last word, whoever has filled it.
fn pattern(page: Page) -> u64 {
    page.get() | 7 << 40
}

fn fill(w: &World, page: Page, frame: Pfn) {
    for index in [0, 511] {
        w.guest.write_word(frame, index, pattern(page));
    }
}

/// Numbers that look random.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
    *state >> 33
}

/// Maps pages and checks what they hold.
fn use_pages(w: &World, space: SpaceId, state: &mut u64) {
    let page = Page::new(next(state) % (REGIONS * 512));
    let mut source = Rationed::new(w.source, usize::MAX);
    source.no_huge = true;
    let filled = w.paging.fault_filled(
        space,
        page,
        FaultKind::HugeIfPossible,
        &source,
        |frame, _| fill(w, page, frame),
    );
    filled.unwrap();
    let words = w
        .paging
        .access(space, page, next(state).is_multiple_of(2), |frame| {
            [0, 511].map(|index| w.guest.read_word(frame, index))
        });
    if let Some(words) = words {
        assert_eq!(words, [pattern(page); 2], "{page}");
    }
}

/// Gives a few pages back, or splits a huge page, or moves a page.
fn meddle(w: &World, space: SpaceId, state: &mut u64) {
    let page = Page::new(next(state) % (REGIONS * 512));
    match next(state) % 8 {
        0 => {
            w.paging.unmap(space, page..page.plus(next(state) % 20));
        }
        1 => {
            let _ = w.paging.split_huge(space, page);
        }
        2 => {
            if let Some(frame) = w.paging.pin(space, page) {
                assert_eq!(w.guest.read_word(frame, 0), pattern(page));
                w.paging.unpin(frame);
            }
        }
        _ => {
            if let Some(mapping) = w.paging.lookup(space, page).filter(|found| !found.huge)
                && w.frames.order(mapping.frame) == Order::BASE
            {
                // A frame that became part of a huge page meanwhile is not listed, and is not isolated.
                if w.paging.isolate(mapping.frame) {
                    w.paging.putback(mapping.frame);
                }
            }
        }
    }
}

#[test]
fn collapses_among_users_keep_all_contents() {
    let w = world(16);
    let space = w.space();
    let done = AtomicBool::new(false);
    let collapsed = AtomicU64::new(0);
    let end = Instant::now() + TIME;
    thread::scope(|scope| {
        let mut users = Vec::new();
        for cpu in 1..4 {
            let (w, done) = (&w, &done);
            users.push(scope.spawn(move || {
                run_on(cpu);
                let mut state = u64::from(cpu);
                while !done.load(Ordering::Relaxed) {
                    if cpu == 3 {
                        meddle(w, space, &mut state);
                    } else {
                        use_pages(w, space, &mut state);
                    }
                }
            }));
        }
        run_on(0);
        let mut cursor = CollapseCursor::default();
        while Instant::now() < end && users.iter().all(|user| !user.is_finished()) {
            let found = w.paging.next_eligible(&mut cursor, &mut { 4096 });
            let Some((space, page)) = found else { continue };
            let config = CollapseConfig::default();
            let result = w
                .paging
                .collapse(space, page, config, w.source, |page, frame| {
                    fill(&w, page, frame)
                });
            collapsed.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
            w.paging.audit().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(collapsed.load(Ordering::Relaxed) > 0);
    assert_eq!(
        w.event(Event::ThpCollapse),
        collapsed.load(Ordering::Relaxed)
    );
    w.check_at_rest();
    w.paging.destroy_space(space);
    assert_eq!(w.check_at_rest().frames(), 0);
}
