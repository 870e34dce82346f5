//! The state machine against a naive model: random requests of guest and host, every frame accounted for after each.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use dirigible_balloon::{
    Balloon, BalloonConfig, Begin, Books, Features, Message, Output, Queue, RequestId, Work,
};
use dirigible_frames::{FrameState, OwnerClass, Pfn};
use dirigible_mobility::{MovePair, Outcome};
use proptest::prelude::*;

const FRAMES: u64 = 600;
const BASE: u64 = 0x1234;
const CLASS: OwnerClass = OwnerClass::new(1).unwrap();
const MS: u64 = 1_000_000;

/// The books of a kernel that has no allocator of ours: a table. Two zones, the border in the middle.
struct Table {
    frames: Mutex<Vec<(FrameState, Option<OwnerClass>, u64)>>,
    managed: Mutex<[i64; 2]>,
}

fn zone(frame: Pfn) -> usize {
    usize::from(frame.get() - BASE >= FRAMES / 2)
}

impl Table {
    fn new() -> Self {
        Self {
            frames: Mutex::new(vec![(FrameState::Free, None, 0); FRAMES as usize]),
            managed: Mutex::new([0; 2]),
        }
    }

    fn with<R>(
        &self,
        frame: Pfn,
        f: impl FnOnce(&mut (FrameState, Option<OwnerClass>, u64)) -> R,
    ) -> R {
        f(&mut self.frames.lock().unwrap()[(frame.get() - BASE) as usize])
    }
}

impl Books for Table {
    fn base(&self) -> Pfn {
        Pfn::new(BASE)
    }
    fn span(&self) -> u64 {
        FRAMES
    }
    fn state(&self, frame: Pfn) -> FrameState {
        self.with(frame, |entry| entry.0)
    }
    fn transition(&self, frame: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState> {
        assert!(from.may_become(to), "{from:?} to {to:?}");
        self.with(frame, |entry| {
            if entry.0 == from {
                entry.0 = to;
                Ok(())
            } else {
                Err(entry.0)
            }
        })
    }
    fn owner(&self, frame: Pfn) -> Option<OwnerClass> {
        self.with(frame, |entry| entry.1)
    }
    fn claim(&self, frame: Pfn, class: OwnerClass, word: u64) {
        self.with(frame, |entry| (entry.1, entry.2) = (Some(class), word));
    }
    fn disown(&self, frame: Pfn) {
        self.with(frame, |entry| (entry.1, entry.2) = (None, 0));
    }
    fn word(&self, frame: Pfn) -> u64 {
        self.with(frame, |entry| entry.2)
    }
    fn set_word(&self, frame: Pfn, word: u64) {
        self.with(frame, |entry| entry.2 = word);
    }
    fn adjust_managed(&self, frame: Pfn, delta: i64) {
        self.managed.lock().unwrap()[zone(frame)] += delta;
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    SetTarget(u32),
    /// One piece of work; the source has at most so many frames.
    Work(usize),
    Isolate(usize),
    /// Moves up to so many isolated frames; with the host answering at once or not.
    Migrate(usize, bool),
    Putback(usize),
    /// The host answers one of its requests, any of them.
    Answer(usize),
    /// The host answers a request that it does not have.
    Nonsense(u8, bool),
    OutOfMemory(usize),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => prop_oneof![0..FRAMES as u32, Just(0), Just(u32::MAX)].prop_map(Op::SetTarget),
        8 => prop_oneof![Just(0), 1..300_usize].prop_map(Op::Work),
        5 => any::<usize>().prop_map(Op::Isolate),
        4 => (1..40_usize, any::<bool>()).prop_map(|(n, at_once)| Op::Migrate(n, at_once)),
        2 => any::<usize>().prop_map(Op::Putback),
        9 => any::<usize>().prop_map(Op::Answer),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(id, queue)| Op::Nonsense(id, queue)),
        1 => (1..40_usize).prop_map(Op::OutOfMemory),
        2 => (0..400 * MS).prop_map(Op::Pass),
    ]
}

struct Sent {
    queue: Queue,
    request: RequestId,
    pfns: Vec<u32>,
}

