//! Isolation, migration and putback; with the real mobility where that is the point.

mod support;

use std::sync::Mutex;

use dirigible_balloon::{BalloonConfig, Deflate, Step};
use dirigible_frames::{
    AllocRequest, CpuId, Event, FrameClass, FrameState, Order, OwnerId, Pfn, ZoneId,
};
use dirigible_mobility::{
    CompactResult, CompactionConfig, Mobility, MovableOwner, MovePair, Outcome, RegisterError,
};
use support::host::{Host, Manner};
use support::moves::relocate;
use support::{Clock, Guest, OWNER, all_frames, memory};

const CPU: CpuId = CpuId::new(0);

/// A guest whose balloon is an owner of a real `Mobility`.
fn mobile(blocks: u64) -> (Guest, &'static Mobility<'static, Clock>) {
    let frames = memory(&[blocks]);
    let clock: &'static Clock = Box::leak(Box::default());
    let config = BalloonConfig::default();
    let guest = Guest::on(clock, frames, Host::new(), config, OWNER);
    let mobility: &'static Mobility<'static, Clock> = Box::leak(Box::new(Mobility::new(
        frames,
        clock,
        CompactionConfig::default(),
    )));
    mobility.register(OWNER, guest.balloon).unwrap();
    (guest, mobility)
}

/// Fills memory with the balloon and frees `holes` frames in each block.
fn riddle(guest: &Guest, holes: usize) {
    let total = guest.frames.managed_frames();
    // Takes all frames and gives back those that the balloon is to take.
    let mut all = vec![Pfn::default(); total as usize];
    assert_eq!(
        guest
            .frames
            .alloc_bulk(CPU, AllocRequest::movable(), &mut all),
        total as usize
    );
    all.sort_unstable();
    let (mut keep, mut give) = (Vec::new(), Vec::new());
    for frame in all {
        if frame.offset_in_block() < holes {
            keep.push(frame)
        } else {
            give.push(frame)
        }
    }
    guest.free(&give);
    assert_eq!(guest.to(give.len() as u32), Step::Idle);
    guest.free(&keep);
    guest.frames.drain_cpu_caches();
    assert_eq!(guest.frames.free_blocks(), 0);
}

#[test]
fn pitfall_02_compaction_inside_inflate() {
    let (guest, mobility) = mobile(4);
    riddle(&guest, 200);
    let frames = guest.frames;
    let got = std::sync::Arc::new(Mutex::new(None));
    let seen = got.clone();
    guest.source.set_meanwhile(move || {
        let captured = mobility.compact_direct(CPU, FrameClass::Movable);
        if let CompactResult::Captured(block) = captured {
            frames.free(CPU, block, Order::HUGE).unwrap();
        }
        seen.lock().unwrap().get_or_insert(captured);
    });
    let size = guest.host.size() as u32;
    guest.to(size + 10);
    assert!(
        matches!(*got.lock().unwrap(), Some(CompactResult::Captured(_))),
        "{got:?}"
    );
    assert_eq!(guest.host.size() as u32, size + 10);
    assert!(guest.frames.events().get(Event::BalloonMigrate) > 0);
    guest.frames.verify().unwrap();
    assert_eq!(mobility.isolated_frames(), 0);
}

#[test]
fn pitfall_06_putback_always_comes_back() {
    let guest = Guest::new(4);
    guest.to(300);
    let frames = guest.listed();
    assert!(guest.balloon.isolate(frames[7]));
    // The balloon is as busy as can be: requests with a host that does not answer.
    guest.host.set_manner(Manner::OnDemand);
    guest.to(100);
    guest.balloon.putback(frames[7]);
    assert_eq!(guest.frames.state(frames[7]), FrameState::Listed);
    while guest.host.answer_one() {}
    guest.run();
    while guest.host.answer_one() {}
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.host.size(), 100);
}

#[test]
fn pitfall_10_foreign_frames_are_not_followed() {
    let guest = Guest::new(8);
    guest.to(200);
    let frames = guest.frames;
    let other = OwnerId::new(9).unwrap();
    let mut strange = Vec::new();
    let garbage = [0, u64::MAX, 0x0fff_ffff_ffff_ffff, 0xdead_beef_dead_beef];
    for (at, word) in garbage.into_iter().cycle().take(64).enumerate() {
        let class = [
            FrameClass::Movable,
            FrameClass::Unmovable,
            FrameClass::Reclaimable,
        ][at % 3];
        let frame = frames
            .alloc(CPU, AllocRequest::new(Order::BASE, class))
            .unwrap();
        // Another owner's, some of them listed and some just handed out.
        frames.set_owner(frame, other, word);
        if at % 2 == 0 {
            frames
                .transition(frame, FrameState::Allocated, FrameState::Listed)
                .unwrap();
        }
        strange.push((frame, word));
    }
    let huge = frames.alloc(CPU, AllocRequest::huge()).unwrap();
    strange.extend((0..512).map(|at| (huge.plus(at), frames.owner_word(huge.plus(at)))));
    for &(frame, word) in &strange {
        let before = frames.state(frame);
        assert!(!guest.balloon.isolate(frame));
        assert_eq!(
            (frames.state(frame), frames.owner_word(frame)),
            (before, word)
        );
    }
    // Free frames, and numbers that are no frames.
    for frame in all_frames(frames)
        .into_iter()
        .filter(|&f| frames.state(f) == FrameState::Free)
    {
        assert!(!guest.balloon.isolate(frame));
    }
    for number in [0, 511, 512 + 8 * 512, 1 << 28, 1 << 40, u64::MAX >> 12] {
        assert!(!guest.balloon.isolate(Pfn::new(number)));
    }
    assert_eq!(guest.balloon.fault(), None);
    guest.check();
}

