//! A device that has failed or is silent costs memory, and no huge page.

mod support;

use std::sync::atomic::Ordering;

use dirigible_balloon::{BalloonConfig, Fault, Step};
use dirigible_frames::{BalloonPlacement, CpuId, FrameClass, FrameState};
use dirigible_mobility::{CompactResult, CompactionConfig, Mobility, MovableOwner};
use support::host::{Host, Manner};
use support::{Clock, Guest, OWNER, all_frames, memory};

const CPU: CpuId = CpuId::new(0);

/// How many balloon frames the ledger counts as such, and how many of the listed ones have which class.
fn counted(guest: &Guest) -> (u64, usize, usize) {
    let listed = guest.listed();
    let of = |class| {
        listed
            .iter()
            .filter(|&&frame| guest.is_class(frame, class))
            .count()
    };
    (
        guest.frames.class_frames().balloon,
        of(FrameClass::Balloon),
        of(FrameClass::Unmovable),
    )
}

#[test]
fn frames_of_a_silent_device_are_unmovable_until_it_answers() {
    let guest = Guest::new(8);
    guest.to(1000);
    let frame = guest.listed()[0];
    assert!(guest.balloon.isolate(frame));
    guest.host.set_manner(Manner::OnDemand);
    guest.to(1200);
    assert_eq!(counted(&guest), (1200, 999, 0));
    guest.clock.pass(6_000_000_000);
    assert!(matches!(guest.run(), Step::Failed(Fault::Silent { .. })));
    // Those under way and the one in compaction's hands are as they were.
    assert_eq!(counted(&guest), (201, 0, 999));
    guest.frames.verify().unwrap();
    guest.balloon.putback(frame);
    assert_eq!(counted(&guest), (200, 0, 1000));
    // A late answer ends it.
    assert!(guest.host.answer_one());
    guest.balloon.handle_interrupt();
    assert_eq!(counted(&guest), (1200, 1200, 0));
    assert!(guest.balloon.isolate(frame));
    guest.balloon.putback(frame);
    guest.frames.verify().unwrap();
    guest.host.set_manner(Manner::AtOnce);
    assert_eq!(guest.to(0), Step::Idle);
    guest.frames.verify().unwrap();
}

/// Answers of a device whose other queue is broken: frames that arrive by them are unmovable too.
#[test]
fn frames_of_a_broken_device_stay_unmovable_and_are_freed_as_what_they_were() {
    let guest = Guest::new(8);
    guest.to(1000);
    guest.host.set_manner(Manner::OnDemand);
    guest.to(1200);
    guest.host.inner().use_again(1, 4711);
    guest.balloon.handle_interrupt();
    assert!(matches!(
        guest.balloon.fault(),
        Some(Fault::Protocol { .. })
    ));
    assert_eq!(counted(&guest), (200, 0, 1000));
    assert!(guest.host.answer_one());
    guest.balloon.handle_interrupt();
    assert_eq!(counted(&guest), (0, 0, 1200));
    guest.balloon.reset();
    let classes = guest.frames.class_frames();
    assert_eq!((classes.balloon, classes.unmovable), (0, 0));
    guest.frames.verify().unwrap();
    guest.host.set_manner(Manner::AtOnce);
    guest.balloon.restart().unwrap();
    assert_eq!(guest.to(700), Step::Idle);
    assert_eq!(counted(&guest), (700, 700, 0));
}

fn mobile(blocks: u64) -> (Guest, &'static Mobility<'static, Clock>) {
    let config = BalloonConfig {
        placement: BalloonPlacement::Ordinary,
        ..BalloonConfig::default()
    };
    let guest = Guest::with(memory(&[blocks]), Host::new(), config);
    let mobility = Mobility::new(guest.frames, guest.clock, CompactionConfig::default());
    let mobility: &'static Mobility<'static, Clock> = Box::leak(Box::new(mobility));
    mobility.register(OWNER, guest.balloon).unwrap();
    (guest, mobility)
}