/// Guest, host and model in one.
struct World<'a> {
    table: &'a Table,
    balloon: Balloon<'a, Table>,
    message: Message,
    now: u64,
    limit: u64,
    target: u32,
    /// The model: frames by place.
    free: BTreeSet<Pfn>,
    isolated: Vec<Pfn>,
    pending: BTreeMap<Pfn, Pfn>,
    with_host: Vec<Sent>,
    /// Acknowledged by the host.
    has: BTreeSet<u32>,
    actual: Cell<u32>,
    attempts: RefCell<Vec<u64>>,
    errors: u64,
}

impl<'a> World<'a> {
    fn new(table: &'a Table, config: BalloonConfig, features: Features) -> Self {
        Self {
            table,
            balloon: Balloon::new(table, CLASS, features, config).unwrap(),
            message: Message::new(),
            now: 0,
            limit: FRAMES,
            target: 0,
            free: (0..FRAMES).map(|at| Pfn::new(BASE + at)).collect(),
            isolated: Vec::new(),
            pending: BTreeMap::new(),
            with_host: Vec::new(),
            has: BTreeSet::new(),
            actual: Cell::new(u32::MAX),
            attempts: RefCell::default(),
            errors: 0,
        }
    }

    fn take(&mut self, count: usize) -> Vec<Pfn> {
        // From both ends, so that moves cross the zones' border and lists are in no order.
        let mut out = Vec::new();
        for turn in 0..count {
            let next = if turn % 2 == 0 {
                self.free.first()
            } else {
                self.free.last()
            };
            let Some(&frame) = next else { break };
            self.free.remove(&frame);
            self.table.with(frame, |entry| entry.0 = FrameState::Owned);
            out.push(frame);
        }
        out
    }

    fn give_back(&mut self, frame: Pfn) {
        assert_eq!(
            self.table.state(frame),
            FrameState::Owned,
            "{frame} is not ours to free"
        );
        assert!(
            !self.has.contains(&(frame.get() as u32)),
            "the host has {frame}"
        );
        self.table
            .with(frame, |entry| *entry = (FrameState::Free, None, 0));
        assert!(self.free.insert(frame), "{frame} freed twice");
    }

    fn outputs(&mut self) {
        while let Some(output) = self.balloon.next_output(self.now, &mut self.message) {
            match output {
                Output::Send { queue, request } => {
                    let pfns = self.message.pfns().to_vec();
                    assert!(pfns.is_sorted() && !pfns.is_empty() && pfns.len() <= 256);
                    self.with_host.push(Sent {
                        queue,
                        request,
                        pfns,
                    });
                }
                Output::Free => {
                    for frame in self.message.frames().collect::<Vec<_>>() {
                        self.give_back(frame);
                    }
                }
                Output::Settled { from, to, outcome } => {
                    assert_eq!(outcome, Outcome::Moved);
                    assert_eq!(self.pending.remove(&from), Some(to));
                    self.give_back(from);
                }
                Output::WriteActual(actual) => self.actual.set(actual),
            }
        }
    }

