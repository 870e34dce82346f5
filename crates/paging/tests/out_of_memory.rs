//! The out-of-memory notifier, and the observer of stalls.

mod support;

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dirigible_frames::{
    AllocRequest, BalloonPlacement, Event, Fallback, FrameClass, Order, Pfn, Platform,
};
use dirigible_paging::{
    FaultKind, NoReclaim, OutOfMemory, OutOfMemoryNotifier, Page, PageSource, Reclaim, SlowPath,
    SlowPathConfig, SpaceId, StallObserver,
};
use support::{MockGuest, World, leak, world_with_reserve};

/// Frames that are held until they are released or reclaimed: a balloon without a host, or a page cache.
struct Held {
    w: &'static World,
    frames: Mutex<Vec<Pfn>>,
    calls: AtomicUsize,
    asked: AtomicUsize,
    /// At its first call: how many frames were reclaimed, and how often the reserve was broken.
    seen: Mutex<Option<(u64, u64)>>,
    /// Reports that it freed frames, and frees none.
    lies: bool,
}

impl Held {
    fn new(w: &'static World, frames: Vec<Pfn>) -> &'static Self {
        leak(Self::with(w, frames, false))
    }

    fn with(w: &'static World, frames: Vec<Pfn>, lies: bool) -> Self {
        Self {
            w,
            frames: Mutex::new(frames),
            calls: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            seen: Mutex::new(None),
            lies,
        }
    }

    fn give(&self, frames: usize) -> usize {
        let done = (
            self.w.event(Event::PgReclaimed),
            self.w.event(Event::ReserveBroken),
        );
        self.seen.lock().unwrap().get_or_insert(done);
        self.calls.fetch_add(1, Relaxed);
        self.asked.fetch_add(frames, Relaxed);
        if self.lies {
            return frames;
        }
        let mut held = self.frames.lock().unwrap();
        let given: Vec<Pfn> = (0..frames).map_while(|_| held.pop()).collect();
        drop(held);
        self.w
            .frames
            .free_bulk(self.w.guest.cpu(), &given)
            .expect("the frames are ours");
        given.len()
    }

    fn calls(&self) -> usize {
        self.calls.swap(0, Relaxed)
    }
}

impl OutOfMemoryNotifier for Held {
    fn release(&self, frames: usize) -> usize {
        self.give(frames)
    }
}

impl Reclaim for Held {
    fn reclaim(&self, frames: usize, _: Order) -> usize {
        self.give(frames)
    }
}

/// Allocates all movable frames but those of the reserve.
fn everything(w: &World) -> Vec<Pfn> {
    let cpu = w.guest.cpu();
    std::iter::from_fn(|| w.frames.alloc(cpu, AllocRequest::movable()).ok()).collect()
}

fn config(fallback: Fallback) -> SlowPathConfig {
    SlowPathConfig {
        fallback,
        ..SlowPathConfig::default()
    }
}

#[test]
fn the_notifier_is_asked_when_all_else_has_failed() {
    let w = leak(world_with_reserve(4, Fallback::Steal, 1));
    let mut all = everything(w);
    let balloon = Held::new(w, all.split_off(all.len() - 300));
    let cache = Held::new(w, all.split_off(all.len() - 100));
    let slow = SlowPath::new(w.mobility, cache, config(Fallback::Steal)).with_notifier(balloon);
    // The frames that can be reclaimed, and the block of the reserve.
    for _ in 0..100 + 512 {
        slow.alloc(AllocRequest::movable()).unwrap();
    }
    assert_eq!(balloon.calls(), 0);
    // Then the balloon's, one message at a time.
    for _ in 0..300 {
        slow.alloc(AllocRequest::movable()).unwrap();
    }
    assert_eq!((balloon.calls(), balloon.asked.load(Relaxed)), (2, 512));
    let (reclaimed, broken) = balloon.seen.lock().unwrap().unwrap();
    assert_eq!(reclaimed, 100);
    assert!(broken > 0, "the reserve goes first");
    assert_eq!(w.event(Event::OutOfMemory), 0);
    assert_eq!(slow.alloc(AllocRequest::movable()), Err(OutOfMemory));
    assert_eq!((balloon.calls(), w.event(Event::OutOfMemory)), (1, 1));
}

#[test]
fn nothing_is_given_up_for_a_huge_page_or_a_costly_run() {
    let w = leak(world_with_reserve(4, Fallback::Steal, 0));
    let balloon = Held::new(w, everything(w));
    let slow =
        SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Steal)).with_notifier(balloon);
    for order in [4, 8, 9, 10] {
        let order = Order::new(order).unwrap();
        let request = AllocRequest::new(order, FrameClass::Movable);
        assert_eq!(slow.alloc(request), Err(OutOfMemory));
        assert_eq!(balloon.calls(), 0, "{order:?}");
    }
    let order_3 = AllocRequest::new(Order::new(3).unwrap(), FrameClass::Movable);
    slow.alloc(order_3).unwrap();
    assert!(balloon.calls() > 0);
}

