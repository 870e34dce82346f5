//! Several CPUs at one device: an access to the configuration space may last as long as the host likes, and nobody else
//! waits for it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use dirigible_balloon::{BalloonConfig, Step};
use dirigible_mobility::{MovableOwner, Outcome};
use support::Guest;
use support::host::{ISR_CONFIG, Manner};
use support::moves::pairs;
use virtio_drivers::transport::InterruptStatus;

const LONG: Duration = Duration::from_secs(20);

/// Holds the next access to the configuration space: signals that it has begun, and ends it when told.
fn hold_next_access(guest: &Guest) -> (Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (let_go, may_go) = channel();
    let mut held = false;
    guest.host.inner().on_config = Some(Box::new(move || {
        if !std::mem::replace(&mut held, true) {
            begun.send(()).unwrap();
            may_go.recv_timeout(LONG).unwrap();
        }
    }));
    (has_begun, let_go)
}

#[test]
fn pitfall_05_nobody_waits_for_a_cpu_in_the_configuration_space() {
    let guest = Guest::configured(16, BalloonConfig::default());
    guest.to(1000);
    // The new target is known, and no message sent.
    guest.host.set_target(1600);
    assert_eq!(guest.balloon.step(&guest.source, 0), Step::Busy);
    let (has_begun, let_go) = hold_next_access(&guest);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            guest.host.set_target(1601);
            guest.balloon.handle_interrupt();
            guest.balloon.step(&guest.source, 0)
        });
        has_begun.recv_timeout(LONG).unwrap();
        let accesses = guest.host.config_accesses();
        // An exchange, from beginning to end; the host looks at its queues by itself, as the bell is left to the
        // reader.
        let from = guest.listed()[..500].to_vec();
        let to = guest.targets(500);
        assert!(from.iter().all(|&frame| guest.balloon.isolate(frame)));
        let mut moves = pairs(&from, &to);
        guest.balloon.migrate(&mut moves);
        assert!(moves.iter().all(|pair| pair.outcome == Outcome::Pending));
        while guest.balloon.pending_pairs() > 0 {
            guest.host.look();
            guest.balloon.poll(0);
        }
        assert_eq!(guest.settled().len(), 500);
        guest.free(&from);
        // And an inflation.
        while guest.balloon.actual() < 1600 {
            guest.balloon.step(&guest.source, 4);
            guest.host.look();
            guest
                .balloon
                .handle_interrupt_with(InterruptStatus::QUEUE_INTERRUPT);
        }
        assert_eq!(guest.host.size(), 1600);
        assert!(!reader.is_finished());
        assert_eq!(guest.host.config_accesses(), accesses);
        // What was left to the reader is done when it comes back.
        let_go.send(()).unwrap();
        assert_eq!(reader.join().unwrap(), Step::Busy);
    });
    assert_eq!(guest.host.actual(), 1600);
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.host.size(), 1601);
}

#[test]
fn pitfall_05_an_interrupt_during_a_configuration_access_is_not_lost() {
    let guest = Guest::new(16);
    guest.to(100);
    let (has_begun, let_go) = hold_next_access(&guest);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            guest.host.set_target(300);
            guest.balloon.step(&guest.source, 8)
        });
        has_begun.recv_timeout(LONG).unwrap();
        // The target changes once more, behind the access: only the reader can notice.
        guest.host.set_target(500);
        guest.balloon.handle_interrupt();
        assert!(!reader.is_finished());
        let_go.send(()).unwrap();
        assert_eq!(reader.join().unwrap(), Step::Idle);
    });
    assert_eq!(guest.host.inner().isr & ISR_CONFIG, 0);
    assert_eq!((guest.host.size(), guest.host.actual()), (500, 500));
}

/// An answer that comes while another CPU is in the configuration space is taken by the CPU that it interrupts.
#[test]
fn pitfall_05_answers_are_taken_during_a_configuration_access() {
    let guest = Guest::new(16);
    guest.to(100);
    guest.host.set_manner(Manner::OnDemand);
    assert_eq!(guest.to(400), Step::Waiting);
    guest.clock.pass(100_000_000);
    let (has_begun, let_go) = hold_next_access(&guest);
    thread::scope(|scope| {
        let reader = scope.spawn(|| guest.balloon.step(&guest.source, 8));
        has_begun.recv_timeout(LONG).unwrap();
        while guest.host.answer_one() {
            guest.balloon.handle_interrupt();
        }
        assert_eq!(guest.balloon.held().listed, 400);
        let_go.send(()).unwrap();
        reader.join().unwrap();
    });
    assert_eq!(guest.host.actual(), 400);
    assert!(!guest.host.line_is_up());
}

