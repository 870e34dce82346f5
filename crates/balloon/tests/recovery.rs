//! Devices that fail: what becomes of the frames, and how the balloon starts anew.

mod support;

use dirigible_balloon::{
    BalloonConfig, BalloonError, DeviceError, Fault, Held, Step, VirtioBalloon,
};
use dirigible_frames::{AllocRequest, CpuId, FrameClass, FrameState, Pfn};
use dirigible_mobility::{MovableOwner, Outcome};
use support::host::{FakeHal, FakeTransport, GIVEN_BACK, Host, Manner, VERSION_1};
use support::moves::{pairs, relocate};
use support::{Clock, FakeBalloon, Guest, OWNER, all_frames, count, memory};

const RETRY_NS: u64 = 200_000_000;

/// All frames that the allocator gives.
fn take_all(guest: &Guest) -> Vec<Pfn> {
    core::iter::from_fn(|| {
        guest
            .frames
            .alloc(CpuId::new(0), AllocRequest::movable())
            .ok()
    })
    .collect()
}

#[test]
fn a_device_that_needs_a_reset_is_repaired_and_the_target_reached_again() {
    for offered in [VERSION_1, VERSION_1 | 1 << 1, VERSION_1 | 1 << 2] {
        let host = Host::offering(offered);
        let guest = Guest::with(memory(&[8]), host, BalloonConfig::default());
        let (free, managed) = (guest.frames.free_frames(), guest.frames.managed_frames());
        guest.to(1300);
        guest.host.set_manner(Manner::OnDemand);
        assert_eq!(guest.to(1900), Step::Waiting);
        guest.host.need_reset();
        guest.balloon.handle_interrupt();
        assert_eq!(guest.balloon.fault(), Some(Fault::NeedsReset));
        guest.host.set_manner(Manner::AtOnce);
        assert_eq!(guest.run(), Step::Idle);
        assert_eq!((guest.host.size(), guest.host.actual()), (1900, 1900));
        assert_eq!(guest.balloon.fault(), None);
        let stats = guest.balloon.stats();
        assert_eq!((stats.restarts, stats.forgotten), (1, 1300));
        guest.to(0);
        assert_eq!(guest.frames.free_frames(), free);
        assert_eq!(guest.frames.managed_frames(), managed);
        guest.frames.verify().unwrap();
    }
}

/// No interrupt came, or it was lost: the status of a device that leaves requests unanswered is read, and not in each
/// step.
#[test]
fn a_silent_device_is_asked_whether_it_needs_a_reset() {
    let guest = Guest::new(8);
    guest.to(300);
    guest.host.set_manner(Manner::Never);
    guest.to(900);
    guest.balloon.handle_interrupt();
    let reads = || guest.host.inner().status_reads;
    let before = reads();
    for _ in 0..100 {
        guest.balloon.handle_interrupt();
        guest.balloon.step(&guest.source, 4);
    }
    // Once, as an interrupt without a status may mean that; not again while it has time to answer.
    assert!(reads() <= before + 1);
    let before = reads();
    guest.clock.pass(6_000_000_000);
    for _ in 0..100 {
        let step = guest.balloon.step(&guest.source, 4);
        assert!(matches!(step, Step::Failed(Fault::Silent { .. })));
    }
    assert!((1..=2).contains(&(reads() - before)));
    guest.host.need_reset();
    guest.host.inner().isr = 0;
    guest.clock.pass(RETRY_NS);
    guest.balloon.step(&guest.source, 4);
    guest.host.set_manner(Manner::AtOnce);
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.host.size(), 900);
}

