//! The adapter over real rings and a real allocator against a naive model: the host answers when and in what order the
//! sequence says, and knows whose every frame is.

mod support;

use std::collections::BTreeMap;

use dirigible_balloon::{BalloonConfig, Deflate, Fault, LARGE_PFNS, MAX_PFNS, Step};
use dirigible_frames::{CpuId, Event, FrameClass, FrameState, Pfn};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::host::{Host, Manner, VERSION_1};
use support::{Guest, all_frames, memory};

#[derive(Clone, Copy, Debug)]
enum Op {
    Target(u32),
    Step(usize),
    Isolate(usize),
    Migrate(usize),
    Putback,
    /// Takes what has settled.
    Take,
    /// The host answers any of its requests; with an interrupt or without.
    Answer(usize, bool),
    Manner(bool),
    /// The host puts any number on a used ring.
    Lie(u16, u16),
    Dry(bool),
    Pass(u64),
    AskStats,
    /// The device needs a reset, and reports it.
    Break,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => prop_oneof![0..1200_u32, Just(u32::MAX)].prop_map(Op::Target),
        8 => (0..4_usize).prop_map(Op::Step),
        5 => any::<usize>().prop_map(Op::Isolate),
        4 => (1..300_usize).prop_map(Op::Migrate),
        2 => Just(Op::Putback),
        2 => Just(Op::Take),
        9 => (any::<usize>(), any::<bool>()).prop_map(|(at, tell)| Op::Answer(at, tell)),
        1 => any::<bool>().prop_map(Op::Manner),
        1 => any::<bool>().prop_map(Op::Dry),
        2 => (0..300_000_000_u64).prop_map(Op::Pass),
        1 => Just(Op::AskStats),
        1 => Just(Op::Break),
    ]
}

fn lie() -> impl Strategy<Value = Op> {
    prop_oneof![
        9 => op(),
        1 => (0..3_u16, prop_oneof![0..17_u16, any::<u16>()]).prop_map(|(q, id)| Op::Lie(q, id)),
    ]
}

struct World<const N: usize> {
    guest: Guest<N>,
    total: u64,
    managed: u64,
    isolated: Vec<Pfn>,
    /// Left pending, and not taken since.
    pending: BTreeMap<Pfn, Pfn>,
    /// The host does not keep to the protocol: its answers prove nothing.
    lies: bool,
    /// Only compaction has called since anything changed: it leaves the device's configuration alone.
    swift: bool,
}

impl<const N: usize> World<N> {
    fn new(config: BalloonConfig, lies: bool) -> Self {
        let host = Host::offering(VERSION_1 | 1 << 1);
        let guest = Guest::sized(memory(&[1, 1]), host, config);
        let (total, managed) = (guest.frames.free_frames(), guest.frames.managed_frames());
        Self {
            guest,
            total,
            managed,
            isolated: Vec::new(),
            pending: BTreeMap::new(),
            lies,
            swift: false,
        }
    }

    fn apply(&mut self, op: Op) {
        let guest = &self.guest;
        self.swift = match op {
            Op::Migrate(_) => true,
            Op::Step(_) | Op::Answer(_, true) | Op::Lie(..) | Op::Break => false,
            _ => self.swift,
        };
        match op {
            Op::Target(target) => guest.host.set_target(target),
            Op::Step(messages) => {
                let step = guest.balloon.step(&guest.source, messages);
                assert!(self.lies || !matches!(step, Step::Failed(_)), "{step:?}");
                // Those it had are the guest's again.
                let forgotten = guest.host.inner().forgotten;
                assert!(self.lies || guest.balloon.stats().forgotten <= forgotten);
            }
            Op::Isolate(at) => {
                let listed = guest.listed();
                // A run of them, as an evacuation does.
                for &frame in listed.iter().skip(at % listed.len().max(1)).take(at % 97) {
                    let isolated = guest.balloon.isolate(frame);
                    let is_broken = guest.balloon.fault() == Some(Fault::NeedsReset);
                    assert!(isolated || is_broken || self.lies);
                    self.isolated.extend(isolated.then_some(frame));
                }
            }
            Op::Putback => {
                self.isolated
                    .drain(..)
                    .for_each(|frame| guest.balloon.putback(frame));
            }
            Op::Take => self.take_settled(),
            Op::Migrate(count) => self.migrate(count),
            Op::Answer(at, tell) => {
                let mut inner = guest.host.inner();
                if !inner.waiting.is_empty() {
                    let at = at % inner.waiting.len();
                    inner.answer(at);
                }
                drop(inner);
                if tell {
                    guest.balloon.handle_interrupt();
                }
            }
            Op::Manner(at_once) => {
                guest.host.set_manner(if at_once {
                    Manner::AtOnce
                } else {
                    Manner::OnDemand
                });
            }
            Op::Lie(queue, id) => {
                guest.host.inner().use_again(queue, id);
                guest.balloon.handle_interrupt();
            }
            Op::Dry(dry) => guest.source.set_dry(dry),
            Op::Pass(ns) => guest.clock.pass(ns),
            Op::Break => {
                guest.host.need_reset();
                guest.host.set_manner(Manner::OnDemand);
                guest.balloon.handle_interrupt();
            }
            Op::AskStats => {
                let mut inner = guest.host.inner();
                if !inner.stats_out.is_empty() {
                    inner.ask_stats();
                }
            }
        }
    }

