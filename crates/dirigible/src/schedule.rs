//! Actors and the queue that runs them in the order of their times.
//!
//! Everything that happens in an experiment is a step of some actor: a job asks for memory, the balloon's target moves, the
//! probe makes an attempt. On the deterministic machine one queue holds all actors, ordered by (time, number of the actor),
//! and a virtual clock jumps from step to step; what the steps cost moves the clock on, and a step whose time has passed by
//! then runs late. With threads each thread has a queue of its own over some of the actors, and the clock sleeps.

use alloc::{boxed::Box, collections::BinaryHeap, vec::Vec};
use core::{
    cmp::Reverse,
    sync::atomic::{AtomicBool, Ordering},
};

/// One nanosecond, microsecond, … on the guest's clock.
pub mod time {
    /// Nanoseconds in a microsecond.
    pub const MICROSECOND: u64 = 1_000;
    /// Nanoseconds in a millisecond.
    pub const MILLISECOND: u64 = 1_000_000;
    /// Nanoseconds in a second.
    pub const SECOND: u64 = 1_000_000_000;
}

/// When an actor wants to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// At this time, or as soon after as the machine gets to it.
    At(u64),
    /// Never again.
    Done,
}

/// Something that acts at times of its own choosing.
pub trait Actor: Send {
    /// Does one bounded piece of work at `now` and says when to come again.
    fn step(&mut self, now: u64) -> Next;
}

/// The guest's clock, as the queue uses it.
pub trait Clock: Sync {
    /// Nanoseconds since boot.
    fn now(&self) -> u64;
    /// Lets the clock reach `time`: a virtual clock jumps, a real one sleeps. May return early when `ended` becomes true.
    fn wait_until(&self, time: u64, ended: &AtomicBool);
}

/// A queue of actors.
#[derive(Default)]
pub struct Engine<'a> {
    actors: Vec<Box<dyn Actor + 'a>>,
    queue: BinaryHeap<Reverse<(u64, usize)>>,
}

impl<'a> Engine<'a> {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an actor that acts first at `time`. Among equals the one added first comes first.
    pub fn add(&mut self, time: u64, actor: impl Actor + 'a) {
        self.add_boxed(time, Box::new(actor));
    }

    /// The same for an actor in a box.
    pub fn add_boxed(&mut self, time: u64, actor: Box<dyn Actor + 'a>) {
        self.queue.push(Reverse((time, self.actors.len())));
        self.actors.push(actor);
    }

    /// Runs until `ended` is set (by an actor, here or in another thread) or no actor wants to go on. Calls `tell` after
    /// each step with the time at which it began and the number of the actor.
    pub fn run(&mut self, clock: &dyn Clock, ended: &AtomicBool, mut tell: impl FnMut(u64, usize)) {
        // Acquire: pairs with the release of whoever ends the run, so that its last writes are seen after the run.
        while !ended.load(Ordering::Acquire) {
            let Some(Reverse((time, number))) = self.queue.pop() else {
                return;
            };
            clock.wait_until(time, ended);
            if ended.load(Ordering::Acquire) {
                return;
            }
            let now = clock.now();
            if let Next::At(next) = self.actors[number].step(now) {
                self.queue.push(Reverse((next, number)));
            }
            tell(now, number);
        }
    }
}

/// A clock that stands still until the queue moves it: for the twin and for tests.
#[derive(Debug, Default)]
pub struct FreeClock(core::sync::atomic::AtomicU64);

impl Clock for FreeClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn wait_until(&self, time: u64, _: &AtomicBool) {
        self.0.fetch_max(time, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spin::Mutex;

    struct Beat<'a>(u64, u64, &'a Mutex<Vec<(u64, u64)>>);

    impl Actor for Beat<'_> {
        fn step(&mut self, now: u64) -> Next {
            self.2.lock().push((now, self.0));
            if now < 12 {
                Next::At(now + self.1)
            } else {
                Next::Done
            }
        }
    }

    #[test]
    fn steps_come_in_order_of_time_then_number() {
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        engine.add(4, Beat(0, 4, &log));
        engine.add(0, Beat(1, 6, &log));
        let clock = FreeClock::default();
        engine.run(&clock, &AtomicBool::new(false), |_, _| {});
        assert_eq!(
            *log.lock(),
            [(0, 1), (4, 0), (6, 1), (8, 0), (12, 0), (12, 1)]
        );
    }

    struct Slow<'a>(&'a FreeClock, &'a Mutex<Vec<(u64, u64)>>);

    impl Actor for Slow<'_> {
        fn step(&mut self, now: u64) -> Next {
            self.0.wait_until(now + 10, &AtomicBool::new(false));
            self.1.lock().push((now, 9));
            Next::Done
        }
    }

    #[test]
    fn an_event_whose_time_has_passed_runs_late() {
        let log = Mutex::new(Vec::new());
        let clock = FreeClock::default();
        let mut engine = Engine::new();
        engine.add(1, Slow(&clock, &log));
        engine.add(5, Beat(0, 100, &log));
        engine.run(&clock, &AtomicBool::new(false), |_, _| {});
        assert_eq!(log.lock()[..2], [(1, 9), (11, 0)]);
    }

    #[test]
    fn the_run_ends_when_somebody_says_so() {
        struct Ender<'a>(&'a AtomicBool);
        impl Actor for Ender<'_> {
            fn step(&mut self, _: u64) -> Next {
                self.0.store(true, Ordering::Release);
                Next::At(0)
            }
        }
        let ended = AtomicBool::new(false);
        let log = Mutex::new(Vec::new());
        let mut engine = Engine::new();
        engine.add(0, Ender(&ended));
        engine.add(0, Beat(0, 1, &log));
        engine.run(&FreeClock::default(), &ended, |_, _| {});
        assert!(log.lock().is_empty());
    }
}