#[test]
fn restarts_are_bounded_and_keep_their_distance() {
    let guest = Guest::new(8);
    guest.to(300);
    // The device fails again at once, each time.
    let breaks = |guest: &Guest| {
        guest.host.need_reset();
        guest.balloon.handle_interrupt();
        guest.balloon.step(&guest.source, 4)
    };
    assert_eq!(breaks(&guest), Step::Waiting);
    for turn in 2..=4 {
        let Step::RetryAt(at) = breaks(&guest) else {
            panic!("restart {turn} at once")
        };
        let now = guest.clock.now.load(std::sync::atomic::Ordering::SeqCst);
        assert!(now < at && at <= now + RETRY_NS);
        guest.clock.pass(RETRY_NS);
        assert_eq!(guest.balloon.step(&guest.source, 4), Step::Waiting);
        assert_eq!(guest.balloon.stats().restarts, turn);
    }
    guest.clock.pass(RETRY_NS);
    assert_eq!(breaks(&guest), Step::Failed(Fault::NeedsReset));
    // It has been reset once more, to get its frames back.
    assert_eq!(guest.balloon.held(), Held::default());
    assert_eq!(guest.frames.free_frames(), 8 * 512);
    let resets = guest.host.inner().resets;
    guest.clock.pass(1 << 40);
    assert_eq!(breaks(&guest), Step::Failed(Fault::NeedsReset));
    assert_eq!(guest.host.inner().resets, resets);
    // A caller may try it again. With an answer the count begins anew.
    guest.host.set_manner(Manner::AtOnce);
    guest.balloon.restart().unwrap();
    assert_eq!(guest.run(), Step::Idle);
    for _ in 0..9 {
        guest.clock.pass(RETRY_NS);
        guest.host.need_reset();
        guest.balloon.handle_interrupt();
        guest.host.set_manner(Manner::AtOnce);
        assert_eq!(guest.run(), Step::Idle);
    }
    assert_eq!(
        (guest.host.size(), guest.balloon.stats().restarts),
        (300, 14)
    );
}

#[test]
fn a_confirmed_reset_gives_everything_back() {
    let guest = Guest::configured(8, BalloonConfig::default());
    let (free, managed) = (guest.frames.free_frames(), guest.frames.managed_frames());
    guest.to(1200);
    let isolated: Vec<_> = guest.listed().into_iter().step_by(50).collect();
    assert!(isolated.iter().all(|&frame| guest.balloon.isolate(frame)));
    guest.host.set_manner(Manner::OnDemand);
    guest.to(900);
    let held = guest.balloon.reset();
    assert_eq!(held.total(), 1200);
    let left = Held {
        isolated: isolated.len() as u64,
        ..Held::default()
    };
    assert_eq!((guest.balloon.held(), guest.balloon.actual()), (left, 0));
    guest.balloon.verify().unwrap();
    // Those in compaction's hands do not move any more; put back they are the guest's.
    let to = guest.targets(2);
    let mut moves = pairs(&isolated[..2], &to);
    guest.balloon.migrate(&mut moves);
    assert!(moves.iter().all(|pair| pair.outcome == Outcome::Refused));
    guest.free(&to);
    for &frame in &isolated {
        guest.balloon.putback(frame);
        assert_eq!(guest.frames.state(frame), FrameState::Free);
    }
    assert!(guest.settled().is_empty());
    assert_eq!(guest.frames.free_frames(), free);
    assert_eq!(guest.frames.managed_frames(), managed);
    guest.frames.verify().unwrap();
    assert_eq!(guest.run(), Step::Failed(Fault::Removed));
}

/// Isolated before the reset, put back after the restart: it is not the new balloon's.
#[test]
fn a_frame_isolated_over_a_restart_is_the_guests() {
    let guest = Guest::new(8);
    let managed = guest.frames.managed_frames();
    guest.to(400);
    let old = guest.listed()[7];
    assert!(guest.balloon.isolate(old));
    guest.balloon.reset();
    guest.balloon.restart().unwrap();
    assert_eq!(guest.to(200), Step::Idle);
    let new = guest.listed()[7];
    assert!(guest.balloon.isolate(new));
    assert_eq!(guest.balloon.held().isolated, 2);
    guest.balloon.putback(old);
    guest.balloon.putback(new);
    assert_eq!(guest.frames.state(old), FrameState::Free);
    assert_eq!(guest.frames.state(new), FrameState::Listed);
    assert_eq!(guest.host.size(), 200);
    assert_eq!(guest.to(0), Step::Idle);
    assert_eq!(guest.frames.managed_frames(), managed);
    guest.frames.verify().unwrap();
}

