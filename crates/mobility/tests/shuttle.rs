//! Interleavings of compaction with owners and with itself, tried at random:
//! `RUSTFLAGS="--cfg shuttle" cargo test -p dirigible-mobility --features shuttle --test shuttle`.
#![cfg(shuttle)]

use std::cell::Cell;
use std::collections::BTreeSet;
// Not shuttle's: what only counts over all runs is no step of the model.
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dirigible_frames::sync::{AtomicU64, Ordering};
use dirigible_frames::{
    AllocRequest, BalloonPlacement, BlockId, Config, CpuId, Fallback, FrameAllocator, FrameClass,
    FrameState, Order, OwnerId, Pfn, Placement, Platform, Watermark, Watermarks, ZoneConfig,
};
use dirigible_mobility::{
    BackgroundStep, CompactResult, CompactionConfig, ContiguousRequest, Mobility, MovableOwner,
    MovePair, Outcome, RegisterError,
};
use shuttle::scheduler::RandomScheduler;
use shuttle::sync::Mutex;
use shuttle::thread;

const RUNS: usize = 400;
const OWNER: OwnerId = OwnerId::new(1).unwrap();

shuttle::thread_local! {
    static CPU: Cell<u16> = Cell::new(0);
}

struct Machine {
    clock: AtomicU64,
}

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CpuId::new(CPU.with(Cell::get))
    }
    fn now(&self) -> u64 {
        self.clock.fetch_add(1_000, Ordering::Relaxed)
    }
    fn relax(&self) {
        thread::yield_now();
    }
}

/// An owner that dequeues by the descriptor alone, with no lock around both: what decides is the one step.
struct Owner {
    frames: &'static FrameAllocator<'static>,
    /// Where its frames are now, for the end of the test.
    book: Mutex<BTreeSet<Pfn>>,
    /// Answer `migrate` with `Pending` and leave the pairs here.
    pending: Option<Mutex<Vec<MovePair>>>,
    /// Pairs that have ended and that mobility has not taken.
    settled: Mutex<Vec<MovePair>>,
}

impl Owner {
    fn list(&self, frame: Pfn) {
        self.frames.set_owner(frame, OWNER, 0);
        self.book.lock().unwrap().insert(frame);
        self.frames
            .transition(frame, FrameState::Allocated, FrameState::Listed)
            .unwrap();
    }

    fn dequeue(&self, frame: Pfn) -> bool {
        let won = self
            .frames
            .transition(frame, FrameState::Listed, FrameState::Allocated)
            .is_ok();
        if won {
            self.book.lock().unwrap().remove(&frame);
        }
        won
    }

    /// The host answers all that is pending at the moment; mobility takes it when it likes.
    fn answer_all(&self, outcome: Outcome) {
        let taken = std::mem::take(&mut *self.pending.as_ref().unwrap().lock().unwrap());
        for pair in taken {
            if outcome == Outcome::Moved {
                self.moved(&pair);
            }
            self.settled
                .lock()
                .unwrap()
                .push(MovePair { outcome, ..pair });
        }
    }

    fn moved(&self, pair: &MovePair) {
        self.list(pair.to);
        self.book.lock().unwrap().remove(&pair.from);
        self.frames
            .transition(pair.from, FrameState::Isolated, FrameState::Allocated)
            .unwrap();
    }
}

impl MovableOwner for Owner {
    fn isolate(&self, frame: Pfn) -> bool {
        self.frames.try_isolate(frame, OWNER).is_ok()
    }

    fn migrate(&self, pairs: &mut [MovePair]) {
        for pair in pairs {
            if let Some(pending) = &self.pending {
                pair.outcome = Outcome::Pending;
                pending.lock().unwrap().push(*pair);
            } else {
                self.moved(pair);
                pair.outcome = Outcome::Moved;
            }
        }
    }

    fn putback(&self, frame: Pfn) {
        self.frames
            .transition(frame, FrameState::Isolated, FrameState::Listed)
            .unwrap();
    }