#[test]
fn pitfall_12_nothing_but_balloon_and_holes_yields_huge_pages() {
    let (guest, mobility) = mobile(16);
    riddle(&guest, 130);
    let before = guest.host.size();
    // 16 × 130 holes are room for four blocks' balloon frames.
    let mut blocks = Vec::new();
    while let CompactResult::Captured(block) = mobility.compact_direct(CPU, FrameClass::Movable) {
        assert_eq!(guest.host.size(), before);
        guest.check();
        blocks.push(block);
    }
    assert!(blocks.len() >= 3, "{} blocks", blocks.len());
    assert_eq!(mobility.isolated_frames(), 0);
    for block in blocks {
        guest.frames.free(CPU, block, Order::HUGE).unwrap();
    }
    guest.frames.verify().unwrap();
    assert_eq!(guest.to(0), Step::Idle);
    guest.frames.verify().unwrap();
}

#[test]
fn pitfall_21_no_frame_is_linked_twice() {
    let guest = Guest::new(4);
    guest.to(50);
    let frames = guest.listed();
    // A listed frame as the target of a move, the same target twice, the same source twice.
    assert!(guest.balloon.isolate(frames[0]) && guest.balloon.isolate(frames[1]));
    let to = guest.targets(1)[0];
    let mut moves = [
        MovePair::base(frames[0], frames[5]),
        MovePair::base(frames[0], to),
        MovePair::base(frames[1], to),
    ];
    guest.balloon.migrate(&mut moves);
    let outcomes = moves.map(|pair| pair.outcome);
    assert_eq!(
        outcomes,
        [Outcome::Refused, Outcome::Moved, Outcome::Refused]
    );
    guest.balloon.putback(frames[1]);
    guest.free(&[frames[0]]);
    guest.check();
    assert_eq!(guest.host.size(), 50);
}

#[test]
fn pitfall_22_managed_follows_across_zones() {
    let guest = Guest::with(memory(&[4, 4]), Host::new(), BalloonConfig::default());
    let frames = guest.frames;
    let zones = [ZoneId::new(0), ZoneId::new(1)];
    let sum = |zone: ZoneId| {
        let held = |frame: &Pfn| {
            frames.zone_of(*frame) == Some(zone)
                && matches!(
                    frames.state(*frame),
                    FrameState::Listed | FrameState::Isolated | FrameState::Leaving
                )
        };
        frames.zone_managed(zone)
            + all_frames(frames)
                .iter()
                .filter(|frame| held(frame))
                .count() as u64
    };
    let whole = zones.map(sum);
    guest.to(600);
    assert_eq!(zones.map(sum), whole);
    // Every listed frame to the other zone.
    for from in guest.listed() {
        let zone = frames.zone_of(from);
        let mut passed = Vec::new();
        let to = loop {
            let frame = guest.targets(1)[0];
            if frames.zone_of(frame) != zone {
                break frame;
            }
            passed.push(frame);
        };
        guest.free(&passed);
        assert_eq!(relocate(&guest, &[from], &[to]), [Outcome::Moved]);
        if from.get() % 64 == 0 {
            assert_eq!(zones.map(sum), whole);
        }
    }
    guest.to(0);
    assert_eq!(zones.map(|zone| frames.zone_managed(zone)), whole);
    frames.verify().unwrap();
}

#[test]
fn pitfall_23_isolate_refuses_what_is_leaving() {
    let guest = Guest::configured(
        4,
        BalloonConfig {
            deflate: Deflate::NewestFirst,
            ..BalloonConfig::default()
        },
    );
    guest.to(100);
    guest.host.set_manner(Manner::OnDemand);
    guest.to(40);
    for frame in all_frames(guest.frames) {
        let state = guest.frames.state(frame);
        assert_eq!(
            guest.balloon.isolate(frame),
            state == FrameState::Listed,
            "{state:?}"
        );
    }
    assert_eq!(guest.balloon.held().isolated, 40);
}

#[test]
fn pitfall_25_registered_once_and_not_taken_away_early() {
    let (guest, mobility) = mobile(4);
    assert_eq!(
        mobility.register(OWNER, guest.balloon),
        Err(RegisterError::Busy)
    );
    guest.to(10);
    let frame = guest.listed()[0];
    assert!(mobility.isolate(frame));
    assert_eq!(mobility.unregister(OWNER), Err(RegisterError::Isolated));
    mobility.putback_movable_frames(&[frame]);
    mobility.unregister(OWNER).unwrap();
}
