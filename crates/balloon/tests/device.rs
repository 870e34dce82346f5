//! Devices that number their queues, answer or negotiate in unusual ways.

mod support;

use dirigible_balloon::{
    BalloonConfig, BalloonError, DeviceError, Fault, Features, MAX_PFNS, Step, VirtioBalloon,
};
use dirigible_frames::{AllocRequest, CpuId, FrameState};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use support::host::{FakeHal, FakeTransport, GIVEN_BACK, Host, Manner, VERSION_1};
use support::{Clock, Guest, OWNER, all_frames, count, memory};
use virtio_drivers::transport::DeviceType;

const STATS: u64 = 1 << 1;
const HINT: u64 = 1 << 3;

fn on(host: Host) -> Guest {
    Guest::with(memory(&[4]), host, BalloonConfig::default())
}

fn attempt(
    host: &Host,
) -> Result<VirtioBalloon<'static, FakeHal, FakeTransport, Clock>, BalloonError> {
    let clock: &'static Clock = Box::leak(Box::default());
    let frames = memory(&[2]);
    VirtioBalloon::new(
        host.transport(),
        frames,
        clock,
        OWNER,
        BalloonConfig::default(),
    )
}

#[test]
fn negotiates_what_it_should() {
    let host = Host::offering(!(1 << 34));
    let guest = on(host.clone());
    assert_eq!(guest.balloon.features(), Features::accepted(false));
    // A guest that does not ask before it runs out of memory does not accept the feature.
    let refused = [2, 4, 5, 28, 29, 33];
    assert!(
        refused
            .iter()
            .all(|bit| host.inner().negotiated & 1 << bit == 0)
    );
    guest.to(100);
    guest.to(0);
    let config = BalloonConfig {
        deflate_on_oom: true,
        ..BalloonConfig::default()
    };
    let guest = Guest::with(memory(&[2]), Host::offering(!(1 << 34)), config);
    assert_eq!(guest.balloon.features(), Features::accepted(true));
}

#[test]
fn pitfall_33_fixed_numbers_where_the_dense_one_is_empty() {
    let host = Host::offering(VERSION_1 | HINT);
    host.inner().sizes = [16, 16, 0, 16, 0];
    let guest = on(host.clone());
    guest.to(10);
    // A device that has the queue at neither number cannot be used: an error.
    let host = Host::offering(VERSION_1 | HINT);
    host.inner().sizes = [16, 16, 0, 0, 0];
    assert!(matches!(
        attempt(&host).err(),
        Some(BalloonError::Device(DeviceError::Queue { .. }))
    ));
}

#[test]
fn devices_that_cannot_be_used_are_refused() {
    let host = Host::new();
    host.inner().kind = Some(DeviceType::Block);
    let error = attempt(&host).err();
    assert_eq!(
        error,
        Some(BalloonError::Device(DeviceError::NotABalloon(
            DeviceType::Block
        )))
    );
    let host = Host::new();
    host.inner().refuses_features = true;
    let error = attempt(&host).err();
    assert!(matches!(
        error,
        Some(BalloonError::Device(DeviceError::FeaturesRefused(_)))
    ));
    let host = Host::new();
    host.inner().sizes = [128, 8, 128, 128, 128];
    assert!(matches!(
        attempt(&host).err(),
        Some(BalloonError::Device(DeviceError::Queue { .. }))
    ));
}

#[test]
fn a_configuration_that_cannot_be_read() {
    let guest = on(Host::new());
    guest.to(500);
    for _ in 0..2 {
        guest.host.inner().unreadable = true;
        assert_eq!(guest.to(700), Step::Failed(Fault::Config));
        assert_eq!(guest.host.size(), 500);
        guest.host.inner().unreadable = false;
        assert_eq!(guest.to(500), Step::Idle);
    }
    guest.host.inner().unreadable = true;
    assert_eq!(guest.run(), Step::Failed(Fault::Config));
    assert_eq!(guest.balloon.shutdown(), Ok(()));
    assert_eq!((guest.host.size(), guest.host.actual()), (0, 0));
}