    fn take_settled(&self, out: &mut [MovePair]) -> usize {
        let mut settled = self.settled.lock().unwrap();
        let count = out.len().min(settled.len());
        for (place, pair) in out.iter_mut().zip(settled.drain(..count)) {
            *place = pair;
        }
        count
    }
}

#[derive(Clone, Copy)]
struct World {
    frames: &'static FrameAllocator<'static>,
    mobility: &'static Mobility<'static, Machine>,
    owner: &'static Owner,
}

impl World {
    /// `blocks` whole blocks with three frames each, and a bit of one above as room for them.
    fn new(blocks: u64, pending: bool) -> Self {
        Self::patient(blocks, pending, 8, 64)
    }

    /// The same with so many turns of patience for locks and for answers.
    fn patient(blocks: u64, pending: bool, lock_relaxes: u32, idle_polls: u32) -> Self {
        CPU.with(|cpu| cpu.set(0));
        let range = Pfn::new(0)..Pfn::new(blocks * 512 + 16);
        let zones = [ZoneConfig {
            name: "zone",
            ranges: std::slice::from_ref(&range),
            watermarks: Watermarks {
                min: 0,
                low: 0,
                high: 0,
            },
            reserve_blocks: 0,
        }];
        let config = Config {
            zones: &zones,
            reserved: &[],
            cpus: 3,
            placement: Placement::LowestFirst,
            fallback: Fallback::Steal,
            ..Config::default()
        };
        let bytes = FrameAllocator::metadata_bytes(&config).unwrap();
        let frames: &'static _ = Box::leak(Box::new(
            FrameAllocator::new(&config, vec![0; bytes].leak()).unwrap(),
        ));
        let machine: &'static _ = Box::leak(Box::new(Machine {
            clock: AtomicU64::new(0),
        }));
        let owner: &'static _ = Box::leak(Box::new(Owner {
            frames,
            book: Mutex::new(BTreeSet::new()),
            pending: pending.then(|| Mutex::new(Vec::new())),
            settled: Mutex::new(Vec::new()),
        }));
        let config = CompactionConfig {
            lock_relaxes,
            idle_polls,
            ..Default::default()
        };
        let mobility: &'static _ = Box::leak(Box::new(Mobility::new(frames, machine, config)));
        mobility.register(OWNER, owner).unwrap();
        let world = Self {
            frames,
            mobility,
            owner,
        };
        for _ in 0..blocks {
            let mut taken = [Pfn::new(0); 3];
            let how = BalloonPlacement::WholeBlocks;
            let got = frames.alloc_balloon(CpuId::new(0), how, Watermark::None, &mut taken);
            assert_eq!(got, 3);
            taken.into_iter().for_each(|frame| owner.list(frame));
        }
        world
    }

    fn spawn(self, cpu: u16, act: impl FnOnce(Self) + Send + 'static) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            CPU.with(|cell| cell.set(cpu));
            act(self);
        })
    }

    fn check(&self, held: usize) {
        self.frames.drain_cpu_caches();
        self.frames.verify().unwrap();
        self.mobility.verify().unwrap();
        assert_eq!(self.mobility.isolated_frames(), 0);
        let book = self.owner.book.lock().unwrap();
        assert!(
            book.iter()
                .all(|&frame| self.frames.state(frame) == FrameState::Listed)
        );
        let counts = self.frames.class_frames();
        assert_eq!(
            (counts.balloon as usize, counts.movable as usize),
            (book.len(), held)
        );
    }
}

fn explore(test: impl Fn() + Send + Sync + 'static) {
    // The workspace is built on the stack, and shuttle's are small.
    let mut config = shuttle::Config::default();
    config.stack_size = 1 << 20;
    shuttle::Runner::new(RandomScheduler::new(RUNS), config).run(test);
}

