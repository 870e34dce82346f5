//! The interrupt line, which must come down whatever the balloon does at that moment, and the configuration space,
//! which is left alone while the host has work.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dirigible_balloon::{BalloonConfig, Fault, Step};
use dirigible_mobility::MovableOwner;
use support::host::{Host, ISR_CONFIG, ISR_QUEUE, Manner, VERSION_1};
use support::moves::pairs;
use support::{Guest, Source, memory};
use virtio_drivers::transport::InterruptStatus;

/// What a level-triggered line does to the CPU: the handler is called again and again until the line is down.
fn serve_line(guest: &Guest) {
    for _ in 0..3 {
        if !guest.host.line_is_up() {
            return;
        }
        guest.balloon.handle_interrupt();
    }
    panic!("the line stays up");
}

fn raise(guest: &Guest, why: u32) {
    guest.host.inner().isr |= why;
    serve_line(guest);
}

#[test]
fn the_line_comes_down() {
    let guest = Guest::new(8);
    for why in [ISR_QUEUE, ISR_CONFIG, ISR_QUEUE | ISR_CONFIG] {
        raise(&guest, why);
    }
    guest.host.set_manner(Manner::OnDemand);
    guest.to(1000);
    while guest.host.answer_one() {
        serve_line(&guest);
        // And while a deflation waits that the host has not answered.
        raise(&guest, ISR_CONFIG);
    }
    assert_eq!(guest.balloon.actual(), 1000);
}

#[test]
fn the_line_comes_down_after_the_end() {
    // Shut down in order, reset with requests out, and broken.
    for end in 0..3 {
        let guest = Guest::new(8);
        guest.to(600);
        match end {
            0 => guest.balloon.shutdown().unwrap(),
            1 => {
                guest.host.set_manner(Manner::Never);
                guest.to(100);
                guest.balloon.reset();
            }
            _ => {
                guest.host.inner().use_again(0, 4711);
                guest.balloon.handle_interrupt();
                assert!(matches!(
                    guest.balloon.fault(),
                    Some(Fault::Protocol { .. })
                ));
            }
        }
        let messages = guest.host.messages();
        for why in [ISR_QUEUE, ISR_CONFIG, ISR_QUEUE | ISR_CONFIG] {
            raise(&guest, why);
        }
        assert_eq!(guest.host.messages(), messages);
        assert!(matches!(guest.run(), Step::Failed(_)));
    }
}

/// The line rises while the driver is at the transport, and the handler runs inside that call: it cannot do anything
/// then. The driver has to look again when it has let go, as no other call comes.
#[test]
fn the_line_comes_down_though_the_device_is_in_use() {
    let guest = Guest::new(8);
    let (balloon, host) = (guest.balloon, guest.host.clone());
    let times = Arc::new(AtomicU64::new(0));
    let count = times.clone();
    guest.host.inner().on_config = Some(Box::new(move || {
        host.inner().isr |= ISR_QUEUE | ISR_CONFIG;
        balloon.handle_interrupt();
        count.fetch_add(1, Ordering::SeqCst);
    }));
    guest.host.inner().on_notify = Some(Box::new(move |inner| {
        inner.isr |= ISR_QUEUE;
        balloon.handle_interrupt();
    }));
    for target in [700, 100] {
        guest.to(target);
        assert!(!guest.host.line_is_up());
    }
    // The last access of all is in the reset.
    let before = times.load(Ordering::SeqCst);
    guest.balloon.reset();
    assert_eq!(times.load(Ordering::SeqCst), before + 1);
    assert!(!guest.host.line_is_up());
}

