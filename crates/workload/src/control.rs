//! What the director tells the load, and what the load counts.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

/// How far the experiment has come, as the load must know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub enum Stage {
    /// The load runs.
    Loaded = 0,
    /// The load ends; kernel memory that outlives it stays.
    Rested = 1,
    /// Everything is given back.
    Over = 2,
}

/// The shared state of one run. The load's actors read the stage at each step and answer once per change.
#[derive(Debug, Default)]
pub struct Control {
    stage: AtomicU64,
    /// Actors that have answered the present stage.
    answers: AtomicU64,
    ended: AtomicBool,
    phases: Mutex<Vec<(&'static str, u64)>>,
    /// Jobs begun.
    pub jobs_started: AtomicU64,
    /// Jobs that came to their end.
    pub jobs_finished: AtomicU64,
    /// Times that a request of the load had to wait.
    pub waits: AtomicU64,
    /// Time spent so, in nanoseconds.
    pub waited: AtomicU64,
    /// Rounds in which every frame of the balloon was moved.
    pub balloon_rounds: AtomicU64,
}

impl Control {
    /// The beginning: loaded.
    pub fn new() -> Self {
        Self::default()
    }

    /// The present stage.
    pub fn stage(&self) -> Stage {
        // Acquire: pairs with the release in `enter`, so an answer counts for the stage it answers.
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Loaded,
            1 => Stage::Rested,
            _ => Stage::Over,
        }
    }

    /// Goes on to `stage`: the answers begin at 0.
    pub fn enter(&self, stage: Stage) {
        self.answers.store(0, Ordering::Relaxed);
        // Release: pairs with the acquire in `stage`; nobody answers before the count is 0.
        self.stage.store(stage as u64, Ordering::Release);
    }

    /// An actor has done what the present stage asks of it.
    pub fn answer(&self) {
        // Release: pairs with the acquire in `answers`, so what the actor gave back is given back when it counts.
        self.answers.fetch_add(1, Ordering::Release);
    }

    /// How many actors have answered the present stage.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Acquire)
    }

    /// Ends the run.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Set when the run has ended.
    pub fn ended(&self) -> &AtomicBool {
        &self.ended
    }

    /// Writes down that phase `name` began at `time`.
    pub fn log_phase(&self, name: &'static str, time: u64) {
        self.phases.lock().push((name, time));
    }

    /// The phases that have begun, with their times.
    pub fn phases(&self) -> Vec<(&'static str, u64)> {
        self.phases.lock().clone()
    }

    /// The phase that began last.
    pub fn phase(&self) -> &'static str {
        self.phases.lock().last().map_or("boot", |&(name, _)| name)
    }

    // The counters below are sums for the report and publish nothing: Relaxed.

    /// A request of the load waits for `time`.
    pub fn count_wait(&self, time: u64) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(time, Ordering::Relaxed);
    }
}