/// Every block holds balloon frames and holes. With a dead device compaction finds nothing to try; once the device is
/// repaired, it finds all of them, through the same registration.
#[test]
fn compaction_passes_a_dead_balloon_by_and_finds_it_again_after_the_repair() {
    let (guest, mobility) = mobile(24);
    let all = all_frames(guest.frames);
    guest.to(all.len() as u32);
    // A balloon frame in eight stays; the others go back, so that no block is whole.
    let keep: Vec<_> = guest.listed().into_iter().step_by(8).collect();
    assert!(keep.iter().all(|&frame| guest.balloon.isolate(frame)));
    guest.to(keep.len() as u32);
    keep.iter().for_each(|&frame| guest.balloon.putback(frame));
    assert_eq!(guest.frames.free_blocks(), 0);

    guest.host.set_manner(Manner::Never);
    guest.to(keep.len() as u32 + 1);
    guest.clock.pass(6_000_000_000);
    assert!(matches!(guest.run(), Step::Failed(Fault::Silent { .. })));
    let refused = guest.balloon.stats().isolated;
    for _ in 0..20 {
        let result = mobility.compact_direct(CPU, FrameClass::Movable);
        assert!(!matches!(result, CompactResult::Captured(_)));
        guest.clock.pass(1_000_000_000);
    }
    assert_eq!(guest.balloon.stats().isolated, refused, "none was tried");

    guest.host.need_reset();
    guest.balloon.handle_interrupt();
    guest.host.set_manner(Manner::AtOnce);
    assert_eq!(guest.run(), Step::Idle);
    // The new frames lie close together: spread them again.
    guest.to(all.len() as u32);
    let keep: Vec<_> = guest.listed().into_iter().step_by(8).collect();
    assert!(keep.iter().all(|&frame| mobility.isolate(frame)));
    guest.to(keep.len() as u32);
    mobility.putback_movable_frames(&keep);
    guest.clock.now.fetch_add(10_000_000_000, Ordering::SeqCst);
    let result = mobility.compact_direct(CPU, FrameClass::Movable);
    assert!(matches!(result, CompactResult::Captured(_)), "{result:?}");
    assert_eq!(guest.host.size(), keep.len() as u64);
    guest.check();
    guest.frames.verify().unwrap();
}

/// Without mobility they are unmovable anyway, and stay what they are.
#[test]
fn a_pinned_balloon_is_left_alone() {
    let config = BalloonConfig {
        mobility: false,
        ..BalloonConfig::default()
    };
    let guest = Guest::configured(8, config);
    guest.to(500);
    guest.host.need_reset();
    guest.balloon.handle_interrupt();
    assert_eq!(counted(&guest), (0, 0, 500));
    guest.host.set_manner(Manner::AtOnce);
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(counted(&guest), (0, 0, 500));
    guest.host.inner().never_resets = true;
    guest.balloon.reset();
    assert!(
        all_frames(guest.frames)
            .iter()
            .all(|&frame| guest.frames.state(frame) != FrameState::Listed)
    );
    guest.balloon.verify().unwrap();
    guest.frames.verify().unwrap();
}

/// The device has answered, and the ledger does not know it yet: at this moment compaction isolates a frame.
#[test]
fn a_frame_isolated_while_it_was_unmovable_comes_back_movable() {
    let guest = Guest::new(8);
    guest.to(500);
    let listed = guest.listed();
    guest.host.set_manner(Manner::OnDemand);
    assert!(guest.balloon.isolate(listed[0]));
    let mut moves = support::moves::pairs(&listed[..1], &guest.targets(1));
    guest.balloon.migrate(&mut moves);
    guest.clock.pass(6_000_000_000);
    assert!(matches!(guest.run(), Step::Failed(Fault::Silent { .. })));
    assert!(guest.is_class(listed[100], FrameClass::Unmovable));
    // The answer is taken, and what follows from it is being sent.
    let (balloon, mut wanted) = (guest.balloon, Some(listed[100]));
    guest.host.inner().on_notify = Some(Box::new(move |_| {
        assert!(wanted.take().is_none_or(|frame| balloon.isolate(frame)));
    }));
    assert!(guest.host.answer_one());
    guest.balloon.handle_interrupt();
    assert_eq!(guest.frames.state(listed[100]), FrameState::Isolated);
    guest.balloon.putback(listed[100]);
    assert_eq!(counted(&guest).1, 500);
}