    fn answer(&mut self, at: usize) {
        let sent = self.with_host.remove(at);
        for &pfn in &sent.pfns {
            let state = self.table.state(Pfn::new(pfn.into()));
            if sent.queue == Queue::Inflate {
                assert_eq!(state, FrameState::Entering);
                assert!(self.has.insert(pfn), "the host has {pfn:#x} already");
            } else {
                assert_eq!(state, FrameState::Leaving);
                assert!(self.has.remove(&pfn), "the host does not have {pfn:#x}");
            }
        }
        self.balloon.complete(sent.queue, sent.request).unwrap();
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::SetTarget(target) => self.target = target,
            Op::Pass(ns) => self.now += ns,
            Op::Work(available) => {
                self.balloon.set_target(self.target, self.limit);
                match self.balloon.plan(self.now) {
                    Work::Inflate(want) => {
                        self.attempts.borrow_mut().push(self.now);
                        let frames = self.take(want.min(available));
                        if frames.is_empty() {
                            self.balloon.inflate_failed(self.now);
                        }
                        let used = self.balloon.begin_inflate(&frames, self.now);
                        assert_eq!(used, frames.len(), "nothing changed in between");
                    }
                    Work::Deflate(want) => {
                        let preferred: Vec<_> = (0..FRAMES)
                            .step_by(3)
                            .map(|at| Pfn::new(BASE + at))
                            .collect();
                        assert!(self.balloon.begin_deflate(want, &preferred, self.now) > 0);
                    }
                    Work::Failed(fault) => panic!("{fault}"),
                    Work::Idle | Work::Waiting | Work::RetryAt(_) => {}
                }
            }
            Op::Isolate(at) => {
                let frame = Pfn::new(BASE + at as u64 % FRAMES);
                let listed = self.table.state(frame) == FrameState::Listed;
                assert_eq!(self.balloon.isolate(frame), listed);
                if listed {
                    self.isolated.push(frame);
                }
            }
            Op::Putback(at) => {
                if !self.isolated.is_empty() {
                    let at = at % self.isolated.len();
                    self.balloon.putback(self.isolated.swap_remove(at));
                }
            }
            Op::Migrate(count, at_once) => self.migrate(count, at_once),
            Op::Answer(at) => {
                if !self.with_host.is_empty() {
                    self.answer(at % self.with_host.len());
                }
            }
            Op::Nonsense(id, inflate) => {
                let queue = if inflate {
                    Queue::Inflate
                } else {
                    Queue::Deflate
                };
                let request = RequestId::new(id);
                let fits = |sent: &Sent| sent.queue == queue && sent.request == request;
                if !self.with_host.iter().any(fits) {
                    assert!(self.balloon.complete(queue, request).is_err());
                    self.errors += 1;
                }
            }
            Op::OutOfMemory(want) => {
                let listed = self.balloon.held().listed;
                let begun = self.balloon.begin_oom_deflate(want, &[], self.now);
                assert!(begun as u64 <= listed && begun <= want);
            }
        }
        self.outputs();
    }

    fn migrate(&mut self, count: usize, at_once: bool) {
        let count = count.min(self.isolated.len());
        let to = self.take(count);
        let from = self.isolated.split_off(self.isolated.len() - to.len());
        let mut pairs: Vec<_> = from
            .iter()
            .zip(&to)
            .map(|(&from, &to)| MovePair::base(from, to))
            .collect();
        match self.balloon.begin_exchange(&mut pairs) {
            Begin::Started(exchange) => {
                self.outputs();
                while at_once && self.with_host.iter().any(|sent| sent.pfns == sorted(&to)) {
                    let at = self
                        .with_host
                        .iter()
                        .position(|sent| sent.pfns == sorted(&to));
                    self.answer(at.unwrap());
                    self.outputs();
                }
                while at_once && self.with_host.iter().any(|sent| sent.pfns == sorted(&from)) {
                    let at = self
                        .with_host
                        .iter()
                        .position(|sent| sent.pfns == sorted(&from));
                    self.answer(at.unwrap());
                    self.outputs();
                }
                self.balloon.finish_exchange(exchange, &mut pairs);
                let wanted = if at_once {
                    Outcome::Moved
                } else {
                    Outcome::Pending
                };
                assert!(pairs.iter().all(|pair| pair.outcome == wanted), "{pairs:?}");
            }
            Begin::NoRoom => {
                self.balloon.refuse_all(&mut pairs);
            }
            Begin::Refused => assert!(pairs.iter().all(|pair| pair.outcome == Outcome::Refused)),
        }
        for pair in pairs {
            match pair.outcome {
                Outcome::Moved => self.give_back(pair.from),
                Outcome::Refused => {
                    self.balloon.putback(pair.from);
                    self.give_back(pair.to);
                }
                Outcome::Pending => assert_eq!(self.pending.insert(pair.from, pair.to), None),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Every frame is where the model says, and every count fits.
    fn check(&self) {
        self.balloon.verify().unwrap();
        assert_eq!(self.balloon.fault(), None);
        let mut by_state = BTreeMap::<u8, u64>::new();
        let (mut host_zone, mut entering) = ([0_i64; 2], 0);
        for at in 0..FRAMES {
            let frame = Pfn::new(BASE + at);
            let state = self.table.state(frame);
            *by_state.entry(state as u8).or_default() += 1;
            let has = self.has.contains(&(frame.get() as u32));
            let should = matches!(
                state,
                FrameState::Listed | FrameState::Isolated | FrameState::Leaving
            );
            assert_eq!(has, should, "{frame} {state:?}");
            host_zone[zone(frame)] += i64::from(has);
            assert_eq!(state == FrameState::Free, self.free.contains(&frame));
            assert_ne!(state, FrameState::Owned, "{frame} belongs to nobody");
            entering += u64::from(state == FrameState::Entering);
        }
        let of = |state: FrameState| *by_state.get(&(state as u8)).unwrap_or(&0);
        let held = self.balloon.held();
        assert_eq!(held.listed, of(FrameState::Listed));
        assert_eq!(held.isolated, of(FrameState::Isolated));
        assert_eq!(held.entering, entering);
        assert_eq!(held.leaving, of(FrameState::Leaving));
        assert_eq!(held.total() + self.free.len() as u64, FRAMES);
        if self.balloon.features().contains(Features::DEFLATE_ON_OOM) {
            assert_eq!(*self.table.managed.lock().unwrap(), [0; 2]);
        } else {
            assert_eq!(*self.table.managed.lock().unwrap(), host_zone.map(|n| -n));
        }
        let stats = self.balloon.stats();
        assert_eq!(stats.inflated - stats.deflated, self.balloon.actual());
        let under_way = self.pending.len() as u64;
        assert_eq!(self.balloon.pending_pairs(), under_way);
        let away = self.isolated.len() as u64 + under_way;
        assert_eq!(stats.isolated, stats.frames_moved + stats.returned + away);
        assert_eq!(stats.protocol_errors, self.errors);
        assert_eq!(u64::from(self.actual.get()), self.balloon.actual());
        // Never less than promised: the host's holding is at least what it reads.
        assert!(self.has.len() as u64 >= self.balloon.actual());
    }

    /// Everything that is under way ends, and the balloon comes to its target if frames allow.
    fn converge(&mut self) {
        while let Some(frame) = self.isolated.pop() {
            self.balloon.putback(frame);
        }
        for _ in 0..20 {
            while !self.with_host.is_empty() {
                self.apply(Op::Answer(0));
            }
            self.apply(Op::Pass(20_000 * MS));
            self.apply(Op::Work(300));
        }
        self.check();
        self.target = self.target.min(FRAMES as u32);
        assert_eq!(self.balloon.actual(), u64::from(self.target));
        assert_eq!(self.balloon.held().total(), u64::from(self.target));
        assert!(self.pending.is_empty());
    }
}

fn sorted(frames: &[Pfn]) -> Vec<u32> {
    let mut numbers: Vec<_> = frames.iter().map(|frame| frame.get() as u32).collect();
    numbers.sort_unstable();
    numbers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_is_accounted_for(
        ops in prop::collection::vec(op(), 1..120),
        on_oom: bool,
    ) {
        let table = Table::new();
        let config = BalloonConfig {
            // Silence is not what this test is about, nor a host that talks nonsense without end.
            request_timeout_ns: u64::MAX,
            protocol_error_limit: u32::MAX,
            ..BalloonConfig::default()
        };
        let features = if on_oom { Features::DEFLATE_ON_OOM } else { Features::empty() };
        let mut world = World::new(&table, config, features);
        world.outputs();
        for op in ops {
            world.apply(op);
            world.check();
        }
        // An attempt that found nothing is followed by none for 200 ms: at most 5 in any second. Those that found
        // something may follow at once.
        let retries = world.balloon.stats().retries as usize;
        prop_assert!(retries <= 1 + (world.now / (200 * MS)) as usize);
        world.converge();
    }

    /// Pitfall 26: any sequence of targets, with the host answering in between or not; never negative, and it arrives.
    #[test]
    fn pitfall_26_any_targets(
        targets in prop::collection::vec((any::<u32>().prop_map(|n| n % 1000), 0..4_usize), 1..30),
        order in any::<usize>(),
    ) {
        let table = Table::new();
        let config = BalloonConfig { request_timeout_ns: u64::MAX, ..BalloonConfig::default() };
        let mut world = World::new(&table, config, Features::empty());
        world.outputs();
        for (target, works) in targets {
            world.apply(Op::SetTarget(target));
            for _ in 0..works {
                world.apply(Op::Work(300));
                world.check();
                world.apply(Op::Answer(order));
                world.check();
            }
            prop_assert!(world.balloon.actual() <= FRAMES);
        }
        world.converge();
    }
}
