//! Background work as steps that never wait.
//!
//! A kernel runs each daemon in a thread that sleeps until the time that [`step`](Daemon::step) names, an executor
//! polls it from a timer, and a deterministic machine puts it into the queue of a schedule.

/// When a daemon wants to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// At this time, or as soon after as the machine gets to it.
    At(u64),
    /// When an event comes that it waits for (a device has interrupted, an answer is there), and at this time at the
    /// latest.
    Event {
        /// The time.
        latest: u64,
    },
    /// Never again.
    Done,
}

/// Work in the background, a bounded piece at a time.
pub trait Daemon: Send {
    /// Does one bounded piece of work at `now` (nanoseconds on the platform's clock) and says when to come again. Does
    /// not wait for a host or a device: what is open comes back as [`Next::Event`]. The exceptions are a balloon
    /// device that has failed and is reset, a bounded time, and khugepaged if its source of memory waits.
    fn step(&mut self, now: u64) -> Next;
}
