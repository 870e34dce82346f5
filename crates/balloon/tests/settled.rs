//! Pairs that settle late, with the real mobility: the balloon keeps them, mobility drains them, and no reset, shutdown
//! or drop loses one.

mod support;

use std::sync::atomic::Ordering;

use dirigible_balloon::{BalloonConfig, Fault, Step, VirtioBalloon};
use dirigible_frames::{CpuId, FrameAllocator, FrameClass, FrameState, OwnerId, Pfn};
use dirigible_mobility::{
    CompactionConfig, MigrateStats, Mobility, MovableOwner, MovePair, Outcome, RegisterError,
};
use support::host::{FakeHal, FakeTransport, GIVEN_BACK, Host, Manner};
use support::{Clock, OWNER, Source, all_frames, memory};

type Balloon<'a> = VirtioBalloon<'a, FakeHal, FakeTransport, Clock>;

/// A guest on the stack: the balloon before the mobility that it is registered with.
fn with_guest(test: impl FnOnce(&World<'_, '_, '_>)) -> (Host, &'static FrameAllocator<'static>) {
    let frames = memory(&[8]);
    let clock = Clock::default();
    clock.relax_ns.store(10_000, Ordering::SeqCst);
    let host = Host::new();
    let config = BalloonConfig::default();
    let balloon: Balloon<'_> =
        VirtioBalloon::new(host.transport(), frames, &clock, OWNER, config).unwrap();
    let mobility = Box::new(Mobility::new(frames, &clock, CompactionConfig::default()));
    mobility.register(OWNER, &balloon).unwrap();
    test(&World {
        frames,
        clock: &clock,
        host: &host,
        source: Source::new(frames),
        balloon: &balloon,
        mobility: &mobility,
    });
    (host, frames)
}

struct World<'w, 'm, 'b> {
    frames: &'static FrameAllocator<'static>,
    clock: &'b Clock,
    host: &'w Host,
    source: Source,
    balloon: &'m Balloon<'b>,
    mobility: &'w Mobility<'m, Clock>,
}

impl World<'_, '_, '_> {
    fn to(&self, target: u32) -> Step {
        self.host.set_target(target);
        loop {
            match self.balloon.step(&self.source, 4) {
                Step::Busy => {}
                step => return step,
            }
        }
    }

    fn listed(&self) -> Vec<Pfn> {
        let listed = |frame: &Pfn| self.frames.state(*frame) == FrameState::Listed;
        all_frames(self.frames).into_iter().filter(listed).collect()
    }

    /// Moves the first `count` listed frames; gives the pairs.
    fn migrate(&self, count: usize) -> (MigrateStats, Vec<MovePair>) {
        let mut to = vec![Pfn::default(); count];
        let how = dirigible_frames::BalloonPlacement::Ordinary;
        let none = dirigible_frames::Watermark::None;
        let got = self.frames.alloc_balloon(CpuId::new(0), how, none, &mut to);
        assert_eq!(got, count);
        let from = self.listed();
        let mut pairs: Vec<_> = from
            .iter()
            .zip(&to)
            .map(|(&f, &t)| MovePair::base(f, t))
            .collect();
        assert!(pairs.iter().all(|pair| self.mobility.isolate(pair.from)));
        (self.mobility.migrate_frames(&mut pairs), pairs)
    }

    fn answer(&self, answers: usize) {
        for _ in 0..answers {
            assert!(self.host.answer_one());
            self.balloon.handle_interrupt();
        }
        self.host.set_manner(Manner::AtOnce);
    }

    /// Two exchanges: the first has settled and nobody has taken it, the second has no answer.
    fn half_settled(&self) -> Vec<MovePair> {
        self.to(600);
        self.host.set_manner(Manner::OnDemand);
        let (stats, pairs) = self.migrate(300);
        assert_eq!(stats.pending, 300);
        // The inflate message of each; then the deflate message of the first, behind that of the second.
        let mut inner = self.host.inner();
        inner.answer(0);
        drop(inner);
        self.balloon.handle_interrupt();
        let last = self.host.inner().waiting.len() - 1;
        self.host.inner().answer(last);
        self.balloon.handle_interrupt();
        assert_eq!(self.balloon.settled_pairs(), 256);
        assert_eq!(self.balloon.pending_pairs(), 44);
        pairs
    }

    /// Nothing is out, and everything is free but what the balloon has.
    fn check(&self) {
        self.mobility.verify().unwrap();
        assert_eq!(self.mobility.isolated_frames(), 0);
        self.balloon.verify().unwrap();
        assert_eq!(
            self.balloon.settled_pairs() + self.balloon.pending_pairs(),
            0
        );
        self.frames.drain_cpu_caches();
        self.frames.verify().unwrap();
        let held = self.balloon.held();
        assert_eq!(self.frames.free_frames() + held.total(), 8 * 512);
        assert_eq!(held.total(), self.host.size());
    }
}