#[test]
fn pitfall_30_one_statistics_buffer_primed_and_refilled() {
    let guest = on(Host::offering(VERSION_1 | STATS));
    assert_eq!(guest.host.inner().stats.len(), 1, "primed after DRIVER_OK");
    let value = |report: &[u8], tag: u16| {
        let entry = report
            .chunks_exact(10)
            .find(|entry| entry[..2] == tag.to_le_bytes())
            .unwrap();
        u64::from_le_bytes(entry[2..].try_into().unwrap())
    };
    let total = guest.frames.managed_frames() * 4096;
    let first = guest.host.inner().stats[0].clone();
    assert_eq!(first.len(), 20);
    assert_eq!((value(&first, 4), value(&first, 5)), (total, total));
    guest.to(100);
    guest.balloon.handle_interrupt();
    assert_eq!(guest.host.inner().stats.len(), 1, "not refilled unasked");
    guest.host.inner().ask_stats();
    guest.balloon.handle_interrupt();
    assert_eq!(guest.host.inner().stats.len(), 2);
    let second = guest.host.inner().stats[1].clone();
    assert_eq!(value(&second, 4), total - 100 * 4096);
    assert_eq!(guest.host.inner().stats_out.len(), 1);
    guest.check();
}

#[test]
fn pitfall_31_statistics_during_an_inflation_that_waits() {
    let guest = on(Host::offering(VERSION_1 | STATS));
    guest.host.set_manner(Manner::Never);
    assert_eq!(guest.to(500), Step::Waiting);
    guest.host.inner().ask_stats();
    guest.balloon.step(&guest.source, 1);
    assert_eq!(guest.host.inner().stats.len(), 2);
}

#[test]
fn never_answers() {
    let guest = on(Host::new());
    guest.to(200);
    guest.host.set_manner(Manner::Never);
    assert_eq!(guest.to(1500), Step::Waiting);
    let sent = guest.host.messages();
    let entering = guest.balloon.held().entering;
    assert!(entering > 0 && entering <= 4 * MAX_PFNS as u64);
    // After the deadline it is reported each time, and no more is sent.
    guest.clock.pass(6_000_000_000);
    for _ in 0..3 {
        assert!(matches!(
            guest.run(),
            Step::Failed(Fault::Silent {
                waited_ns: 5_000_000_001..
            })
        ));
    }
    assert_eq!(guest.host.messages(), sent);
    let frame = guest.listed()[0];
    assert!(!guest.balloon.isolate(frame), "a move would never end");
    // Removal is bounded, and its error names the reason.
    assert!(matches!(
        guest.balloon.shutdown(),
        Err(Fault::Silent { .. })
    ));
    // Late answers are taken: the balloon that is being removed becomes empty after all.
    guest.host.set_manner(Manner::AtOnce);
    while guest.host.answer_one() {}
    assert_eq!(guest.balloon.shutdown(), Ok(()));
    guest.frames.verify().unwrap();
    assert_eq!(guest.host.size(), 0);
}

#[test]
fn never_answers_and_is_reset() {
    let guest = on(Host::new());
    let total = guest.frames.free_frames();
    guest.to(200);
    guest.host.set_manner(Manner::Never);
    guest.to(120);
    let held = guest.balloon.reset();
    assert_eq!((held.listed, held.leaving), (120, 80));
    // The device has confirmed that it has forgotten them: all are the guest's.
    assert_eq!(guest.frames.free_frames(), total);
    assert_eq!(guest.balloon.held().total(), 0);
    assert_eq!(count(guest.frames, FrameState::Leaving), 0);
    assert_eq!(guest.run(), Step::Failed(Fault::Removed));
}

#[test]
fn answers_twice() {
    let guest = on(Host::new());
    guest.to(300);
    guest.host.set_manner(Manner::Twice);
    let fault = guest.to(600);
    assert!(
        matches!(fault, Step::Failed(Fault::Protocol { errors: 1.. })),
        "{fault:?}"
    );
    assert!(guest.balloon.stats().protocol_errors >= 1);
    // What the first answer settled counts; the rest stays as it is.
    guest.check();
    assert_eq!(guest.balloon.actual(), guest.host.size());
    assert!(!guest.balloon.isolate(guest.listed()[0]));
    assert!(guest.balloon.shutdown().is_err());
    let size = guest.host.size();
    assert_eq!(guest.balloon.reset().total(), size);
    assert_eq!(guest.balloon.held().total(), 0);
    guest.frames.verify().unwrap();
}

#[test]
fn answers_what_nobody_asked() {
    for id in [0, 1, 15, 16, 4711, u16::MAX] {
        for queue in [0, 1] {
            let guest = on(Host::new());
            guest.to(10);
            guest.host.inner().use_again(queue, id);
            guest.balloon.handle_interrupt();
            let fault = guest.to(20);
            assert!(
                matches!(fault, Step::Failed(Fault::Protocol { .. })),
                "{id} {fault:?}"
            );
            assert_eq!(count(guest.frames, FrameState::Listed), 10);
            guest.check();
        }
    }
}

