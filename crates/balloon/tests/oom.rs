//! Out-of-memory deflation: a request is kept for it, and the balloon does not grow back at once.

mod support;

use std::sync::atomic::Ordering;

use dirigible_balloon::{BalloonConfig, Step};
use support::host::{Host, Manner, VERSION_1};
use support::{Guest, memory};

const DEFLATE_ON_OOM: u64 = 1 << 2;

fn guest(blocks: u64) -> Guest {
    let host = Host::offering(VERSION_1 | DEFLATE_ON_OOM);
    let config = BalloonConfig {
        deflate_on_oom: true,
        ..BalloonConfig::default()
    };
    Guest::with(memory(&[blocks]), host, config)
}

/// Answers what waits on the deflate queue.
fn answer_deflations(guest: &Guest) {
    let mut inner = guest.host.inner();
    while let Some(at) = inner.waiting.iter().position(|request| request.queue == 1) {
        inner.answer(at);
    }
}

#[test]
fn out_of_memory_is_served_while_four_inflations_are_unanswered() {
    let guest = guest(8);
    guest.to(1000);
    guest.host.set_manner(Manner::OnDemand);
    assert_eq!(guest.to(3500), Step::Waiting);
    assert_eq!(guest.host.inner().waiting.len(), 4);
    let free = guest.frames.free_frames();
    // The host answers deflations, and leaves inflations alone.
    let back = std::thread::scope(|scope| {
        let waits = scope.spawn(|| guest.balloon.deflate_on_oom(64));
        while !waits.is_finished() {
            answer_deflations(&guest);
            std::thread::yield_now();
        }
        waits.join().unwrap()
    });
    assert_eq!(back, 64);
    assert_eq!(guest.balloon.stats().oom_deflated, 64);
    assert_eq!(guest.frames.free_frames(), free + 64);
    assert_eq!(guest.host.inner().waiting.len(), 4, "none of them answered");
    guest.check();
}

/// The kept request is with a host that does not answer: the next call ends after its time.
#[test]
fn out_of_memory_ends_in_bounded_time_with_a_silent_host() {
    let guest = guest(8);
    guest.to(1000);
    guest.host.set_manner(Manner::OnDemand);
    guest.to(3500);
    let wait = BalloonConfig::default().wait_ns;
    for _ in 0..2 {
        let before = guest.clock.now.load(Ordering::SeqCst);
        assert_eq!(guest.balloon.deflate_on_oom(64), 0);
        let waited = guest.clock.now.load(Ordering::SeqCst) - before;
        assert!((wait..2 * wait).contains(&waited), "{waited} ns");
    }
    assert_eq!(guest.balloon.held().leaving, 64);
    // Asked for, and not given back.
    assert_eq!(guest.balloon.stats().oom_deflated, 0);
    answer_deflations(&guest);
    guest.balloon.handle_interrupt();
    assert_eq!(guest.balloon.stats().oom_deflated, 64);
}

#[test]
fn pitfall_36_inflation_and_out_of_memory_do_not_chase_each_other() {
    let guest = guest(8);
    guest.to(2000);
    let rest = BalloonConfig::default().oom_rest_ns;
    let before = guest.host.messages();
    let end = guest.clock.now.load(Ordering::SeqCst) + 3 * rest;
    let mut turns = 0;
    while guest.clock.now.load(Ordering::SeqCst) < end {
        if turns % 50 == 0 {
            assert_eq!(guest.balloon.deflate_on_oom(10), 10);
        }
        let step = guest.balloon.step(&guest.source, 16);
        assert!(matches!(step, Step::RetryAt(_)), "{step:?}");
        guest.clock.pass(rest / 50);
        turns += 1;
    }
    // At a steady target: what was taken back because memory ran out, and nothing beside it.
    assert_eq!(guest.host.messages() - before, 3);
    assert_eq!(guest.balloon.actual(), 2000 - 30);
    // When it has rested it follows the target again.
    guest.clock.pass(rest);
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.balloon.actual(), 2000);
}

#[test]
fn a_new_target_ends_the_rest() {
    let guest = guest(8);
    guest.to(2000);
    assert_eq!(guest.balloon.deflate_on_oom(100), 100);
    // Neither the next step, nor an interrupt, nor the same target once more.
    for _ in 0..3 {
        guest.balloon.handle_interrupt();
        assert!(matches!(guest.to(2000), Step::RetryAt(_)));
        assert_eq!(guest.host.size(), 1900);
    }
    assert_eq!(guest.to(2001), Step::Idle);
    assert_eq!(guest.host.size(), 2001);
}

/// Inflation has found frames when the guest runs out of memory: they go back, not to the host.
#[test]
fn frames_that_inflation_has_found_go_back() {
    let guest = guest(8);
    guest.to(1000);
    let balloon = guest.balloon;
    let mut asked = 0;
    guest.source.set_meanwhile(move || {
        asked += 1;
        if asked == 1 {
            assert_eq!(balloon.deflate_on_oom(50), 50);
        }
    });
    assert!(matches!(guest.to(1200), Step::RetryAt(_)));
    assert_eq!(guest.host.size(), 950);
    assert_eq!(guest.source.given_back.load(Ordering::SeqCst), 200);
}
