//! The manager with owners of its own; with a real balloon it is tested on the hosted machine.
#![allow(missing_docs)]

#[path = "machine/mod.rs"]
mod still;

use core::mem::MaybeUninit;
use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use dirigible::{
    AddError, MANAGER_BYTES, ManagerConfig, MemoryManager, ShutdownError, TooManyCpus,
    boot::{BootConfig, BootPlan, Booted, Tables},
    daemon::{Daemon, Next},
    memory_map::{MapEntry, MemoryKind},
    room::{NoRoom, Room},
};
use dirigible_frames::{
    AllocRequest, CpuId, FrameAllocator, FrameState, Order, OwnerId, Pfn, Platform,
};
use dirigible_mobility::{CompactionConfig, MovableOwner, MovePair, Outcome, RegisterError};
use dirigible_paging::{OutOfMemoryNotifier, PageSource, Reclaim, StallObserver};

const CPU: CpuId = CpuId::new(0);
const OWNER: OwnerId = match OwnerId::new(3) {
    Some(id) => id,
    None => unreachable!(),
};

#[derive(Default)]
struct Machine(AtomicU64);

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CPU
    }
    fn now(&self) -> u64 {
        self.0.fetch_add(1_000, Ordering::Relaxed)
    }
    fn relax(&self) {
        self.0.fetch_add(1_000_000, Ordering::Relaxed);
    }
}

/// Keeps frames on its books, and moves them without contents.
struct Keeper<'a> {
    frames: &'a FrameAllocator<'a>,
    book: Mutex<Vec<Pfn>>,
}

impl<'a> Keeper<'a> {
    fn new(frames: &'a FrameAllocator<'a>) -> Self {
        Self {
            frames,
            book: Mutex::default(),
        }
    }

    fn list(&self, frame: Pfn, from: FrameState) {
        self.frames.set_owner(frame, OWNER, 0);
        self.frames
            .transition(frame, from, FrameState::Listed)
            .unwrap();
        self.book.lock().unwrap().push(frame);
    }

    fn unlist(&self, frame: Pfn) {
        self.book.lock().unwrap().retain(|other| *other != frame);
    }

    /// Gives all of its frames back.
    fn free_all(&self) -> usize {
        let frames = core::mem::take(&mut *self.book.lock().unwrap());
        for &frame in &frames {
            self.frames
                .transition(frame, FrameState::Listed, FrameState::Allocated)
                .unwrap();
            self.frames.free(CPU, frame, Order::BASE).unwrap();
        }
        frames.len()
    }
}

impl MovableOwner for Keeper<'_> {
    fn isolate(&self, frame: Pfn) -> bool {
        let isolated = self.frames.try_isolate(frame, OWNER).is_ok();
        if isolated {
            self.unlist(frame);
        }
        isolated
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        for pair in pairs {
            self.list(pair.to, FrameState::Allocated);
            self.frames
                .transition(pair.from, FrameState::Isolated, FrameState::Allocated)
                .unwrap();
            pair.outcome = Outcome::Moved;
        }
    }

    fn putback(&self, frame: Pfn) {
        self.list(frame, FrameState::Isolated);
    }
}

impl Reclaim for Keeper<'_> {
    fn reclaim(&self, _: usize, _: Order) -> usize {
        self.free_all()
    }
}

