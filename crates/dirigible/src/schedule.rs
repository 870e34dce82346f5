//! Actors and the queue that runs them in the order of their times.
//!
//! Everything that happens in an experiment is a step of some actor: a program asks for memory, the balloon's
//! target moves, the probe makes an attempt. On the deterministic machine one queue holds all actors, ordered by
//! (time, number of the actor), and a virtual clock jumps from step to step; what the steps cost moves the clock
//! on, and a step whose time has passed by then runs late. With threads each thread has a queue of its own over
//! some of the actors, and the clock sleeps.
//!
//! Whatever has steps is an actor: a [daemon](crate::daemon), or a program of the load. One that waits for an event is
//! called at its latest time.
//!
//! # Programs
//!
//! A plain actor runs each step to its end: if it waits in the middle, for the host or for a disk, its processor waits
//! with it. A *program* is an actor with a stack of its own. When it waits
//! ([`Platform::relax`](dirigible_frames::Platform::relax)) the engine takes the processor back and runs whoever is
//! next. All programs that wait look again, in the order of their numbers, when something may have changed: after each
//! step of another actor, and when the [`Clock`] has let time pass because nobody was due. So a program holds no lock
//! that others spin on, and is inside no access section, while it waits. It never changes its processor.
//!
//! A program that waits for a time alone ([`Platform::sleep_until`](dirigible_frames::Platform::sleep_until)) stands in
//! the queue meanwhile and is resumed once. An engine can take in more programs while it runs
//! ([`Engine::accept_from`]); the places and stacks of those that are done are used again.
//!
//! A program may hold a workspace of compaction or frames while it waits. A plain actor on the same processor that
//! waits for them waits for ever, as that program cannot run meanwhile. So whatever may wait in the middle of a step
//! must be a program. Daemons never wait and can be plain.
//!
//! The time from the beginning of a program's step to its end contains what other actors did on its processor
//! meanwhile, with a virtual clock as well as with a real one.

mod engine;

pub use crate::daemon::{Daemon as Actor, Next};
pub use dirigible_stacks::{Current, NoStack, Stack};
pub use engine::{Engine, PROGRAM_STACK};

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dirigible_frames::CpuId;

/// One nanosecond, microsecond, … on the guest's clock.
pub mod time {
    /// Nanoseconds in a microsecond.
    pub const MICROSECOND: u64 = 1_000;
    /// Nanoseconds in a millisecond.
    pub const MILLISECOND: u64 = 1_000_000;
    /// Nanoseconds in a second.
    pub const SECOND: u64 = 1_000_000_000;
}

/// The guest's clock, as the queue uses it.
pub trait Clock: Sync {
    /// Nanoseconds since boot.
    fn now(&self) -> u64;

    /// Lets the clock reach `time`: a virtual clock jumps, a real one sleeps. May return early when `ended` becomes
    /// true.
    fn wait_until(&self, time: u64, ended: &AtomicBool);

    /// Programs wait, each has looked, and no step is due before `next` (`None`: there is none). Lets time pass until
    /// something may have changed for them: a real clock parks or halts the processor for a moment, a virtual one goes
    /// to the next moment at which a device does something, at most to `next`, and only a short way, as the programs
    /// may have deadlines. Either time passes or a device that was due has run.
    fn pass(&self, next: Option<u64>);

    /// How long an engine that takes new programs ([`Engine::accept_from`]) may wait before it asks for them again, in
    /// nanoseconds: where others than its own actors make them, as on several processors. `None`, as with a virtual
    /// clock: as long as it likes, as nobody else runs.
    fn longest_wait(&self) -> Option<u64> {
        None
    }

    /// A round of looks begins: lets devices do what is due by now, so that the programs find it. Real devices work by
    /// themselves, and nothing is to be done.
    fn catch_up(&self) {}

    /// Calls `run` with the place where the calling processor keeps which program it runs: the one that the wait hook
    /// of the machine looks at. With the place that is made here by default no program ever waits: it is not found.
    fn with_current(&self, run: &mut dyn FnMut(&Current)) {
        run(&Current::new());
    }
}

/// What [`Platform::caller`](dirigible_frames::Platform::caller) gives on processor `cpu` in program `number` of its
/// engine, or outside of programs.
pub fn caller(cpu: CpuId, number: Option<u32>) -> u64 {
    let program = number.map_or(0, |number| u64::from(number) + 1);
    (program << 32) | (cpu.index() as u64 + 1)
}

/// A clock that stands still until the queue moves it: for tests.
#[derive(Debug, Default)]
pub struct FreeClock(AtomicU64);

impl Clock for FreeClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn wait_until(&self, time: u64, _: &AtomicBool) {
        self.0.fetch_max(time, Ordering::Relaxed);
    }

    fn pass(&self, next: Option<u64>) {
        let now = self.now();
        self.0
            .fetch_max(next.unwrap_or(now + time::MICROSECOND), Ordering::Relaxed);
    }
}