    fn migrate(&mut self, count: usize) {
        let guest = &self.guest;
        let mut to = vec![Pfn::default(); count.min(self.isolated.len())];
        let got = guest.frames.alloc_balloon(
            CpuId::new(0),
            dirigible_frames::BalloonPlacement::Ordinary,
            dirigible_frames::Watermark::None,
            &mut to,
        );
        let from = self.isolated.split_off(self.isolated.len() - got);
        let mut pairs: Vec<_> = from
            .iter()
            .zip(&to)
            .map(|(&from, &to)| MovePair::base(from, to))
            .collect();
        guest.balloon.migrate(&mut pairs);
        for pair in pairs {
            match pair.outcome {
                Outcome::Moved => guest.free(&[pair.from]),
                Outcome::Refused | Outcome::Busy => {
                    guest.balloon.putback(pair.from);
                    guest.free(&[pair.to]);
                }
                Outcome::Pending => {
                    assert_eq!(self.pending.insert(pair.from, pair.to), None);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn take_settled(&mut self) {
        for (from, to, outcome) in self.guest.settled() {
            assert_eq!(self.pending.remove(&from), Some(to));
            match outcome {
                Outcome::Moved => self.guest.free(&[from]),
                // An exchange that was still to be sent when the device was given up, or cut off by a reset.
                Outcome::Refused => {
                    self.guest.balloon.putback(from);
                    self.guest.free(&[to]);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn check(&self) {
        let guest = &self.guest;
        guest.balloon.verify().unwrap();
        if !self.lies {
            guest.host.check();
        }
        let held = guest.balloon.held();
        let mut found = [0; 4];
        for frame in all_frames(guest.frames) {
            let info = guest.frames.frame(frame).unwrap();
            let host_has = guest.host.inner().has.contains(&(frame.get() as u32));
            let (host_has, has_not) = (host_has && !self.lies, !host_has && !self.lies);
            match info.state {
                FrameState::Listed => found[0] += 1,
                FrameState::Isolated => found[1] += 1,
                FrameState::Entering => found[2] += 1,
                FrameState::Leaving => found[3] += 1,
                other => {
                    assert!(!host_has, "the host has {frame}, which is {other:?}");
                    continue;
                }
            }
            // While the device has a fault, listed frames count as unmovable.
            let class = match info.state {
                FrameState::Listed if guest.balloon.fault().is_some() => FrameClass::Unmovable,
                _ => FrameClass::Balloon,
            };
            assert_eq!(info.class, class);
            // An answer that nobody has looked at may be ahead of the state, never behind it.
            // The host has forgotten those that were isolated at a reset.
            let forgotten = guest.balloon.stats().forgotten > 0;
            if info.state == FrameState::Listed || info.state == FrameState::Isolated && !forgotten
            {
                assert!(!has_not, "{frame} {:?}", info.state);
            }
        }
        assert_eq!(
            found,
            [held.listed, held.isolated, held.entering, held.leaving]
        );
        assert_eq!(
            held.isolated,
            self.isolated.len() as u64 + self.pending_isolated()
        );
        let free = guest.frames.free_frames() + guest.frames.cached_frames();
        // Of a pair that nobody has taken one frame is on nobody's books: the old one if it has moved, else the new
        // one.
        let untaken = guest.balloon.settled_pairs();
        assert_eq!(free + held.total() + untaken, self.total);
        let under_way = guest.balloon.pending_pairs() + untaken;
        assert_eq!(under_way, self.pending.len() as u64);
        let host_side = held.listed + held.isolated + held.leaving;
        assert_eq!(guest.frames.managed_frames() + host_side, self.managed);
        let stats = guest.balloon.stats();
        assert_eq!(
            stats.inflated - stats.deflated - stats.forgotten,
            guest.balloon.actual()
        );
        let events = guest.frames.events();
        assert_eq!(events.get(Event::BalloonInflate), stats.inflated);
        assert_eq!(events.get(Event::BalloonDeflate), stats.deflated);
        assert_eq!(events.get(Event::BalloonMigrate), stats.frames_moved);
        assert_eq!(events.get(Event::BalloonMessages), guest.host.messages());
        // While the host has requests the size is not written.
        let is_there = guest.balloon.fault() != Some(Fault::Removed);
        if held.entering + held.leaving == 0 && is_there && !self.swift {
            assert_eq!(guest.host.actual(), guest.balloon.actual());
        }
    }

    /// Pending pairs whose old frame has not begun to leave.
    fn pending_isolated(&self) -> u64 {
        let isolated = |frame: &&Pfn| self.guest.frames.state(**frame) == FrameState::Isolated;
        self.pending.keys().filter(isolated).count() as u64
    }

    fn empty(&mut self) {
        self.apply(Op::Putback);
        self.apply(Op::Manner(true));
        self.apply(Op::Target(0));
        while !self.guest.host.inner().waiting.is_empty() {
            self.apply(Op::Answer(0, true));
        }
        while self.guest.balloon.step(&self.guest.source, 4) != Step::Idle {
            // A restart keeps its distance from the one before.
            self.apply(Op::Pass(200_000_000));
            self.apply(Op::Manner(true));
            // Frames of refused pairs come back this way.
            self.take_settled();
        }
        self.take_settled();
        assert!(self.pending.is_empty());
        self.check();
        assert_eq!(self.guest.host.size(), 0);
        self.guest.frames.verify().unwrap();
        assert_eq!(self.guest.balloon.shutdown(), Ok(()));
        let restarts = self.guest.balloon.stats().restarts;
        assert_eq!(self.guest.host.inner().resets, 2 + 2 * restarts);
    }
}

/// Requests of at most `N` numbers, of which `batch` are used.
fn any_order<const N: usize>(ops: Vec<Op>, heal: bool, batch: usize, exchange_batch: usize) {
    let deflate = if heal {
        Deflate::Heal
    } else {
        Deflate::NewestFirst
    };
    let config = BalloonConfig {
        deflate,
        batch,
        exchange_batch,
        request_timeout_ns: u64::MAX,
        restart_limit: u32::MAX,
        ..BalloonConfig::default()
    };
    let mut world = World::<N>::new(config, false);
    for op in ops {
        world.apply(op);
        world.check();
        world.guest.frames.verify().unwrap();
    }
    world.empty();
}

/// A host that lies loses its balloon, not the guest its memory: no panic, no frame lost from the books or freed
/// without an answer.
fn any_lie<const N: usize>(ops: Vec<Op>) {
    let config = BalloonConfig {
        batch: N,
        exchange_batch: N,
        request_timeout_ns: u64::MAX,
        ..BalloonConfig::default()
    };
    let mut world = World::<N>::new(config, true);
    for op in ops {
        world.apply(op);
        world.check();
        world.guest.frames.verify().unwrap();
    }
    let before = world.guest.balloon.held();
    let held = world.guest.balloon.reset();
    assert_eq!(held.total(), before.total());
    world.apply(Op::Putback);
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn nothing_is_lost_whatever_the_order(
        ops in prop::collection::vec(op(), 1..80),
        heal: bool,
        exchange_batch in prop_oneof![Just(256_usize), Just(1), 2..40_usize],
    ) {
        any_order::<MAX_PFNS>(ops, heal, MAX_PFNS, exchange_batch);
    }

    #[test]
    fn nothing_is_lost_whatever_the_order_of_large_messages(
        ops in prop::collection::vec(op(), 1..80),
        heal: bool,
        batch in prop_oneof![Just(LARGE_PFNS), 1..1100_usize],
        exchange_batch in prop_oneof![Just(LARGE_PFNS), 1..300_usize],
    ) {
        any_order::<LARGE_PFNS>(ops, heal, batch, exchange_batch);
    }

    #[test]
    fn nothing_is_lost_whatever_the_host_says(
        ops in prop::collection::vec(lie(), 1..80),
        large: bool,
    ) {
        if large {
            any_lie::<LARGE_PFNS>(ops);
        } else {
            any_lie::<MAX_PFNS>(ops);
        }
    }
}
