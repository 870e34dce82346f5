//! Isolation, migration, putback and completion, frame by frame.

mod machine;

use dirigible_frames::{AllocRequest, Event, FrameClass, FrameFlags, FrameState, OwnerId, Pfn};
use dirigible_mobility::{MovePair, Outcome, RegisterError};
use machine::{CPU, HUGE, Machine, blocks};

fn target(m: &Machine) -> Pfn {
    m.frames.alloc(CPU, AllocRequest::movable()).unwrap()
}

/// Isolates `from` and moves it to a fresh frame; gives the target.
fn move_one(m: &Machine, from: Pfn) -> Pfn {
    assert!(m.mobility.isolate(from));
    let mut pairs = [MovePair::base(from, target(m))];
    m.mobility.migrate_frames(&mut pairs);
    pairs[0].to
}

#[test]
fn pitfall_11_a_frame_moves_a_thousand_times() {
    let m = blocks(2);
    m.inflate(1);
    let user = m.map().unwrap();
    let mut places = [m.balloon.frames()[0], user];
    for _ in 0..1000 {
        places = places.map(|frame| move_one(&m, frame));
    }
    assert_eq!(m.balloon.frames(), [places[0]]);
    assert_eq!(m.user.frames(), [places[1]]);
    assert_eq!(m.event(Event::PgmigrateSuccess), 2000);
    assert_eq!(m.event(Event::CompactBalloonMigrated), 1000);
    m.check_at_rest();
}

#[test]
fn pitfall_13_a_frame_that_did_not_move_is_its_owners_again() {
    let m = blocks(2);
    m.inflate(20);
    let (balloon, user) = (m.balloon.frames(), m.user.frames());
    for _ in 0..3 {
        let mut pairs: Vec<_> = balloon
            .iter()
            .map(|&from| {
                assert!(m.mobility.isolate(from));
                MovePair::base(from, target(&m))
            })
            .collect();
        m.balloon.say(balloon.iter().map(|_| Outcome::Refused));
        let stats = m.mobility.migrate_frames(&mut pairs);
        assert_eq!((stats.failed, stats.moved), (20, 0));
        assert!(
            pairs
                .iter()
                .all(|pair| m.frames.state(pair.to) != FrameState::Allocated)
        );
    }
    assert_eq!((m.balloon.frames(), m.user.frames()), (balloon, user));
    assert_eq!(m.event(Event::CompactBalloonReturned), 60);
    assert_eq!(m.event(Event::PgmigrateFail), 60);
    m.check_at_rest();
}

#[test]
fn pitfall_14_each_outcome_frees_the_right_frame() {
    let m = blocks(4);
    let from: Vec<Pfn> = (0..5).map(|_| m.map().unwrap()).collect();
    let outcomes = [
        Outcome::Moved,
        Outcome::Refused,
        Outcome::Released,
        Outcome::Pending,
        Outcome::Todo,
    ];
    let mut pairs: Vec<_> = from
        .iter()
        .map(|&from| {
            assert!(m.mobility.isolate(from));
            MovePair::base(from, target(&m))
        })
        .collect();
    m.user.say(outcomes);
    let stats = m.mobility.migrate_frames(&mut pairs);
    assert_eq!(
        (stats.moved, stats.failed, stats.released, stats.pending),
        (1, 2, 1, 1)
    );
    let expected = [
        (FrameState::Free, FrameState::Listed),
        (FrameState::Listed, FrameState::Free),
        (FrameState::Free, FrameState::Free),
        (FrameState::Isolated, FrameState::Allocated),
        (FrameState::Listed, FrameState::Free),
    ];
    m.frames.drain_cpu_caches();
    for (pair, expected) in pairs.iter().zip(expected) {
        assert_eq!(
            (m.frames.state(pair.from), m.frames.state(pair.to)),
            expected,
            "{pair:?}"
        );
    }
    assert_eq!(m.mobility.isolated_frames(), 1);
    m.settle(m.user, Outcome::Moved);
    m.check_at_rest();
}

#[test]
fn pitfall_18_isolated_counts_are_symmetric_on_every_path() {
    let m = blocks(4);
    m.inflate(8);
    for _ in 0..8 {
        m.map().unwrap();
    }
    for outcome in [
        Outcome::Moved,
        Outcome::Refused,
        Outcome::Released,
        Outcome::Pending,
    ] {
        let (user, balloon) = (m.user.frames()[0], m.balloon.frames()[0]);
        assert!(m.mobility.isolate(user) && m.mobility.isolate(balloon));
        let now = m.mobility.isolated_by_class();
        assert_eq!((now.movable, now.balloon), (1, 1));
        m.user.say([outcome]);
        m.balloon.say([outcome]);
        let mut pairs = [
            MovePair::base(user, target(&m)),
            MovePair::base(balloon, target(&m)),
        ];
        m.mobility.migrate_frames(&mut pairs);
    }
    assert_eq!(m.mobility.isolated_frames(), 2, "the pending ones");
    m.settle(m.user, Outcome::Released);
    m.settle(m.balloon, Outcome::Refused);
    assert_eq!(m.mobility.isolated_frames(), 0);
    let frame = m.balloon.frames()[0];
    assert!(m.mobility.isolate(frame));
    m.mobility.putback_movable_frames(&[frame]);
    m.check_at_rest();
}