/// The accesses that `work` makes: targets read, sizes written.
fn accesses(guest: &Guest, work: impl FnOnce()) -> (u64, u64) {
    let before = guest.host.config_accesses();
    work();
    let after = guest.host.config_accesses();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn one_step_reads_once_and_writes_once() {
    let guest = Guest::new(16);
    for target in [16 * 256, 0] {
        guest.host.set_target(target);
        let before = guest.host.messages();
        let made = accesses(&guest, || {
            assert_eq!(guest.balloon.step(&guest.source, 16), Step::Idle);
        });
        assert_eq!(made, (1, 1));
        assert_eq!(guest.host.messages() - before, 16);
        assert_eq!(guest.host.actual(), u64::from(target));
        // With the interrupt it is read once more: it may be yet another one.
        let made = accesses(&guest, || {
            guest.balloon.handle_interrupt();
            assert_eq!(guest.balloon.step(&guest.source, 16), Step::Idle);
        });
        assert_eq!(made, (1, 0));
    }
}

#[test]
fn a_change_in_the_middle_of_a_step_is_heeded() {
    let guest = Guest::new(16);
    let (balloon, host) = (guest.balloon, guest.host.clone());
    let mut asked = 0;
    guest.source.set_meanwhile(move || {
        asked += 1;
        if asked == 3 {
            host.set_target(600);
            balloon.handle_interrupt();
        }
    });
    guest.host.set_target(4096);
    let made = accesses(&guest, || {
        assert_eq!(guest.balloon.step(&guest.source, 16), Step::Idle);
    });
    assert_eq!((guest.host.size(), guest.host.actual()), (600, 600));
    assert_eq!(made.0, 2);
}

/// Each access would wait until the host has served everything, and then the host would wait for us.
#[test]
fn a_busy_host_is_left_alone() {
    let guest = Guest::new(16);
    let target = 4096;
    guest.host.set_manner(Manner::OnDemand);
    guest.host.set_target(target);
    guest.balloon.handle_interrupt();
    assert_eq!(guest.balloon.step(&guest.source, 16), Step::Waiting);
    let made = accesses(&guest, || {
        for _ in 0..12 {
            assert!(guest.host.answer_one());
            guest.balloon.handle_interrupt();
            assert_eq!(guest.balloon.step(&guest.source, 16), Step::Waiting);
            assert_eq!(guest.host.inner().waiting.len(), 4);
        }
    });
    assert_eq!(made, (0, 0));
    // Somebody may watch the balloon grow: the size is written now and then.
    guest.clock.pass(100_000_000);
    let made = accesses(&guest, || {
        guest.balloon.step(&guest.source, 16);
    });
    assert_eq!(made, (1, 1));
    assert_eq!(guest.host.actual(), guest.balloon.actual());
    // With the last answer the size is written, without a step.
    let made = accesses(&guest, || {
        while guest.host.answer_one() {
            guest.balloon.handle_interrupt();
        }
    });
    assert_eq!(made, (0, 1));
    assert_eq!(guest.host.actual(), u64::from(target));
    assert_eq!(guest.run(), Step::Idle);
}

#[test]
fn a_change_while_the_host_is_busy() {
    for told in [true, false] {
        let guest = Guest::new(16);
        guest.host.set_manner(Manner::OnDemand);
        guest.host.set_target(4096);
        guest.balloon.step(&guest.source, 16);
        guest.host.set_target(512);
        if told {
            guest.balloon.handle_interrupt();
        } else {
            // The interrupt was lost: it takes longer, not for ever.
            guest.balloon.step(&guest.source, 16);
            assert_eq!(guest.balloon.requested(), 4096);
            guest.clock.pass(100_000_000);
        }
        guest.balloon.step(&guest.source, 16);
        assert_eq!(guest.balloon.requested(), 512);
        guest.host.set_manner(Manner::AtOnce);
        while guest.host.answer_one() {}
        assert_eq!(guest.run(), Step::Idle);
        assert_eq!((guest.host.size(), guest.host.actual()), (512, 512));
    }
}

#[test]
fn statistics_do_not_wait_for_the_end() {
    let host = Host::offering(VERSION_1 | 1 << 1);
    let guest = Guest::with(memory(&[8]), host, BalloonConfig::default());
    guest.host.set_manner(Manner::OnDemand);
    guest.to(2000);
    guest.host.inner().ask_stats();
    let made = accesses(&guest, || serve_line(&guest));
    assert_eq!((made, guest.host.inner().stats.len()), ((0, 0), 2));
    assert!(!guest.host.line_is_up());
}

/// A handler that has read the status by itself: the line is down, and the status takes effect.
#[test]
fn a_handler_that_has_read_the_status_needs_no_transport() {
    let guest = Guest::new(16);
    guest.host.set_manner(Manner::OnDemand);
    guest.host.set_target(4096);
    guest.balloon.step(&guest.source, 16);
    guest.host.set_target(600);
    let status = InterruptStatus::from_bits_retain(std::mem::take(&mut guest.host.inner().isr));
    guest.balloon.handle_interrupt_with(status);
    guest.balloon.step(&guest.source, 16);
    assert_eq!(guest.balloon.requested(), 600);
}

/// Under MSI-X no interrupt says why it came: a new target in the middle of the work is found all the same, and the
/// configuration space is not read for every message.
#[test]
fn an_interrupt_that_says_nothing_may_mean_a_new_target() {
    let guest = Guest::new(32);
    guest.host.set_manner(Manner::OnDemand);
    guest.host.set_target(8192);
    assert_eq!(guest.balloon.step(&guest.source, 16), Step::Waiting);
    guest.host.set_target(1500);
    let silent = InterruptStatus::empty();
    let made = accesses(&guest, || {
        for _ in 0..3 {
            assert!(guest.host.answer_one());
            guest.balloon.handle_interrupt_with(silent);
            guest.balloon.step(&guest.source, 0);
        }
    });
    assert_eq!((made.0, guest.balloon.requested()), (0, 8192));
    guest.clock.pass(100_000_000);
    let made = accesses(&guest, || {
        for _ in 0..5 {
            guest.balloon.handle_interrupt_with(silent);
            guest.balloon.step(&guest.source, 0);
        }
    });
    assert_eq!((made.0, guest.balloon.requested()), (1, 1500));
}

/// The same for a device that needs a reset.
#[test]
fn an_interrupt_that_says_nothing_may_mean_a_reset() {
    let guest = Guest::new(16);
    guest.to(600);
    guest.clock.pass(100_000_000);
    guest.host.need_reset();
    guest.host.inner().isr = 0;
    guest.balloon.handle_interrupt();
    guest.balloon.step(&guest.source, 4);
    guest.host.set_manner(Manner::AtOnce);
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.balloon.stats().restarts, 1);
    assert_eq!(guest.host.size(), 600);
}

