//! The state machine against a naive model: random requests of guest and host, every frame accounted for after each.

#[path = "support/model_op.rs"]
mod model_op;
#[path = "support/table.rs"]
mod table;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use dirigible_balloon::{
    Balloon, BalloonConfig, Begin, Books, Features, LARGE_PFNS, MAX_PFNS, Message, Output, Queue,
    REQUESTS, RequestId, RequestMemory, Work,
};
use dirigible_frames::{FrameState, OwnerId, Pfn};
use dirigible_mobility::{MovePair, Outcome};
use model_op::{MS, Op, op};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use table::{BASE, FRAMES, Table, zone};

const OWNER: OwnerId = OwnerId::new(1).unwrap();

struct Sent {
    queue: Queue,
    request: RequestId,
    pfns: Vec<u32>,
}

/// Guest, host and model in one.
struct World<'a, const N: usize> {
    table: &'a Table,
    balloon: Balloon<'a, Table, N, Box<RequestMemory<N>>>,
    message: Message<N>,
    now: u64,
    limit: u64,
    target: u32,
    /// The model: frames by place.
    free: BTreeSet<Pfn>,
    isolated: Vec<Pfn>,
    /// Those of them that were isolated when the device was reset.
    orphans: BTreeSet<Pfn>,
    /// Left pending, and not taken since.
    pending: BTreeMap<Pfn, Pfn>,
    with_host: Vec<Sent>,
    /// Acknowledged by the host.
    has: BTreeSet<u32>,
    actual: Cell<u32>,
    attempts: RefCell<Vec<u64>>,
    errors: u64,
    resets: usize,
    /// A message is put together from so many frames at a time.
    piece: usize,
}

impl<'a, const N: usize> World<'a, N> {
    fn new(table: &'a Table, config: BalloonConfig, features: Features) -> Self {
        let memory = Box::new([[0; N]; REQUESTS]);
        Self {
            table,
            balloon: Balloon::in_memory(table, OWNER, features, config, memory).unwrap(),
            message: Message::new(),
            now: 0,
            limit: FRAMES,
            target: 0,
            free: (0..FRAMES).map(|at| Pfn::new(BASE + at)).collect(),
            isolated: Vec::new(),
            orphans: BTreeSet::new(),
            pending: BTreeMap::new(),
            with_host: Vec::new(),
            has: BTreeSet::new(),
            actual: Cell::new(u32::MAX),
            attempts: RefCell::default(),
            errors: 0,
            resets: 0,
            piece: usize::MAX,
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
            self.table
                .with(frame, |entry| entry.0 = FrameState::Allocated);
            out.push(frame);
        }
        out
    }