/// Evacuation and a dequeue with free want the same frame: one of them gets it, and it is neither lost nor moved twice.
#[test]
fn pitfall_23_isolate_against_dequeue_and_free() {
    explore(|| {
        let w = World::new(1, false);
        let frame = Pfn::new(1);
        let freer = w.spawn(1, move |w| {
            if w.owner.dequeue(frame) {
                w.frames.free(CpuId::new(1), frame, Order::BASE).unwrap();
            }
        });
        let result = w.mobility.evacuate(BlockId::new(0));
        freer.join().unwrap();
        if let Ok(token) = result {
            assert_eq!(w.frames.ledger(token.block()).free(), 512);
            w.frames.unisolate_block(token);
        }
        w.check(0);
        assert!((2..=3).contains(&w.owner.book.lock().unwrap().len()));
    });
}

/// An answer that comes while the core waits for it, or before `migrate` has even returned.
#[test]
fn pitfall_41_completion_against_the_wait() {
    explore(|| {
        let w = World::new(1, true);
        let device = w.spawn(1, |w| {
            for turn in 0..40 {
                let outcome = if turn % 4 == 3 {
                    Outcome::Refused
                } else {
                    Outcome::Moved
                };
                w.owner.answer_all(outcome);
                thread::yield_now();
                // A daemon, in competition with whoever waits.
                if turn % 2 == 1 {
                    w.mobility.drain_settled();
                }
            }
        });
        if let Ok(token) = w.mobility.evacuate(BlockId::new(0)) {
            assert_eq!(w.frames.ledger(token.block()).free(), 512);
            w.frames.unisolate_block(token);
        }
        device.join().unwrap();
        w.owner.answer_all(Outcome::Moved);
        w.mobility.drain_settled();
        w.check(0);
        assert_eq!(w.owner.book.lock().unwrap().len(), 3);
    });
}

/// Two requests compact at once: each gets a block of its own, or none.
#[test]
fn pitfall_48_capture_against_capture() {
    explore(|| {
        let w = World::new(2, false);
        let captured: &'static Mutex<Vec<Pfn>> = Box::leak(Box::new(Mutex::new(Vec::new())));
        let direct = move |w: World| {
            let cpu = CpuId::new(CPU.with(Cell::get));
            if let CompactResult::Captured(head) =
                w.mobility.compact_direct(cpu, FrameClass::Movable)
            {
                captured.lock().unwrap().push(head);
            }
        };
        let other = w.spawn(1, direct);
        direct(w);
        other.join().unwrap();
        let heads = std::mem::take(&mut *captured.lock().unwrap());
        assert!(!heads.is_empty());
        w.check(512 * heads.len());
        for head in heads {
            w.frames.free(CpuId::new(0), head, Order::HUGE).unwrap();
        }
        w.check(0);
    });
}

/// Two requests compact in one zone while the host answers late: nobody waits for a lock that the other holds
/// meanwhile, each gets a block of its own or none, and no answer is lost.
#[test]
fn two_evacuations_of_one_zone_wait_for_the_host_side_by_side() {
    explore(|| {
        let w = World::new(2, true);
        let device = w.spawn(2, |w| {
            for _ in 0..60 {
                w.owner.answer_all(Outcome::Moved);
                thread::yield_now();
            }
        });
        let captured: &'static Mutex<Vec<Pfn>> = Box::leak(Box::new(Mutex::new(Vec::new())));
        let direct = move |w: World| {
            let cpu = CpuId::new(CPU.with(Cell::get));
            if let CompactResult::Captured(head) =
                w.mobility.compact_direct(cpu, FrameClass::Movable)
            {
                captured.lock().unwrap().push(head);
            }
        };
        let other = w.spawn(1, direct);
        direct(w);
        other.join().unwrap();
        device.join().unwrap();
        w.owner.answer_all(Outcome::Moved);
        w.mobility.drain_settled();
        let heads = std::mem::take(&mut *captured.lock().unwrap());
        w.check(512 * heads.len());
        assert_eq!(w.owner.book.lock().unwrap().len(), 6);
    });
}