/// Both are dropped normally: first the mobility, then the balloon, which frees what nobody has taken.
#[test]
fn balloon_and_mobility_are_dropped() {
    let (before, mut pages) = (GIVEN_BACK.get(), 0);
    let (host, frames) = with_guest(|world| {
        world.half_settled();
        pages = GIVEN_BACK.get() - before;
    });
    assert!(host.inner().dropped);
    assert!(GIVEN_BACK.get() - before > pages);
    frames.drain_cpu_caches();
    frames.verify().unwrap();
    assert_eq!(frames.free_frames(), 8 * 512);
    assert_eq!(frames.managed_frames(), 8 * 512);
}

/// With a device that takes no reset: what had settled is freed, what the host may have is lost.
#[test]
fn what_has_settled_outlives_a_device_that_takes_no_reset() {
    let (_, frames) = with_guest(|world| {
        world.half_settled();
        world.host.inner().never_resets = true;
    });
    frames.drain_cpu_caches();
    let lost = all_frames(frames)
        .into_iter()
        .filter(|&frame| frames.state(frame) != FrameState::Free)
        .count();
    // The balloon's 600, and the new frames of the second exchange.
    assert_eq!(lost, 644);
}

#[test]
fn pitfall_14_late_pairs_are_kept_until_they_are_drained() {
    with_guest(|world| {
        let pairs = world.half_settled();
        assert!(
            pairs[..256]
                .iter()
                .all(|pair| world.frames.state(pair.from) == FrameState::Allocated)
        );
        assert_eq!(world.mobility.isolated_frames(), 300);
        assert_eq!(
            world.mobility.unregister(OWNER),
            Err(RegisterError::Isolated)
        );
        assert_eq!(world.mobility.drain_settled(), 256);
        assert_eq!(world.mobility.isolated_frames(), 44);
        assert_eq!(
            world.mobility.unregister(OWNER),
            Err(RegisterError::Isolated)
        );
        world.answer(2);
        assert_eq!(world.mobility.drain_settled(), 44);
        assert_eq!(world.mobility.drain_settled(), 0);
        world.check();
        assert_eq!(world.mobility.unregister(OWNER), Ok(()));
    });
}

/// Both exchanges have settled and nobody has taken them: the next move drains them, and is not refused.
#[test]
fn a_balloon_full_of_settled_pairs_has_room_for_the_next_move() {
    with_guest(|world| {
        world.half_settled();
        world.answer(2);
        assert_eq!(world.balloon.settled_pairs(), 300);
        let before = world.clock.now.load(Ordering::SeqCst);
        let (stats, _) = world.migrate(300);
        assert_eq!((stats.moved, stats.failed), (300, 0));
        assert_eq!(
            world.clock.now.load(Ordering::SeqCst),
            before,
            "nobody waited"
        );
        world.check();
    });
}

#[test]
fn a_shutdown_leaves_settled_pairs_to_be_drained() {
    with_guest(|world| {
        world.half_settled();
        world.answer(2);
        assert_eq!(world.balloon.shutdown(), Ok(()));
        assert_eq!(world.mobility.isolated_frames(), 300);
        world.mobility.verify().unwrap();
        assert_eq!(world.mobility.drain_settled(), 300);
        world.check();
        assert_eq!(world.mobility.unregister(OWNER), Ok(()));
    });
}