/// Nobody gets a frame that the host may still have, until a reset is confirmed.
#[test]
fn an_unconfirmed_reset_gives_nothing_back_and_a_later_one_all() {
    let guest = Guest::new(8);
    let (free, managed) = (guest.frames.free_frames(), guest.frames.managed_frames());
    guest.to(700);
    guest.host.set_manner(Manner::OnDemand);
    guest.to(1000);
    let isolated = guest.listed()[3];
    assert!(guest.balloon.isolate(isolated));
    guest.host.inner().never_resets = true;
    let held = guest.balloon.reset();
    assert_eq!((held.total(), guest.balloon.held().total()), (1000, 1000));
    guest.balloon.verify().unwrap();
    guest.balloon.putback(isolated);
    guest.balloon.verify().unwrap();
    assert_eq!(guest.balloon.held().total(), 1000);
    // Neither compaction nor an allocation gets them.
    assert_eq!(count(guest.frames, FrameState::Listed), 0);
    assert_eq!(guest.frames.class_frames().balloon, 300);
    let rest = take_all(&guest);
    assert_eq!(rest.len() as u64, free - 1000);
    assert!(
        rest.iter()
            .all(|frame| !guest.host.inner().has.contains(&(frame.get() as u32)))
    );
    guest.free(&rest);
    let error = guest.balloon.restart();
    assert_eq!(error, Err(BalloonError::Device(DeviceError::NoReset)));
    guest.host.inner().never_resets = false;
    assert_eq!(guest.balloon.reset().total(), 1000);
    assert_eq!(
        guest.frames.free_frames() + guest.frames.cached_frames(),
        free
    );
    assert_eq!(guest.frames.managed_frames(), managed);
    guest.host.set_manner(Manner::AtOnce);
    guest.balloon.restart().unwrap();
    assert_eq!(guest.to(500), Step::Idle);
    guest.frames.verify().unwrap();
}

type Probe = VirtioBalloon<'static, FakeHal, FakeTransport, Clock>;

/// Another driver with the same owner number, with a device of its own or the same one.
fn probe(guest: &Guest, host: &Host) -> Probe {
    let config = BalloonConfig::default();
    VirtioBalloon::new(host.transport(), guest.frames, guest.clock, OWNER, config).unwrap()
}

fn finds_nothing(guest: &Guest, second: &Probe, host: &Host) {
    for frame in all_frames(guest.frames) {
        assert!(!second.isolate(frame));
    }
    assert_eq!((second.held(), second.fault()), (Held::default(), None));
    second.verify().unwrap();
    host.set_target(150);
    assert_eq!(second.step(&guest.source, 4), Step::Idle);
    host.set_target(0);
    assert_eq!(second.step(&guest.source, 4), Step::Idle);
    second.shutdown().unwrap();
    guest.frames.verify().unwrap();
}

#[test]
fn a_second_probe_finds_nothing_of_the_first() {
    // After a reset that was confirmed, and after one that was not.
    for never_resets in [false, true] {
        let guest = Guest::new(8);
        guest.to(301);
        let isolated = guest.listed()[100];
        assert!(guest.balloon.isolate(isolated));
        guest.host.inner().never_resets = never_resets;
        let held = guest.balloon.reset();
        assert_eq!(held.listed, 300);
        let host = Host::new();
        let second = probe(&guest, &host);
        // Not even what the first has in compaction's hands.
        second.putback(isolated);
        assert_eq!(guest.frames.state(isolated), FrameState::Isolated);
        finds_nothing(&guest, &second, &host);
        guest.balloon.verify().unwrap();
        guest.balloon.putback(isolated);
        let kept = if never_resets { 301 } else { 0 };
        assert_eq!(guest.balloon.held().total(), kept);
    }
}

fn dropped(never_resets: bool) -> (Guest, Host) {
    let guest = Guest::new(8);
    let host = Host::new();
    let first: FakeBalloon = probe(&guest, &host);
    host.set_target(300);
    assert_eq!(first.step(&guest.source, 4), Step::Idle);
    host.set_manner(Manner::OnDemand);
    host.set_target(200);
    first.step(&guest.source, 4);
    host.inner().never_resets = never_resets;
    let before = GIVEN_BACK.get();
    drop(first);
    // Two rings of two parts each, the buffers, and the frame numbers, of which no device knows.
    let given_back = if never_resets { 1 } else { 6 };
    assert_eq!(GIVEN_BACK.get() - before, given_back);
    host.inner().never_resets = false;
    host.set_manner(Manner::AtOnce);
    (guest, host)
}

#[test]
fn a_dropped_balloon_gives_its_frames_back() {
    let (guest, host) = dropped(false);
    assert!(host.inner().dropped);
    assert_eq!(guest.frames.free_frames(), guest.frames.managed_frames());
    assert_eq!(guest.frames.managed_frames(), 8 * 512);
    let second = probe(&guest, &host);
    finds_nothing(&guest, &second, &host);
}