/// Two CPUs take steps of background compaction while the host answers: one step at a time, whichever CPU goes on
/// with it, and what is open in the end is given up without losing an answer.
#[test]
fn steps_of_two_cpus_go_on_with_one_piece() {
    static EMPTIED: AtomicUsize = AtomicUsize::new(0);
    static ABANDONED: AtomicUsize = AtomicUsize::new(0);
    static RUN: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        // In every other run the host does not answer.
        let answers = RUN.fetch_add(1, Relaxed).is_multiple_of(2);
        let w = World::new(2, true);
        // It begins when no block is wholly free.
        let cpu = CpuId::new(0);
        let head = w.frames.alloc(cpu, AllocRequest::huge()).unwrap();
        assert!(w.mobility.wants_background());
        let ended: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let device = w.spawn(2, move |w| {
            while answers && ended.load(Ordering::Relaxed) < 2 {
                w.owner.answer_all(Outcome::Moved);
                thread::yield_now();
            }
        });
        let steps = move |w: World| {
            let cpu = CpuId::new(CPU.with(Cell::get));
            for _ in 0..4 {
                if let BackgroundStep::Worked(result) = w.mobility.background_step(cpu, 1) {
                    EMPTIED.fetch_add(result.emptied, Relaxed);
                }
                thread::yield_now();
            }
            ended.fetch_add(1, Ordering::Relaxed);
        };
        let other = w.spawn(1, steps);
        steps(w);
        other.join().unwrap();
        device.join().unwrap();
        ABANDONED.fetch_add(w.frames.isolated_blocks() as usize, Relaxed);
        assert!(w.mobility.abandon_background_step(cpu));
        assert_eq!(w.frames.isolated_blocks(), 0);
        w.owner.answer_all(Outcome::Moved);
        w.mobility.drain_settled();
        w.check(512);
        w.frames.free(cpu, head, Order::HUGE).unwrap();
        w.check(0);
        assert_eq!(w.owner.book.lock().unwrap().len(), 6);
    });
    let (emptied, abandoned) = (EMPTIED.load(Relaxed), ABANDONED.load(Relaxed));
    assert!(
        emptied > 0 && abandoned > 0,
        "{emptied} emptied, {abandoned} abandoned"
    );
}

/// An owner is removed either before a frame of it is isolated or after that frame is back, never between.
#[test]
fn pitfall_25_unregister_against_isolate() {
    explore(|| {
        let w = World::new(1, false);
        let frame = Pfn::new(0);
        let remover = w.spawn(1, |w| match w.mobility.unregister(OWNER) {
            Ok(()) => assert_eq!(w.mobility.isolated_frames(), 0),
            Err(error) => assert_eq!(error, RegisterError::Isolated),
        });
        if w.mobility.isolate(frame) {
            assert_eq!(w.mobility.unregister(OWNER), Err(RegisterError::Isolated));
            w.mobility.putback_movable_frames(&[frame]);
        }
        remover.join().unwrap();
        w.check(0);
    });
}

/// Two who drain the same owner, and one who removes it: each pair ends once, and the owner goes when all have ended.
#[test]
fn drain_against_drain_and_unregister() {
    explore(|| {
        let w = World::new(1, true);
        let mut pairs = Vec::new();
        for from in [0, 1].map(Pfn::new) {
            assert!(w.mobility.isolate(from));
            let mut to = [Pfn::new(0)];
            let how = BalloonPlacement::Ordinary;
            let got = w
                .frames
                .alloc_balloon(CpuId::new(0), how, Watermark::None, &mut to);
            assert_eq!(got, 1);
            pairs.push(MovePair::base(from, to[0]));
        }
        assert_eq!(w.mobility.migrate_frames(&mut pairs).pending, 2);
        let ended: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
        let drainers = [1, 2].map(|cpu| {
            w.spawn(cpu, move |w| {
                w.owner.answer_all(Outcome::Moved);
                ended.fetch_add(w.mobility.drain_settled(), Relaxed);
            })
        });
        match w.mobility.unregister(OWNER) {
            Ok(()) => assert_eq!(w.mobility.isolated_frames(), 0),
            Err(error) => assert_eq!(error, RegisterError::Isolated),
        }
        drainers
            .into_iter()
            .for_each(|drainer| drainer.join().unwrap());
        // One may have looked before the other had answered.
        ended.fetch_add(w.mobility.drain_settled(), Relaxed);
        assert_eq!(ended.load(Relaxed), 2);
        w.check(0);
        assert_eq!(w.owner.book.lock().unwrap().len(), 3);
    });
}