#[test]
fn pitfall_25_an_owner_number_has_one_owner_and_keeps_it_while_frames_are_out() {
    let m = blocks(2);
    let id = m.user.id;
    assert_eq!(m.mobility.register(id, m.balloon), Err(RegisterError::Busy));
    let far = OwnerId::new(16).unwrap();
    assert_eq!(
        m.mobility.register(far, m.balloon),
        Err(RegisterError::OutOfRange)
    );
    let frame = m.map().unwrap();
    assert!(m.mobility.isolate(frame));
    assert_eq!(m.mobility.unregister(id), Err(RegisterError::Isolated));
    m.user.say([Outcome::Pending]);
    m.mobility
        .migrate_frames(&mut [MovePair::base(frame, target(&m))]);
    assert_eq!(m.mobility.unregister(id), Err(RegisterError::Isolated));
    m.settle(m.user, Outcome::Moved);
    assert_eq!(m.mobility.unregister(id), Ok(()));
    assert_eq!(m.mobility.unregister(id), Err(RegisterError::Absent));
    let listed = m.user.frames()[0];
    assert!(
        !m.mobility.isolate(listed),
        "without an owner nothing moves"
    );
    assert_eq!(m.mobility.register(id, m.user), Ok(()));
    assert!(m.mobility.isolate(listed));
    m.mobility.putback_movable_frames(&[listed]);
    m.check_at_rest();
}

#[test]
fn pitfall_67_a_pinned_frame_is_refused_and_intact() {
    let m = blocks(2);
    let frame = m.map().unwrap();
    m.frames.set_flags(frame, FrameFlags::PINNED);
    let before = m.frames.frame(frame).unwrap();
    assert!(!m.mobility.isolate(frame));
    let after = m.frames.frame(frame).unwrap();
    assert_eq!((before.state, before.word), (after.state, after.word));
    m.frames.clear_flags(frame, FrameFlags::PINNED);
    assert!(m.mobility.isolate(frame));
    m.mobility.putback_movable_frames(&[frame]);
    m.check_at_rest();
}

#[test]
fn what_is_not_listed_is_not_isolated() {
    let m = blocks(2);
    let owned = target(&m);
    assert!(!m.mobility.isolate(owned), "owned");
    m.frames
        .free(CPU, owned, AllocRequest::movable().order)
        .unwrap();
    assert!(!m.mobility.isolate(owned), "cached or free");
    assert!(!m.mobility.isolate(Pfn::new(1 << 40)), "nowhere");
    let frame = m.map().unwrap();
    m.user.refuse(frame);
    assert!(!m.mobility.isolate(frame), "its owner does not want to");
    m.check_at_rest();
}

#[test]
fn a_stray_pair_moves_nothing_and_loses_no_target() {
    let m = blocks(2);
    let (stray, good) = (m.map().unwrap(), m.map().unwrap());
    assert!(m.mobility.isolate(good));
    let mut pairs = [
        MovePair::base(stray, target(&m)),
        MovePair::base(good, target(&m)),
    ];
    let stats = m.mobility.migrate_frames(&mut pairs);
    assert_eq!((stats.moved, stats.failed), (1, 1));
    assert_eq!(m.frames.state(stray), FrameState::Listed);
    m.check_at_rest();
}

#[test]
fn a_huge_frame_moves_whole() {
    let m = blocks(3);
    let huge = || m.frames.alloc(CPU, AllocRequest::huge()).unwrap();
    let from = huge();
    m.user.list(from);
    for outcome in [Outcome::Refused, Outcome::Moved] {
        let from = m.user.frames()[0];
        assert!(m.mobility.isolate(from));
        assert_eq!(m.mobility.isolated_frames(), 512);
        m.user.say([outcome]);
        m.mobility
            .migrate_frames(&mut [MovePair::huge(from, huge())]);
        m.check_at_rest();
    }
    assert_ne!(m.user.frames(), [from]);
    assert_eq!(m.frames.free_blocks(), 2);
    assert_eq!(m.event(Event::PgmigrateSuccess), 512);
    m.user.free(m.user.frames()[0]);
    let captured = m.frames.alloc(CPU, AllocRequest::huge()).unwrap();
    assert_eq!(m.frames.frame(captured).unwrap().class, FrameClass::Movable);
    m.frames.free(CPU, captured, HUGE).unwrap();
    m.check_at_rest();
}

#[test]
fn owners_get_their_whole_group_in_one_batch() {
    let m = blocks(4);
    m.inflate(30);
    for _ in 0..30 {
        m.map().unwrap();
    }
    let mut pairs = Vec::new();
    for (user, balloon) in m.user.frames().into_iter().zip(m.balloon.frames()) {
        for from in [user, balloon] {
            assert!(m.mobility.isolate(from));
            pairs.push(MovePair::base(from, target(&m)));
        }
    }
    assert_eq!(m.mobility.migrate_frames(&mut pairs).moved, 60);
    assert_eq!(*m.user.batches.lock().unwrap(), [30]);
    assert_eq!(*m.balloon.batches.lock().unwrap(), [30]);
    m.check_at_rest();
}
