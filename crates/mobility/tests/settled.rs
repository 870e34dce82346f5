//! Pairs that end late: the owner keeps them, and mobility takes them when it comes by.

mod machine;

use std::sync::atomic::{AtomicUsize, Ordering};

use dirigible_frames::{AllocRequest, FrameClass, FrameState, Pfn};
use dirigible_mobility::{MovePair, Outcome, RegisterError};
use machine::{Answer, CPU, Machine, blocks};

fn target(m: &Machine) -> Pfn {
    m.frames.alloc(CPU, AllocRequest::movable()).unwrap()
}

/// `count` pairs of the user's, left pending.
fn pending(m: &Machine, count: usize) -> Vec<MovePair> {
    let from: Vec<_> = (0..count).map(|_| m.map().unwrap()).collect();
    let mut pairs: Vec<_> = from
        .into_iter()
        .map(|from| {
            assert!(m.mobility.isolate(from));
            MovePair::base(from, target(m))
        })
        .collect();
    *m.user.always.lock().unwrap() = Some(Outcome::Pending);
    assert_eq!(m.mobility.migrate_frames(&mut pairs).pending, count as u64);
    pairs
}

fn states(m: &Machine, pair: &MovePair) -> (FrameState, FrameState) {
    m.frames.drain_cpu_caches();
    (m.frames.state(pair.from), m.frames.state(pair.to))
}

#[test]
fn what_has_settled_ends_when_it_is_drained_and_not_before() {
    for (outcome, before, after) in [
        (
            Outcome::Moved,
            (FrameState::Allocated, FrameState::Listed),
            (FrameState::Free, FrameState::Listed),
        ),
        (
            Outcome::Released,
            (FrameState::Allocated, FrameState::Allocated),
            (FrameState::Free, FrameState::Free),
        ),
        (
            Outcome::Refused,
            (FrameState::Isolated, FrameState::Allocated),
            (FrameState::Listed, FrameState::Free),
        ),
    ] {
        let m = blocks(4);
        // More than mobility takes at once.
        let pairs = pending(&m, 100);
        assert_eq!(m.mobility.drain_settled(), 0, "none has ended");
        m.user.answer_all(outcome);
        assert!(pairs.iter().all(|pair| states(&m, pair) == before));
        assert_eq!(m.mobility.isolated_frames(), 100);
        m.check();
        assert_eq!(m.mobility.drain_settled(), 100);
        assert!(pairs.iter().all(|pair| states(&m, pair) == after));
        assert_eq!(m.mobility.drain_settled(), 0);
        m.check_at_rest();
    }
}

/// Its owner gives a pair again, or claims one that has not moved, or gives a frame that is another's: nothing is
/// freed.
#[test]
fn a_pair_ends_once_and_only_as_its_frames_say() {
    let m = blocks(4);
    let pair = pending(&m, 1)[0];
    let give = |pair: MovePair, outcome| {
        let pair = MovePair { outcome, ..pair };
        m.user.settled.lock().unwrap().push_back(pair);
        m.mobility.drain_settled()
    };
    assert_eq!(give(pair, Outcome::Pending), 0);
    assert_eq!(give(pair, Outcome::Todo), 0);
    assert_eq!(give(pair, Outcome::Moved), 0, "its owner has not moved it");
    m.inflate(1);
    let balloons = MovePair {
        from: m.balloon.frames()[0],
        ..pair
    };
    assert!(m.mobility.isolate(balloons.from));
    assert_eq!(give(balloons, Outcome::Refused), 0, "it is the balloon's");
    m.mobility.putback_movable_frames(&[balloons.from]);
    assert_eq!(m.user.answer_all(Outcome::Moved), 1);
    let another = pending(&m, 1);
    assert_eq!(m.mobility.drain_settled(), 1);
    assert_eq!(give(pair, Outcome::Moved), 0, "it has been freed");
    assert_eq!(give(pair, Outcome::Refused), 0, "it is not isolated");
    assert_eq!(m.mobility.isolated_frames(), 1);
    m.settle(m.user, Outcome::Refused);
    assert_eq!(m.frames.state(another[0].from), FrameState::Listed);
    m.check_at_rest();
}

#[test]
fn pitfall_25_an_owner_with_settled_pairs_stays_until_they_are_drained() {
    let m = blocks(2);
    pending(&m, 3);
    let id = m.user.id;
    assert_eq!(m.mobility.unregister(id), Err(RegisterError::Isolated));
    m.user.answer_all(Outcome::Moved);
    assert_eq!(m.mobility.unregister(id), Err(RegisterError::Isolated));
    assert_eq!(m.mobility.drain_settled(), 3);
    assert_eq!(m.mobility.unregister(id), Ok(()));
    assert_eq!(m.mobility.register(id, m.user), Ok(()));
    m.check_at_rest();
}

/// The places of an owner are full of pairs that have ended: the move that finds it so takes them, and goes on at once.
#[test]
fn an_owner_full_of_settled_pairs_is_drained_by_the_next_move() {
    let m = blocks(4);
    m.user.room.store(10, Ordering::Relaxed);
    pending(&m, 10);
    m.user.answer_all(Outcome::Moved);
    // Nobody answers any more: only the drain makes room.
    *m.user.answer.lock().unwrap() = Answer::Never;
    static POLLS: AtomicUsize = AtomicUsize::new(0);
    *m.user.poll_hook.lock().unwrap() = Some(Box::new(|| {
        POLLS.fetch_add(1, Ordering::Relaxed);
    }));
    pending(&m, 10);
    assert_eq!(
        POLLS.load(Ordering::Relaxed),
        0,
        "there was no need to wait"
    );
    assert_eq!(m.mobility.isolated_frames(), 10);
    m.settle(m.user, Outcome::Moved);
    m.check_at_rest();
}

/// A request for a block takes what has settled before it looks: the frames that it finds free are counted in.
#[test]
fn direct_compaction_takes_what_has_settled() {
    let m = blocks(4);
    let pairs = pending(&m, 20);
    m.user.answer_all(Outcome::Moved);
    let _ = m.direct(FrameClass::Movable);
    assert!(m.user.settled.lock().unwrap().is_empty());
    assert_eq!(m.mobility.isolated_frames(), 0);
    assert!(
        pairs
            .iter()
            .all(|pair| m.frames.state(pair.from) != FrameState::Isolated)
    );
    m.check_at_rest();
}
