//! Exchanges: batches, order, answers that come late, in part, or not at all.

mod support;

use dirigible_balloon::{BalloonConfig, Fault, Step};
use dirigible_frames::{Event, FrameState, Order};
use dirigible_mobility::{MovableOwner, Outcome};
use support::host::{Host, Manner};
use support::moves::{pairs, relocate};
use support::{Guest, OTHER, OWNER, count};

#[test]
fn pitfall_11_one_frame_moves_a_thousand_times() {
    for exchange_batch in [1, 256] {
        let guest = Guest::configured(
            4,
            BalloonConfig {
                exchange_batch,
                ..BalloonConfig::default()
            },
        );
        guest.to(1);
        let mut here = guest.listed()[0];
        for _ in 0..1000 {
            let there = guest.targets(1)[0];
            assert_eq!(relocate(&guest, &[here], &[there]), [Outcome::Moved]);
            assert_ne!(here, there);
            assert_eq!(guest.frames.state(there), FrameState::Listed);
            here = there;
        }
        guest.check();
        assert_eq!(guest.frames.events().get(Event::BalloonMigrate), 1000);
        assert_eq!(
            guest.frames.events().get(Event::BalloonMigrateMessages),
            2000
        );
        assert_eq!(guest.host.size(), 1);
    }
}

#[test]
fn batches_take_two_messages_single_frames_two_each() {
    for (exchange_batch, messages) in [(256, 4), (1, 1000), (100, 10)] {
        let guest = Guest::configured(
            4,
            BalloonConfig {
                exchange_batch,
                ..BalloonConfig::default()
            },
        );
        guest.to(500);
        let before = guest.host.messages();
        let from = guest.listed();
        let to = guest.targets(500);
        let outcomes = relocate(&guest, &from, &to);
        assert!(outcomes.iter().all(|&outcome| outcome == Outcome::Moved));
        assert_eq!(guest.host.messages() - before, messages);
        assert_eq!(guest.balloon.stats().migrate_messages, messages);
        guest.check();
    }
}

#[test]
fn pitfall_14_no_frame_is_freed_twice_or_never() {
    let guest = Guest::configured(
        8,
        BalloonConfig {
            exchange_batch: 7,
            ..Default::default()
        },
    );
    let total = guest.frames.free_frames();
    guest.to(600);
    let mut seed = 1_u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for turn in 0..200 {
        let from: Vec<_> = guest
            .listed()
            .into_iter()
            .filter(|_| random(20) == 0)
            .take(20)
            .collect();
        let from: Vec<_> = from
            .into_iter()
            .filter(|&f| guest.balloon.isolate(f))
            .collect();
        let to = guest.targets(from.len());
        let mut moves = pairs(&from, &to);
        // Some pairs are not fit: the target is gone from the caller's hands, or the order is not ours.
        for pair in moves.iter_mut().filter(|_| random(5) == 0) {
            pair.order = Order::HUGE;
        }
        guest.host.set_manner(if turn % 3 == 0 {
            Manner::OnDemand
        } else {
            Manner::AtOnce
        });
        guest.balloon.migrate(&mut moves);
        guest.host.set_manner(Manner::AtOnce);
        for pair in &moves {
            match pair.outcome {
                Outcome::Moved => guest.free(&[pair.from]),
                Outcome::Refused | Outcome::Busy => {
                    guest.balloon.putback(pair.from);
                    guest.free(&[pair.to]);
                }
                Outcome::Pending => {}
                other => panic!("{other:?}"),
            }
        }
        while guest.host.answer_one() {
            guest.balloon.handle_interrupt();
        }
        for (from, _, outcome) in guest.settled() {
            assert_eq!(outcome, Outcome::Moved);
            guest.free(&[from]);
        }
        guest.check();
        assert_eq!(
            guest.frames.free_frames() + guest.frames.cached_frames(),
            total - 600
        );
        assert_eq!(count(guest.frames, FrameState::Listed), 600);
        assert_eq!(count(guest.frames, FrameState::Allocated), 0);
    }
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_15_new_frame_deflated_before_the_move_is_over() {
    let guest = Guest::configured(4, BalloonConfig::default());
    guest.to(100);
    let from: Vec<_> = guest.listed();
    let to = guest.targets(100);
    guest.host.set_manner(Manner::OnDemand);
    assert!(
        relocate(&guest, &from, &to)
            .iter()
            .all(|&outcome| outcome == Outcome::Pending)
    );
    // The new frames are acknowledged, the old ones on their way: the balloon is told to empty itself.
    assert!(guest.host.answer_one());
    guest.balloon.handle_interrupt();
    assert!(
        to.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Listed)
    );
    assert!(
        from.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Leaving)
    );
    assert_eq!(guest.to(0), Step::Waiting);
    assert!(
        to.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Leaving)
    );
    // The later request is answered first.
    guest.host.inner().answer(1);
    guest.balloon.handle_interrupt();
    assert!(
        to.iter()
            .all(|&frame| guest.frames.state(frame) == FrameState::Free)
    );
    assert!(guest.host.answer_one());
    assert!(guest.balloon.poll(0));
    let settled = guest.settled();
    assert_eq!(settled.len(), 100);
    for (at, (old, new, outcome)) in settled.into_iter().enumerate() {
        assert_eq!((old, new, outcome), (from[at], to[at], Outcome::Moved));
    }
    guest.free(&from);
    assert_eq!(guest.run(), Step::Idle);
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_18_isolated_count_is_exact() {
    let guest = Guest::configured(4, BalloonConfig::default());
    guest.to(400);
    let exact = |what: &str| {
        let isolated = count(guest.frames, FrameState::Isolated);
        assert_eq!(guest.balloon.held().isolated, isolated, "{what}");
    };
    let frames = guest.listed();
    for &frame in frames.iter().step_by(2) {
        assert!(guest.balloon.isolate(frame));
        assert!(!guest.balloon.isolate(frame));
        exact("isolate");
    }
    let isolated: Vec<_> = frames.iter().copied().step_by(2).collect();
    guest.host.set_manner(Manner::OnDemand);
    let to = guest.targets(100);
    let mut moves = pairs(&isolated[..100], &to);
    guest.balloon.migrate(&mut moves);
    exact("sent");
    for &frame in &isolated[100..] {
        guest.balloon.putback(frame);
        exact("putback");
    }
    for _ in 0..2 {
        guest.host.answer_one();
        guest.balloon.handle_interrupt();
        exact("answer");
    }
    assert_eq!(guest.settled().len(), 100);
    assert_eq!(guest.balloon.held().isolated, 0);
    let stats = guest.balloon.stats();
    assert_eq!(stats.isolated, stats.frames_moved + stats.returned);
}