/// Boots `blocks` blocks and runs `test` on their manager.
fn with_manager(
    blocks: u64,
    test: impl FnOnce(&MemoryManager<'_, Machine>, &'static FrameAllocator<'static>),
) {
    let map = [MapEntry::new(0..blocks << 21, MemoryKind::Usable)];
    let config = BootConfig {
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    let plan = BootPlan::new(&map, config).unwrap();
    let memory = vec![MaybeUninit::uninit(); plan.bytes()].leak();
    let machine: &'static Machine = Box::leak(Box::default());
    let Booted { frames, room } = plan.boot(memory, machine).unwrap();
    let mut config = ManagerConfig::for_frames(frames);
    config.compaction = CompactionConfig {
        reserve_low: 1,
        reserve_high: 2,
        ..config.compaction
    };
    test(
        &MemoryManager::new_in(room, frames, machine, config).unwrap(),
        frames,
    );
}

#[test]
fn a_registered_owner_is_compacted_by_the_daemon_and_by_requests() {
    with_manager(8, |manager, frames| {
        let keeper: &'static Keeper<'_> = Box::leak(Box::new(Keeper::new(frames)));
        manager.register(OWNER, keeper).unwrap();
        // A third of each block is in use, so none is whole.
        let all: Vec<Pfn> =
            core::iter::from_fn(|| manager.alloc(AllocRequest::movable()).ok()).collect();
        for (number, frame) in all.into_iter().enumerate() {
            if number % 3 == 0 {
                keeper.list(frame, FrameState::Allocated);
            } else {
                manager.free(frame, Order::BASE);
            }
        }
        frames.drain_cpu_caches();
        assert_eq!(frames.free_blocks(), 0);
        let mut daemon = manager.kcompactd();
        let mut now = 0;
        while frames.free_blocks() < 2 {
            let Next::At(time) = daemon.step(now) else {
                panic!("nothing is pending")
            };
            assert!(time > now);
            now = time;
            assert!(now < 10_000_000_000, "the daemon makes whole blocks");
        }
        let huge: Vec<Pfn> = (0..4)
            .map(|_| manager.alloc(AllocRequest::huge()).unwrap())
            .collect();
        manager.verify().unwrap();
        for first in huge {
            manager.free(first, Order::HUGE);
        }
        let out = keeper.book.lock().unwrap().len() as u64;
        assert_eq!(
            manager.shutdown(0),
            Err(ShutdownError::FramesOut { out, kept: 0 })
        );
        keeper.free_all();
        manager.shutdown(0).unwrap();
        assert_eq!(frames.free_frames(), frames.managed_frames());
    });
}

#[test]
fn a_shutdown_with_frames_out_says_how_many_and_loses_nothing() {
    with_manager(2, |manager, frames| {
        let kept = manager.alloc(AllocRequest::unmovable()).unwrap();
        let lent = manager.alloc(AllocRequest::movable()).unwrap();
        assert_eq!(
            manager.shutdown(1),
            Err(ShutdownError::FramesOut { out: 2, kept: 1 })
        );
        assert_eq!(frames.state(lent), FrameState::Allocated);
        manager.free(lent, Order::BASE);
        manager.shutdown(1).unwrap();
        manager.free(kept, Order::BASE);
        manager.shutdown(0).unwrap();
    });
}

#[test]
fn an_owner_number_is_given_once() {
    with_manager(2, |manager, frames| {
        let keepers: &'static [Keeper<'_>] = vec![Keeper::new(frames), Keeper::new(frames)].leak();
        manager.register(OWNER, &keepers[0]).unwrap();
        let again = manager.register(OWNER, &keepers[1]);
        assert_eq!(again, Err(AddError::Owner(RegisterError::Busy)));
        // The first one is in its place still.
        let frame = manager.alloc(AllocRequest::movable()).unwrap();
        keepers[0].list(frame, FrameState::Allocated);
        assert!(manager.mobility().isolate(frame));
        assert!(
            matches!(manager.shutdown(1), Err(ShutdownError::Owner { .. })),
            "one of its frames is isolated"
        );
        manager.mobility().putback_movable_frames(&[frame]);
        manager.shutdown(1).unwrap();
        // After the end the number is free.
        manager.register(OWNER, &keepers[1]).unwrap();
        assert_eq!(keepers[0].free_all(), 1);
        manager.shutdown(0).unwrap();
    });
}

#[test]
fn processors_beyond_the_configured_ones_are_turned_away() {
    with_manager(2, |manager, _| {
        manager.admit_cpu(CPU).unwrap();
        let cpu = CpuId::new(1);
        assert_eq!(
            manager.admit_cpu(cpu),
            Err(TooManyCpus { cpu, configured: 1 })
        );
    });
}

#[test]
fn reclaimers_and_notifiers_are_asked_in_their_order() {
    #[derive(Default)]
    struct Last(AtomicU64);
    impl OutOfMemoryNotifier for Last {
        fn release(&self, _: usize) -> usize {
            self.0.fetch_add(1, Ordering::Relaxed);
            0
        }
    }
    impl StallObserver for Last {
        fn stalled(&self, _: AllocRequest, _: u64, served: bool) {
            self.0
                .fetch_add(if served { 1 << 32 } else { 1 << 16 }, Ordering::Relaxed);
        }
    }
    with_manager(2, |manager, frames| {
        let (keeper, last): (&'static Keeper<'_>, &'static Last) = (
            Box::leak(Box::new(Keeper::new(frames))),
            Box::leak(Box::default()),
        );
        manager.register(OWNER, keeper).unwrap();
        manager.add_reclaimer(keeper).unwrap();
        manager.add_notifier(last).unwrap();
        manager.add_observer(last).unwrap();
        let mut held: Vec<Pfn> = Vec::new();
        while let Ok(frame) = frames.alloc(CPU, AllocRequest::movable()) {
            held.push(frame);
        }
        for frame in held.drain(held.len() - 40..) {
            keeper.list(frame, FrameState::Allocated);
        }
        held.push(
            manager
                .alloc(AllocRequest::movable())
                .expect("the keeper gives its frames"),
        );
        assert_eq!(
            last.0.load(Ordering::Relaxed),
            1 << 32,
            "one stall, served; nobody else was asked"
        );
        while let Ok(frame) = manager.alloc(AllocRequest::movable()) {
            held.push(frame);
        }
        let calls = last.0.load(Ordering::Relaxed);
        assert_eq!(calls & 0xffff, 1, "asked once in vain");
        assert_eq!(calls >> 16 & 0xffff, 1);
        for frame in held {
            manager.free(frame, Order::BASE);
        }
        manager.shutdown(0).unwrap();
    });
}

#[test]
fn a_room_that_is_too_small_makes_no_manager() {
    with_manager(2, |manager, frames| {
        let mut memory = vec![MaybeUninit::uninit(); MANAGER_BYTES];
        for bytes in [0, 64, MANAGER_BYTES / 2] {
            let room = Room::new(&mut memory[..bytes]);
            let made =
                MemoryManager::new_in(room, frames, manager.platform(), ManagerConfig::default());
            assert!(matches!(made.err(), Some(NoRoom { missing }) if missing > 0));
        }
        let room = Room::new(&mut memory);
        assert!(
            MemoryManager::new_in(room, frames, manager.platform(), ManagerConfig::default())
                .is_ok()
        );
    });
}

#[test]
fn an_owner_can_leave_and_come_again() {
    with_manager(2, |manager, frames| {
        let keeper: &'static Keeper<'_> = Box::leak(Box::new(Keeper::new(frames)));
        manager.register(OWNER, keeper).unwrap();
        manager.unregister(OWNER).unwrap();
        assert_eq!(manager.unregister(OWNER), Err(RegisterError::Absent));
        manager.register(OWNER, keeper).unwrap();
        // Taken out behind the manager's back: that does not hold its end up.
        manager.mobility().unregister(OWNER).unwrap();
        manager.shutdown(0).unwrap();
    });
}

#[test]
fn a_clock_that_stands_still_does_not_hold_the_end_up() {
    let map = [MapEntry::new(0..2 << 21, MemoryKind::Usable)];
    let config = BootConfig {
        tables: Tables::Apart,
        ..BootConfig::default()
    };
    let plan = BootPlan::new(&map, config).unwrap();
    let mut memory = vec![MaybeUninit::uninit(); plan.bytes()];
    let Booted { frames, room } = plan.boot(&mut memory, &still::Machine).unwrap();
    let keeper = Keeper::new(frames);
    let manager =
        MemoryManager::new_in(room, frames, &still::Machine, ManagerConfig::default()).unwrap();
    manager.register(OWNER, &keeper).unwrap();
    let frame = manager.alloc(AllocRequest::movable()).unwrap();
    keeper.list(frame, FrameState::Allocated);
    assert!(manager.mobility().isolate(frame));
    assert!(
        !manager.settle(),
        "a frame is isolated, and nobody brings it back"
    );
    manager.mobility().putback_movable_frames(&[frame]);
    assert!(manager.settle());
}