/// The device asks for a reset: the exchange without an answer is refused. Its frames do not keep the shutdown waiting,
/// though nobody has taken them.
#[test]
fn a_shutdown_by_reset_waits_for_no_refused_pair() {
    with_guest(|world| {
        let pairs = world.half_settled();
        world.host.need_reset();
        world.balloon.handle_interrupt();
        let before = world.clock.now.load(Ordering::SeqCst);
        assert_eq!(world.balloon.shutdown(), Ok(()));
        assert!(world.clock.now.load(Ordering::SeqCst) < before + 1_000_000_000);
        assert_eq!(world.balloon.settled_pairs(), 300);
        let states = |pair: &MovePair| (world.frames.state(pair.from), world.frames.state(pair.to));
        let untaken = (FrameState::Isolated, FrameState::Allocated);
        assert!(pairs[256..].iter().all(|pair| states(pair) == untaken));
        assert_eq!(world.balloon.held().total(), 44);
        assert_eq!(world.mobility.drain_settled(), 300);
        world.check();
    });
}

#[test]
fn a_reset_leaves_settled_pairs_to_be_drained() {
    for never_resets in [false, true] {
        with_guest(|world| {
            world.half_settled();
            world.host.inner().never_resets = never_resets;
            world.balloon.reset();
            let ended = if never_resets { 256 } else { 300 };
            assert_eq!(world.mobility.drain_settled(), ended);
            assert_eq!(world.mobility.isolated_frames(), 300 - ended as u64);
            world.host.inner().never_resets = false;
            world.balloon.reset();
            assert_eq!(world.mobility.drain_settled(), 300 - ended);
            world.check();
            assert_eq!(world.balloon.fault(), Some(Fault::Removed));
        });
    }
}

/// Pairs of the old device are taken after the new one was started: their frames are the guest's and not the new
/// balloon's.
#[test]
fn a_repair_keeps_settled_pairs() {
    with_guest(|world| {
        world.half_settled();
        world.host.need_reset();
        world.balloon.handle_interrupt();
        world.host.set_manner(Manner::AtOnce);
        assert_eq!(world.to(500), Step::Idle);
        assert_eq!(world.balloon.settled_pairs(), 300);
        assert_eq!(world.host.size(), 500);
        assert_eq!(world.mobility.drain_settled(), 300);
        world.check();
        let (stats, _) = world.migrate(300);
        assert_eq!(stats.moved, 300);
        world.check();
    });
}

/// Direct compaction after a late answer: it drains first, and nothing stays isolated.
#[test]
fn compaction_takes_what_came_late() {
    with_guest(|world| {
        world.half_settled();
        world.answer(2);
        let _ = world
            .mobility
            .compact_direct(CpuId::new(0), FrameClass::Movable);
        assert_eq!(world.balloon.settled_pairs(), 0);
        assert_eq!(world.mobility.isolated_frames(), 0);
        world.mobility.verify().unwrap();
    });
}

/// A caller that takes pairs in small portions gets each once, in order.
#[test]
fn pairs_are_given_once_in_portions_of_any_size() {
    with_guest(|world| {
        let pairs = world.half_settled();
        let id: OwnerId = world.balloon.owner_id();
        assert_eq!(id, OWNER);
        let mut seen = Vec::new();
        let nothing = MovePair::base(Pfn::new(0), Pfn::new(0));
        for size in (1..).take_while(|_| world.balloon.settled_pairs() > 0) {
            let mut out = vec![nothing; size % 7];
            let taken = world.balloon.take_settled(&mut out);
            assert!(
                out[..taken]
                    .iter()
                    .all(|pair| pair.outcome == Outcome::Moved)
            );
            seen.extend(out[..taken].iter().map(|pair| (pair.from, pair.to)));
        }
        let moved: Vec<_> = pairs[..256]
            .iter()
            .map(|pair| (pair.from, pair.to))
            .collect();
        assert_eq!(seen, moved);
        // The test has to free them now.
        let from: Vec<_> = moved.iter().map(|&(from, _)| from).collect();
        world.frames.free_bulk(CpuId::new(0), &from).unwrap();
        world.answer(2);
        assert_eq!(world.mobility.drain_settled(), 44);
        assert_eq!(world.mobility.isolated_frames(), 256);
    });
}