/// The transport is not dropped, as its `drop` may wait for ever, and what the host may have is nobody's.
#[test]
fn a_balloon_dropped_with_a_device_that_takes_no_reset_leaks_what_it_must() {
    let (guest, host) = dropped(true);
    assert!(!host.inner().dropped);
    let lost: Vec<_> = all_frames(guest.frames)
        .into_iter()
        .filter(|&frame| guest.frames.state(frame) != FrameState::Free)
        .collect();
    assert_eq!(lost.len(), 300);
    for &frame in &lost {
        let info = guest.frames.frame(frame).unwrap();
        assert_eq!(
            (info.state, info.class),
            (FrameState::Allocated, FrameClass::Unmovable)
        );
        assert_eq!(info.owner, dirigible_frames::OwnerId::NONE);
    }
    let second = probe(&guest, &host);
    finds_nothing(&guest, &second, &host);
}

#[test]
fn a_shutdown_of_a_device_that_needs_a_reset_ends_well() {
    let guest = Guest::new(8);
    let free = guest.frames.free_frames();
    guest.to(600);
    guest.host.need_reset();
    guest.balloon.handle_interrupt();
    assert_eq!(guest.balloon.shutdown(), Ok(()));
    assert_eq!(guest.frames.free_frames(), free);
    assert_eq!(guest.run(), Step::Failed(Fault::Removed));
}

#[test]
fn a_balloon_that_was_shut_down_starts_again() {
    let guest = Guest::new(8);
    guest.to(600);
    guest.balloon.shutdown().unwrap();
    guest.host.set_target(250);
    guest.balloon.restart().unwrap();
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!((guest.host.size(), guest.host.actual()), (250, 250));
    let from = guest.listed()[..20].to_vec();
    let to = guest.targets(20);
    let outcomes = relocate(&guest, &from, &to);
    assert!(outcomes.iter().all(|&outcome| outcome == Outcome::Moved));
}

/// It takes a few milliseconds, and reads of its status take no time.
#[test]
fn a_reset_that_takes_its_time_is_waited_for() {
    let guest = Guest::new(8);
    let free = guest.frames.free_frames();
    guest.to(600);
    guest.host.inner().reset_takes = 5000;
    guest.balloon.reset();
    assert_eq!(guest.balloon.held(), Held::default());
    assert_eq!(guest.frames.free_frames(), free);
    guest.host.inner().reset_takes = 0;
    guest.balloon.restart().unwrap();
    assert_eq!(guest.to(200), Step::Idle);
}

#[test]
fn a_shutdown_says_that_the_reset_was_not_confirmed() {
    let guest = Guest::new(8);
    guest.to(600);
    guest.host.inner().never_resets = true;
    assert_eq!(guest.balloon.shutdown(), Err(Fault::NoReset));
    assert_eq!(guest.balloon.held(), Held::default());
    assert_eq!(guest.host.size(), 0);
    guest.host.inner().never_resets = false;
    assert_eq!(guest.balloon.shutdown(), Ok(()));
}

/// While the device is being set up, another CPU resets it and cannot get at it: the set-up is given up, and what comes
/// later is a balloon like any other.
#[test]
fn a_reset_without_the_transport_ends_a_start() {
    for is_repair in [false, true] {
        let config = BalloonConfig {
            shutdown_timeout_ns: 10_000_000,
            ..BalloonConfig::default()
        };
        let guest = Guest::configured(8, config);
        guest.to(300);
        if is_repair {
            guest.host.need_reset();
            guest.balloon.handle_interrupt();
            guest.host.set_manner(Manner::AtOnce);
        } else {
            guest.balloon.reset();
        }
        let balloon = guest.balloon;
        let mut is_first = true;
        guest.host.inner().on_config = Some(Box::new(move || {
            if core::mem::take(&mut is_first) {
                balloon.reset();
            }
        }));
        if is_repair {
            let step = guest.balloon.step(&guest.source, 4);
            assert_eq!(step, Step::Failed(Fault::Removed));
        } else {
            let ended = Err(BalloonError::Fault(Fault::Removed));
            assert_eq!(guest.balloon.restart(), ended);
        }
        assert_eq!(guest.balloon.fault(), Some(Fault::Removed));
        assert_eq!(guest.host.inner().status, 0);
        guest.balloon.restart().unwrap();
        assert_eq!(guest.run(), Step::Idle);
        guest.balloon.handle_interrupt();
        assert_eq!(guest.balloon.held().listed, 300);
        assert_eq!(guest.listed().len(), 300);
        assert_eq!(guest.to(0), Step::Idle);
    }
}