#[test]
fn pitfall_28_never_less_than_promised() {
    for exchange_batch in [1, 256] {
        let guest = Guest::configured(
            4,
            BalloonConfig {
                exchange_batch,
                ..BalloonConfig::default()
            },
        );
        guest.to(400);
        guest.host.inner().low = usize::MAX;
        let from = guest.listed();
        let to = guest.targets(400);
        relocate(&guest, &from, &to);
        assert_eq!(guest.host.inner().low, 400);
        guest.check();
    }
}

#[test]
fn pitfall_41_exchange_acknowledged_by_half() {
    let guest = Guest::configured(4, BalloonConfig::default());
    let total = guest.frames.free_frames();
    guest.to(600);
    let from = guest.listed()[..512].to_vec();
    let to = guest.targets(512);
    guest.host.set_manner(Manner::OnDemand);
    assert!(
        relocate(&guest, &from, &to)
            .iter()
            .all(|&outcome| outcome == Outcome::Pending)
    );
    // Two exchanges are out; of the second the new frames are acknowledged, of the first nothing.
    guest.host.inner().answer(1);
    guest.balloon.handle_interrupt();
    guest.check();
    let all = |guest: &Guest| {
        let held = guest.balloon.held();
        guest.frames.free_frames() + guest.frames.cached_frames() + held.total()
    };
    assert_eq!(all(&guest), total);
    assert_eq!(guest.host.size(), 600 + 256);
    assert!(guest.settled().is_empty());
    // Now everything, the latest first.
    loop {
        let mut inner = guest.host.inner();
        let Some(last) = inner.waiting.len().checked_sub(1) else {
            break;
        };
        inner.answer(last);
        drop(inner);
        guest.balloon.handle_interrupt();
    }
    assert_eq!(guest.settled().len(), 512);
    assert_eq!(guest.host.size(), 600);
    guest.free(&from);
    guest.check();
    assert_eq!(all(&guest), total);
}