/// A kernel request cannot use frames in movable blocks. But when some are free, a block can be evacuated for it.
#[test]
fn a_kernel_request_gets_a_block_that_was_emptied_into_what_was_given_up() {
    let w = leak(world_with_reserve(8, Fallback::Evacuate, 0));
    let (space, cpu) = (w.space(), w.guest.cpu());
    // Every second frame of each block can be moved, the others can be released.
    let mut held = Vec::new();
    for page in 0.. {
        let (page, base) = (Page::new(page), FaultKind::Base);
        if w.paging.fault(space, page, base, w.source).is_err() {
            break;
        }
        held.extend(w.frames.alloc(cpu, AllocRequest::movable()));
    }
    let balloon = Held::new(w, held);
    let slow =
        SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Evacuate)).with_notifier(balloon);
    for _ in 0..600 {
        slow.alloc(AllocRequest::unmovable()).unwrap();
    }
    assert!(w.event(Event::BlockEvacuated) > 0);
    assert_eq!(
        (w.frames.hybrid_blocks(), w.event(Event::OutOfMemory)),
        (0, 0)
    );
}

#[test]
fn asking_ends_even_if_what_is_given_never_comes() {
    let w = leak(world_with_reserve(2, Fallback::Steal, 0));
    let all = everything(w);
    let liar = leak(Held::with(w, Vec::new(), true));
    let slow = SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Steal)).with_notifier(liar);
    assert_eq!(slow.alloc(AllocRequest::movable()), Err(OutOfMemory));
    assert_eq!(liar.calls(), SlowPathConfig::default().releases as usize);
    let empty = Held::new(w, Vec::new());
    let slow = SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Steal)).with_notifier(empty);
    assert_eq!(slow.alloc(AllocRequest::movable()), Err(OutOfMemory));
    assert_eq!(empty.calls(), 1);
    assert_eq!(all.len(), 1024);
}

/// Another CPU's request has emptied the balloon; its frames are free.
#[test]
fn what_another_cpu_was_given_serves_too() {
    struct Late(&'static World, Mutex<Option<Pfn>>);
    impl OutOfMemoryNotifier for Late {
        fn release(&self, _: usize) -> usize {
            if let Some(frame) = self.1.lock().unwrap().take() {
                let cpu = self.0.guest.cpu();
                self.0.frames.free(cpu, frame, Order::BASE).unwrap();
            }
            0
        }
    }
    let w = leak(world_with_reserve(2, Fallback::Steal, 0));
    let all = everything(w);
    let late = leak(Late(w, Mutex::new(all.last().copied())));
    let slow = SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Steal)).with_notifier(late);
    assert_eq!(
        slow.alloc(AllocRequest::movable()).ok(),
        all.last().copied()
    );
    assert_eq!(slow.alloc(AllocRequest::movable()), Err(OutOfMemory));
}

/// A space with pages in all memory, and the number of its pages.
fn filled(w: &World) -> (SpaceId, u64) {
    let space = w.space();
    let fault = |&page: &u64| {
        let (page, base) = (Page::new(page), FaultKind::Base);
        w.paging.fault(space, page, base, w.source).is_ok()
    };
    (space, (0..).take_while(fault).count() as u64)
}

/// Compaction holds frames while it waits for the host. A request waits for them before it fails or calls the notifier.
#[test]
fn frames_that_compaction_holds_are_waited_for() {
    let w = leak(world_with_reserve(2, Fallback::Steal, 0));
    let (space, pages) = filled(w);
    let moving = w.paging.translate(space, Page::new(0)).unwrap();
    let block = w.frames.block_of(moving).unwrap();
    let token = w.frames.isolate_block(block).unwrap();
    let balloon = Held::new(w, Vec::new());
    let slow =
        SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Steal)).with_notifier(balloon);
    let relaxed = || w.guest.relaxed.load(Relaxed);
    let before = relaxed();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            support::run_on(1);
            while w.guest.relaxed.load(Relaxed) == before {
                std::thread::yield_now();
            }
            w.unmap(space, pages - 1..pages);
            w.frames.unisolate_block(token);
        });
        assert!(slow.alloc(AllocRequest::movable()).is_ok());
    });
    assert_eq!((balloon.calls(), w.event(Event::OutOfMemory)), (0, 0));
}