    fn give_back(&mut self, frame: Pfn) {
        assert_eq!(
            self.table.state(frame),
            FrameState::Allocated,
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
                    assert!(pfns.is_sorted() && !pfns.is_empty() && pfns.len() <= N);
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
                Output::WriteActual(actual) => self.actual.set(actual),
            }
        }
    }

    /// Takes up to `most` settled pairs; gives how many there were.
    fn take_settled(&mut self, most: usize) -> usize {
        let nothing = MovePair::base(Pfn::new(0), Pfn::new(0));
        let mut out = vec![nothing; most];
        let waiting = self.balloon.settled_pairs();
        let taken = self.balloon.take_settled(&mut out);
        assert_eq!(taken as u64, waiting.min(most as u64));
        assert_eq!(self.balloon.settled_pairs(), waiting - taken as u64);
        assert!(out[taken..].iter().all(|&pair| pair == nothing));
        for MovePair {
            from, to, outcome, ..
        } in out.into_iter().take(taken)
        {
            assert_eq!(self.pending.remove(&from), Some(to));
            match outcome {
                Outcome::Moved => self.give_back(from),
                Outcome::Refused => {
                    // Only a reset ends an exchange so, and then the old frame is the guest's.
                    assert!(self.orphans.contains(&from));
                    self.put_back(from);
                    self.give_back(to);
                }
                other => panic!("{other:?}"),
            }
        }
        taken
    }

    fn put_back(&mut self, frame: Pfn) {
        let is_listed = self.balloon.putback(frame);
        assert_eq!(is_listed, !self.orphans.remove(&frame));
        if !is_listed {
            self.give_back(frame);
        }
    }

    fn reset(&mut self, put_back: bool) {
        self.balloon.device_reset();
        self.has.clear();
        self.with_host.clear();
        self.resets += 1;
        self.orphans.extend(&self.isolated);
        let table = self.table;
        let isolated = |frame: &&Pfn| table.state(**frame) == FrameState::Isolated;
        let refused: Vec<_> = self.pending.keys().filter(isolated).copied().collect();
        self.orphans.extend(&refused);
        self.outputs();
        self.balloon.verify().unwrap();
        let held = self.balloon.held();
        assert_eq!(held.total(), (self.isolated.len() + refused.len()) as u64);
        assert_eq!(
            (self.balloon.actual(), self.balloon.pending_pairs()),
            (0, 0)
        );
        assert!(matches!(self.balloon.plan(self.now), Work::Failed(_)));
        if put_back {
            while let Some(frame) = self.isolated.pop() {
                self.put_back(frame);
            }
        }
        self.balloon.restart(self.balloon.features()).unwrap();
    }

    fn sends_at_most_one_message(&mut self) {
        let before = self.with_host.len();
        self.outputs();
        assert!(self.with_host.len() <= before + 1);
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
                        for piece in frames.chunks(self.piece) {
                            let used = self.balloon.begin_inflate(piece, self.now);
                            assert_eq!(used, piece.len(), "nothing changed in between");
                        }
                        self.sends_at_most_one_message();
                    }
                    Work::Deflate(want) => {
                        let preferred: Vec<_> = (0..FRAMES)
                            .step_by(3)
                            .map(|at| Pfn::new(BASE + at))
                            .collect();
                        for done in (0..want).step_by(self.piece) {
                            let part = self.piece.min(want - done);
                            let begun = self.balloon.begin_deflate(part, &preferred, self.now);
                            assert_eq!(begun, part, "nothing changed in between");
                        }
                        self.sends_at_most_one_message();
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
                    let frame = self.isolated.swap_remove(at);
                    self.put_back(frame);
                }
            }
            Op::Take(most) => {
                self.take_settled(most);
            }
            Op::Reset(put_back) => self.reset(put_back),
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
        // Frames that the device has forgotten do not move any more.
        self.isolated
            .sort_by_key(|frame| !self.orphans.contains(frame));
        if let Some(&orphan) = self.isolated.first().filter(|&f| self.orphans.contains(f))
            && let [to] = self.take(1)[..]
        {
            let begun = self
                .balloon
                .begin_exchange(&mut [MovePair::base(orphan, to)]);
            assert!(matches!(begun, Begin::Refused | Begin::NoRoom));
            self.give_back(to);
        }
        let is_orphan = |frame: &&Pfn| self.orphans.contains(frame);
        let count = count.min(self.isolated.len() - self.isolated.iter().filter(is_orphan).count());
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
            // Nothing has changed: nobody waits here.
            Begin::NoRoom => pairs
                .iter_mut()
                .for_each(|pair| pair.outcome = Outcome::Busy),
            Begin::Refused => assert!(pairs.iter().all(|pair| pair.outcome == Outcome::Refused)),
        }
        for pair in pairs {
            match pair.outcome {
                Outcome::Moved => self.give_back(pair.from),
                Outcome::Refused | Outcome::Busy => {
                    self.put_back(pair.from);
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
            let is_out = matches!(
                state,
                FrameState::Listed | FrameState::Isolated | FrameState::Leaving
            );
            let should = is_out && !self.orphans.contains(&frame);
            assert_eq!(has, should, "{frame} {state:?}");
            host_zone[zone(frame)] += i64::from(is_out);
            assert_eq!(state == FrameState::Free, self.free.contains(&frame));
            let is_taken = state != FrameState::Allocated;
            let is_kept =
                self.pending.contains_key(&frame) || self.pending.values().any(|&to| to == frame);
            assert!(is_taken || is_kept, "{frame} belongs to nobody");
            entering += u64::from(state == FrameState::Entering);
        }
        let of = |state: FrameState| *by_state.get(&(state as u8)).unwrap_or(&0);
        let held = self.balloon.held();
        assert_eq!(held.listed, of(FrameState::Listed));
        assert_eq!(held.isolated, of(FrameState::Isolated));
        assert_eq!(held.entering, entering);
        assert_eq!(held.leaving, of(FrameState::Leaving));
        // Of a pair that nobody has taken one frame is on nobody's books: the old one if it has moved, else the new
        // one.
        let untaken = self.balloon.settled_pairs();
        assert_eq!(untaken, of(FrameState::Allocated));
        assert_eq!(held.total() + untaken + self.free.len() as u64, FRAMES);
        if self.balloon.features().contains(Features::DEFLATE_ON_OOM) {
            assert_eq!(*self.table.managed.lock().unwrap(), [0; 2]);
        } else {
            assert_eq!(*self.table.managed.lock().unwrap(), host_zone.map(|n| -n));
        }
        let stats = self.balloon.stats();
        assert_eq!(
            stats.inflated - stats.deflated - stats.forgotten,
            self.balloon.actual()
        );
        assert_eq!(
            self.balloon.pending_pairs() + untaken,
            self.pending.len() as u64
        );
        let has_left = |frame: &&Pfn| self.table.state(**frame) == FrameState::Allocated;
        let moved = self.pending.keys().filter(has_left).count();
        let away = (self.isolated.len() + self.pending.len() - moved) as u64;
        assert_eq!(stats.isolated, stats.frames_moved + stats.returned + away);
        assert_eq!(stats.protocol_errors, self.errors);
        assert_eq!(u64::from(self.actual.get()), self.balloon.actual());
        // Never less than promised: the host's holding is at least what it reads.
        assert!(self.has.len() as u64 >= self.balloon.actual());
    }

    /// Everything that is under way ends, and the balloon comes to its target if frames allow.
    fn converge(&mut self) {
        while let Some(frame) = self.isolated.pop() {
            self.put_back(frame);
        }
        for _ in 0..20 {
            self.take_settled(1000);
            while !self.with_host.is_empty() {
                self.apply(Op::Answer(0));
            }
            self.apply(Op::Pass(20_000 * MS));
            self.apply(Op::Work(300));
        }
        self.take_settled(1000);
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

fn accounted_for<const N: usize>(ops: Vec<Op>, on_oom: bool, batch: usize, piece: usize) {
    let table = Table::new();
    let config = BalloonConfig {
        batch,
        // Silence is tested elsewhere.
        request_timeout_ns: u64::MAX,
        ..BalloonConfig::default()
    };
    let features = if on_oom {
        Features::DEFLATE_ON_OOM
    } else {
        Features::empty()
    };
    let mut world = World::<N>::new(&table, config, features);
    world.piece = piece;
    world.outputs();
    for op in ops {
        world.apply(op);
        world.check();
    }
    // An attempt that found nothing is followed by none for 200 ms: at most 5 in any second. Those that found
    // something may follow at once.
    let retries = world.balloon.stats().retries as usize;
    assert!(retries <= 1 + world.resets + (world.now / (200 * MS)) as usize);
    world.converge();
}

fn any_targets<const N: usize>(targets: Vec<(u32, usize)>, order: usize, batch: usize) {
    let table = Table::new();
    let config = BalloonConfig {
        batch,
        request_timeout_ns: u64::MAX,
        ..BalloonConfig::default()
    };
    let mut world = World::<N>::new(&table, config, Features::empty());
    world.outputs();
    for (target, works) in targets {
        world.apply(Op::SetTarget(target));
        for _ in 0..works {
            world.apply(Op::Work(300));
            world.check();
            world.apply(Op::Answer(order));
            world.check();
        }
        assert!(world.balloon.actual() <= FRAMES);
    }
    world.converge();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn every_frame_is_accounted_for(
        ops in prop::collection::vec(op(), 1..120),
        on_oom: bool,
    ) {
        accounted_for::<MAX_PFNS>(ops, on_oom, MAX_PFNS, usize::MAX);
    }

    /// The same with messages that may hold all frames, or an odd number of them, put together piece by piece.
    #[test]
    fn every_frame_of_a_large_message_is_accounted_for(
        ops in prop::collection::vec(op(), 1..120),
        on_oom: bool,
        batch in prop_oneof![Just(LARGE_PFNS), 64..600_usize],
        piece in 1..300_usize,
    ) {
        accounted_for::<LARGE_PFNS>(ops, on_oom, batch, piece);
    }

    /// Pitfall 26: any sequence of targets, with the host answering in between or not; never negative, and it arrives.
    #[test]
    fn pitfall_26_any_targets(
        targets in prop::collection::vec((any::<u32>().prop_map(|n| n % 1000), 0..4_usize), 1..30),
        order in any::<usize>(),
        large: bool,
    ) {
        if large {
            any_targets::<LARGE_PFNS>(targets, order, LARGE_PFNS);
        } else {
            any_targets::<MAX_PFNS>(targets, order, MAX_PFNS);
        }
    }
}