#[test]
fn answers_on_the_used_ring_run_ahead() {
    // The used index jumps: all old entries of the ring appear again.
    let guest = on(Host::new());
    guest.to(1000);
    for _ in 0..20 {
        guest.host.inner().use_again(0, 0);
    }
    guest.balloon.handle_interrupt();
    assert!(matches!(
        guest.balloon.fault(),
        Some(Fault::Protocol { .. })
    ));
    guest.balloon.verify().unwrap();
}

#[test]
fn interrupts_inside_the_notification() {
    let guest = on(Host::new());
    let balloon = guest.balloon;
    guest.host.inner().on_notify = Some(Box::new(move |_| balloon.handle_interrupt()));
    guest.to(700);
    let from = guest.listed();
    let to = guest.targets(700);
    assert!(from.iter().all(|&frame| guest.balloon.isolate(frame)));
    let mut pairs: Vec<_> = from
        .iter()
        .zip(&to)
        .map(|(&from, &to)| MovePair::base(from, to))
        .collect();
    guest.balloon.migrate(&mut pairs);
    assert!(pairs.iter().all(|pair| pair.outcome == Outcome::Moved));
    guest.free(&from);
    guest.to(0);
    guest.frames.verify().unwrap();
}

/// The lock of the books is free in every call of the device: otherwise a call of the balloon from there would hang.
#[test]
fn no_books_lock_while_the_device_is_spoken_to() {
    let guest = on(Host::new());
    let balloon = guest.balloon;
    let spoken = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = move || {
        balloon.held();
        spoken.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    };
    let on_notify = count.clone();
    guest.host.inner().on_notify = Some(Box::new(move |_| on_notify()));
    guest.host.inner().on_config = Some(Box::new(count));
    guest.to(700);
    let (from, to) = (guest.listed()[0], guest.targets(1)[0]);
    assert!(guest.balloon.isolate(from));
    guest.balloon.migrate(&mut [MovePair::base(from, to)]);
    guest.free(&[from]);
    guest.to(100);
    guest.balloon.shutdown().unwrap();
}

#[test]
fn requests_are_short_and_ascending() {
    let guest = on(Host::new());
    // Holes everywhere, so that neither source nor list is in order.
    let mut frames = vec![Default::default(); 1500];
    let cpu = CpuId::new(0);
    assert_eq!(
        guest
            .frames
            .alloc_bulk(cpu, AllocRequest::movable(), &mut frames),
        1500
    );
    let odd: Vec<_> = frames
        .iter()
        .copied()
        .filter(|frame| frame.get() % 3 == 1)
        .collect();
    guest.free(&odd);
    guest.to(900);
    guest.to(0);
    assert_eq!(guest.host.inner().longest, MAX_PFNS);
    assert!(
        all_frames(guest.frames)
            .iter()
            .all(|&f| guest.frames.state(f) != FrameState::Listed)
    );
}

#[test]
fn answers_in_a_thread_of_its_own() {
    let guest = on(Host::new());
    guest.host.set_manner(Manner::OnDemand);
    let (host, balloon) = (guest.host.clone(), guest.balloon);
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = over.clone();
    let device = std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            if host.answer_one() {
                balloon.handle_interrupt();
            } else {
                std::thread::yield_now();
            }
        }
    });
    let settle = |target: u32| {
        guest.host.set_target(target);
        while guest.balloon.step(&guest.source, 8) != Step::Idle {
            std::thread::yield_now();
        }
        assert_eq!(guest.balloon.actual(), u64::from(target));
    };
    for _ in 0..20 {
        settle(1200);
        settle(100);
    }
    guest.balloon.shutdown().unwrap();
    over.store(true, std::sync::atomic::Ordering::SeqCst);
    device.join().unwrap();
    guest.check();
    guest.frames.verify().unwrap();
}

/// The second queue cannot be set up, and the device knows where the first one is.
#[test]
fn memory_of_a_set_up_that_fails_waits_for_the_reset() {
    for never_resets in [false, true] {
        let host = Host::new();
        host.inner().sizes = [128, 8, 128, 128, 128];
        host.inner().never_resets = never_resets;
        let before = GIVEN_BACK.get();
        assert!(attempt(&host).is_err());
        // The frame numbers, of which no device knows; a ring of two parts, and the buffers.
        let given_back = if never_resets { 1 } else { 4 };
        assert_eq!(GIVEN_BACK.get() - before, given_back);
    }
}