#[test]
fn pitfall_41_exchange_cut_off_by_reset() {
    let guest = Guest::configured(4, BalloonConfig::default());
    let total = guest.frames.free_frames();
    let managed = guest.frames.managed_frames();
    guest.to(310);
    let all = guest.listed();
    let (from, idle) = all.split_at(300);
    let to = guest.targets(300);
    guest.host.set_manner(Manner::OnDemand);
    assert!(guest.balloon.isolate(idle[0]));
    relocate(&guest, from, &to);
    guest.host.answer_one();
    guest.balloon.handle_interrupt();
    // 256 arrived and their partners leave; 44 enter; one is isolated and nine listed. The device is taken away.
    let held = guest.balloon.reset();
    assert_eq!(
        (held.listed, held.isolated, held.entering, held.leaving),
        (256 + 9, 44 + 1, 44, 256)
    );
    guest.balloon.verify().unwrap();
    assert_eq!(guest.balloon.fault(), Some(Fault::Removed));
    // Those that had arrived have moved; the others did not, and their old frames are the guest's too.
    let settled = guest.settled();
    assert_eq!(settled.len(), 300);
    for (at, &(old, new, outcome)) in settled.iter().enumerate() {
        assert_eq!((old, new), (from[at], to[at]));
        match outcome {
            Outcome::Moved if at < 256 => guest.free(&[old]),
            Outcome::Refused if at >= 256 => {
                guest.balloon.putback(old);
                guest.free(&[new]);
            }
            other => panic!("{at} {other:?}"),
        }
    }
    assert_eq!(guest.balloon.held().total(), 1);
    guest.balloon.putback(idle[0]);
    assert_eq!(guest.balloon.held().total(), 0);
    assert_eq!(guest.frames.free_frames(), total);
    assert_eq!(guest.frames.managed_frames(), managed);
    guest.frames.verify().unwrap();
}

#[test]
fn a_move_without_a_free_slot_is_busy_at_once() {
    let guest = Guest::configured(8, BalloonConfig::default());
    guest.to(1500);
    let from = guest.listed()[..1024].to_vec();
    let to = guest.targets(1024);
    guest.host.set_manner(Manner::OnDemand);
    let now = || guest.clock.now.load(std::sync::atomic::Ordering::SeqCst);
    let before = now();
    let outcomes = relocate(&guest, &from, &to);
    assert_eq!(now(), before, "nobody waits in migrate");
    assert!(outcomes[..512].iter().all(|&o| o == Outcome::Pending));
    assert!(outcomes[512..].iter().all(|&o| o == Outcome::Busy));
    // Nothing has changed: they are isolated, and more can be.
    assert_eq!(guest.balloon.held().isolated, 1024);
    assert_eq!(guest.balloon.stats().refused, 0);
    let more = guest.listed()[0];
    assert!(guest.balloon.isolate(more));
    guest.balloon.putback(more);
    assert!(!guest.balloon.poll(now() + 10));
    // With an answer there is room again, once what it has settled is taken.
    while guest.host.answer_one() {
        guest.balloon.poll(now());
    }
    guest.host.set_manner(Manner::AtOnce);
    let mut rest = pairs(&from[512..], &to[512..]);
    guest.balloon.migrate(&mut rest);
    assert!(rest.iter().all(|pair| pair.outcome == Outcome::Busy));
    assert!(guest.balloon.poll(u64::MAX), "what has settled is there");
    assert_eq!(guest.settled().len(), 512);
    let mut rest = pairs(&from[512..], &to[512..]);
    guest.balloon.migrate(&mut rest);
    assert!(rest.iter().all(|pair| pair.outcome == Outcome::Moved));
    assert!(guest.settled().is_empty());
    guest.free(&from);
    guest.check();
    assert_eq!(guest.host.size(), 1500);
}

/// Of another balloon, of nobody, and not isolated at all: each is left as it is, though one of ours is out.
#[test]
fn a_frame_that_is_not_ours_cannot_be_put_back() {
    let guest = Guest::configured(8, BalloonConfig::default());
    let config = BalloonConfig::default();
    let other = Guest::on(guest.clock, guest.frames, Host::new(), config, OTHER);
    guest.to(100);
    other.to(100);
    let owner = |frame| guest.frames.frame(frame).unwrap().owner;
    let of = |class| guest.listed().into_iter().find(|&at| owner(at) == class);
    let (ours, theirs) = (of(OWNER).unwrap(), of(OTHER).unwrap());
    assert!(guest.balloon.isolate(ours) && other.balloon.isolate(theirs));
    let foreign = [
        theirs,
        of(OTHER).unwrap(),
        of(OWNER).unwrap(),
        guest.targets(1)[0],
    ];
    for frame in foreign {
        let look = || {
            (
                guest.frames.state(frame),
                guest.frames.owner_word(frame),
                guest.balloon.held(),
            )
        };
        let before = look();
        guest.balloon.putback(frame);
        assert_eq!(look(), before);
    }
    guest.balloon.putback(ours);
    other.balloon.putback(theirs);
    assert_eq!(guest.balloon.held().listed, 100);
    assert_eq!(guest.balloon.stats().returned, 1);
    guest.check();
    other.check();
}