/// Compaction is at the device, and takes the line down for another CPU. It does not read the target: whoever steps
/// meanwhile is asked to come back, though no further interrupt comes.
#[test]
fn jobs_left_with_compaction_are_not_forgotten() {
    let guest = Guest::new(8);
    guest.to(300);
    guest.host.set_manner(Manner::OnDemand);
    assert_eq!(guest.to(600), Step::Waiting);
    let from = guest.listed()[0];
    let to = guest.targets(1);
    let (balloon, source) = (guest.balloon, Source::new(guest.frames));
    let heard: &'static Mutex<Vec<Step>> = Box::leak(Box::default());
    guest.host.inner().on_notify = Some(Box::new(move |inner| {
        inner.target = 900;
        inner.isr |= ISR_CONFIG;
        balloon.handle_interrupt();
        heard.lock().unwrap().push(balloon.step(&source, 4));
    }));
    assert!(guest.balloon.isolate(from));
    let mut moves = pairs(&[from], &to);
    guest.balloon.migrate(&mut moves);
    guest.host.inner().on_notify = None;
    let heard = heard.lock().unwrap();
    assert!(
        matches!(heard[..], [Step::RetryAt(_)]),
        "with nothing to come: {heard:?}"
    );
    guest.clock.pass(1_000_000);
    guest.balloon.step(&guest.source, 4);
    assert_eq!(guest.balloon.requested(), 900);
}