#[test]
fn waiting_for_compaction_ends() {
    let w = leak(world_with_reserve(2, Fallback::Steal, 0));
    let (space, _) = filled(w);
    let stuck = w.paging.translate(space, Page::new(0)).unwrap();
    let block = w.frames.block_of(stuck).unwrap();
    let token = w.frames.isolate_block(block).unwrap();
    let slow = SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Steal));
    let relaxed = || w.guest.relaxed.load(Relaxed);
    let before = relaxed();
    // This machine's clock does not advance.
    assert_eq!(slow.alloc(AllocRequest::movable()), Err(OutOfMemory));
    assert!((1..=10_000).contains(&(relaxed() - before)));
    // Requests for huge pages and costly runs do not wait.
    let (order_4, before) = (Order::new(4).unwrap(), relaxed());
    let costly = AllocRequest::new(order_4, FrameClass::Movable);
    assert_eq!(slow.alloc(costly), Err(OutOfMemory));
    assert_eq!(relaxed(), before);
    w.frames.unisolate_block(token);
    // Requests do not wait for frames that only an owner can free: it may never do so.
    assert!(w.mobility.isolate(stuck));
    assert_eq!(slow.alloc(AllocRequest::movable()), Err(OutOfMemory));
    assert_eq!(relaxed(), before);
    w.mobility.putback_movable_frames(&[stuck]);
}

/// A balloon's own requests must not make the balloon release frames.
#[test]
fn the_balloon_does_not_ask() {
    for how in [
        BalloonPlacement::Ordinary,
        BalloonPlacement::FillHoles,
        BalloonPlacement::Unmovable,
    ] {
        let w = leak(world_with_reserve(4, Fallback::Evacuate, 0));
        let balloon = Held::new(w, everything(w));
        let slow = SlowPath::new(w.mobility, &NoReclaim, config(Fallback::Evacuate))
            .with_notifier(balloon);
        assert_eq!(slow.take_balloon(how, &mut [Pfn::default(); 8]), 0);
        assert_eq!(balloon.calls(), 0);
    }
}

#[derive(Default)]
struct Notes(Mutex<Vec<(AllocRequest, u64, bool)>>);

impl StallObserver for Notes {
    fn stalled(&self, request: AllocRequest, ns: u64, served: bool) {
        self.0.lock().unwrap().push((request, ns, served));
    }
}

#[test]
fn only_requests_that_were_not_served_at_once_are_told() {
    /// Takes time before it answers.
    struct Slow(&'static Held, &'static MockGuest);
    impl Reclaim for Slow {
        fn reclaim(&self, frames: usize, _: Order) -> usize {
            self.1.clock.fetch_add(70_000, Relaxed);
            self.0.give(frames)
        }
    }
    let w = leak(world_with_reserve(4, Fallback::Steal, 0));
    let mut all = everything(w);
    let cache = Held::new(w, all.split_off(all.len() - 32));
    let reclaim = leak(Slow(cache, w.guest));
    let notes = leak(Notes::default());
    let slow = SlowPath::new(w.mobility, reclaim, config(Fallback::Steal)).observed_by(notes);
    let told = Cell::new(0);
    let next = || {
        let notes = notes.0.lock().unwrap();
        let note = notes.get(told.get()).copied();
        told.set(notes.len());
        note
    };
    let request = AllocRequest::movable();
    slow.alloc(request).unwrap();
    let (stalled, ns, served) = next().unwrap();
    assert_eq!((stalled, served), (request, true));
    assert!((70_000..140_000).contains(&ns), "{ns}");
    // The rest of the reclaimed frames is free.
    for _ in 0..31 {
        slow.alloc(request).unwrap();
    }
    assert_eq!(next(), None);
    for request in [request, AllocRequest::huge()] {
        assert_eq!(slow.alloc(request), Err(OutOfMemory));
        let (stalled, ns, served) = next().unwrap();
        assert_eq!((stalled, served), (request, false));
        assert!(ns >= 70_000, "{ns}");
    }
}