/// In each call of the host all locks that anybody waits for are free: another CPU does at that moment whatever it
/// likes.
#[test]
fn pitfall_04_no_lock_is_held_in_any_call_of_the_host() {
    let guest = Guest::configured(16, BalloonConfig::default());
    guest.to(600);
    let victims = guest.listed();
    let calls = Arc::new(AtomicU64::new(0));
    let work = {
        let (balloon, calls, frame) = (guest.balloon, calls.clone(), victims[0]);
        move || {
            let (done, is_done) = channel();
            thread::spawn(move || {
                if balloon.isolate(frame) {
                    balloon.putback(frame);
                }
                balloon.poll(0);
                balloon.handle_interrupt_with(InterruptStatus::QUEUE_INTERRUPT);
                balloon.handle_interrupt();
                balloon.held();
                done.send(()).unwrap();
            });
            is_done.recv_timeout(LONG).expect("a lock is held");
            calls.fetch_add(1, Ordering::SeqCst);
        }
    };
    let on_notify = work.clone();
    guest.host.inner().on_notify = Some(Box::new(move |_| on_notify()));
    guest.host.inner().on_config = Some(Box::new(work));
    guest.to(900);
    let from = victims[1..300].to_vec();
    let to = guest.targets(299);
    assert!(from.iter().all(|&frame| guest.balloon.isolate(frame)));
    let mut moves = pairs(&from, &to);
    guest.balloon.migrate(&mut moves);
    while guest.balloon.pending_pairs() > 0 {
        guest.balloon.poll(0);
    }
    guest.to(100);
    guest.balloon.reset();
    assert!(calls.load(Ordering::SeqCst) > 6);
    guest.balloon.verify().unwrap();
}

/// While it moves frames and while it waits for them, compaction leaves the configuration space to others, though the
/// device does not know the balloon's size yet.
#[test]
fn pitfall_04_a_wait_for_moves_makes_no_configuration_access() {
    let guest = Guest::configured(16, BalloonConfig::default());
    guest.to(600);
    guest.host.set_manner(Manner::OnDemand);
    assert_eq!(guest.to(1000), Step::Waiting);
    guest.host.inner().isr |= ISR_CONFIG;
    // Answered, and nobody has looked; the size is to be written.
    while guest.host.answer_one() {}
    let accesses = guest.host.config_accesses();
    let from = guest.listed()[..300].to_vec();
    let to = guest.targets(300);
    assert!(from.iter().all(|&frame| guest.balloon.isolate(frame)));
    let mut moves = pairs(&from, &to);
    guest.balloon.migrate(&mut moves);
    while guest.balloon.pending_pairs() > 0 {
        guest.host.answer_one();
        guest.balloon.poll(0);
    }
    assert_eq!(guest.host.config_accesses(), accesses);
    assert_eq!(guest.balloon.actual(), 1000);
    assert_ne!(guest.host.actual(), 1000);
    guest.balloon.handle_interrupt();
    assert_eq!(guest.host.actual(), 1000);
}

/// A host that answers from a thread of its own and takes long for each access to the configuration space, three CPUs
/// at the balloon.
#[test]
fn many_cpus_and_a_slow_configuration_space() {
    let guest = Guest::configured(16, BalloonConfig::default());
    guest.to(1000);
    guest.host.set_manner(Manner::OnDemand);
    guest.host.inner().on_config = Some(Box::new(|| thread::sleep(Duration::from_millis(1))));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                if guest.host.answer_one() {
                    guest.balloon.handle_interrupt();
                } else {
                    thread::yield_now();
                }
            }
        });
        let mover = scope.spawn(|| {
            let mut free = guest.targets(100);
            for _ in 0..50 {
                let from: Vec<_> = guest
                    .listed()
                    .into_iter()
                    .filter(|&frame| guest.balloon.isolate(frame))
                    .take(free.len())
                    .collect();
                let mut moves = pairs(&from, &free);
                guest.balloon.migrate(&mut moves);
                for pair in &mut moves {
                    if matches!(pair.outcome, Outcome::Busy | Outcome::Refused) {
                        guest.balloon.putback(pair.from);
                    }
                }
                let stayed = |pair: &&dirigible_mobility::MovePair| {
                    matches!(pair.outcome, Outcome::Busy | Outcome::Refused)
                };
                let unused: Vec<_> = moves.iter().filter(stayed).map(|pair| pair.to).collect();
                guest.free(&unused);
                guest.free(&free[moves.len()..]);
                let moved: Vec<_> = moves
                    .iter()
                    .filter(|pair| pair.outcome == Outcome::Moved)
                    .map(|pair| pair.from)
                    .collect();
                guest.free(&moved);
                while guest.balloon.pending_pairs() > 0 {
                    guest.balloon.poll(0);
                    thread::yield_now();
                }
                for (from, _, outcome) in guest.settled() {
                    assert_eq!(outcome, Outcome::Moved);
                    guest.free(&[from]);
                }
                free = guest.targets(100);
            }
            guest.free(&free);
        });
        for turn in 0..20_u32 {
            let target = 900 + turn % 2 * 300;
            guest.host.set_target(target);
            while guest.balloon.step(&guest.source, 8) != Step::Idle
                || guest.balloon.requested() != target
            {
                thread::yield_now();
            }
        }
        mover.join().unwrap();
        over.store(true, Ordering::SeqCst);
    });
    guest.balloon.handle_interrupt();
    guest.check();
    assert_eq!(guest.balloon.actual(), 1200);
    assert_eq!(guest.host.actual(), 1200);
    assert_eq!(guest.host.size(), 1200);
}