/// A range of two blocks, a capture of one and a dequeue with free: nobody gets what another has, and what is given up
/// is open again.
#[test]
fn a_range_against_a_capture_and_a_dequeue() {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let w = World::patient(3, false, 4096, 64);
        let frame = Pfn::new(513);
        let freer = w.spawn(1, move |w| {
            if w.owner.dequeue(frame) {
                w.frames.free(CpuId::new(1), frame, Order::BASE).unwrap();
            }
        });
        let captured: &'static Mutex<Vec<Pfn>> = Box::leak(Box::new(Mutex::new(Vec::new())));
        let other = w.spawn(2, move |w| {
            if let CompactResult::Captured(head) = w
                .mobility
                .compact_direct(CpuId::new(2), FrameClass::Movable)
            {
                captured.lock().unwrap().push(head);
            }
        });
        let request = ContiguousRequest::unmovable(700);
        let range = w.mobility.alloc_contiguous(CpuId::new(0), request);
        freer.join().unwrap();
        other.join().unwrap();
        let heads = std::mem::take(&mut *captured.lock().unwrap());
        assert_eq!(w.frames.isolated_blocks(), 0);
        w.check(512 * heads.len());
        if let Ok(first) = range {
            let last = first.plus(1023);
            let apart = |head: &Pfn| last < *head || head.plus(511) < first;
            assert!(heads.iter().all(apart));
            GIVEN.fetch_add(1, Relaxed);
            for at in 0..700 {
                let frame = first.plus(at);
                assert_eq!(w.frames.state(frame), FrameState::Allocated);
                w.frames.free(CpuId::new(0), frame, Order::BASE).unwrap();
            }
            w.check(512 * heads.len());
        }
    });
    assert!(GIVEN.load(Relaxed) > 0);
}

/// Two ranges, each of all there is, while the host answers late: one of them at most, and no answer is lost.
#[test]
fn two_ranges_wait_for_the_host_side_by_side() {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let w = World::patient(2, true, 4096, 4096);
        let asked: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let device = w.spawn(2, |w| {
            while asked.load(Ordering::Relaxed) < 2 {
                w.owner.answer_all(Outcome::Moved);
                thread::yield_now();
            }
        });
        let given: &'static Mutex<Vec<Pfn>> = Box::leak(Box::new(Mutex::new(Vec::new())));
        let ask = move |w: World| {
            let cpu = CpuId::new(CPU.with(Cell::get));
            let request = ContiguousRequest::new(1024, FrameClass::Movable);
            if let Ok(first) = w.mobility.alloc_contiguous(cpu, request) {
                given.lock().unwrap().push(first);
            }
            asked.fetch_add(1, Ordering::Relaxed);
        };
        let other = w.spawn(1, ask);
        ask(w);
        other.join().unwrap();
        device.join().unwrap();
        w.owner.answer_all(Outcome::Moved);
        w.mobility.drain_settled();
        let given = std::mem::take(&mut *given.lock().unwrap());
        assert!(given.len() <= 1);
        GIVEN.fetch_add(given.len(), Relaxed);
        assert_eq!(w.frames.isolated_blocks(), 0);
        w.check(1024 * given.len());
        assert_eq!(w.owner.book.lock().unwrap().len(), 6);
    });
    assert!(GIVEN.load(Relaxed) > 0);
}
