//! The stage of a run, which the director sets and the load follows, and the counts that the load keeps.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

/// The stage of a run, as far as the load depends on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub enum Stage {
    /// The load runs.
    Loaded = 0,
    /// The load has ended; kernel memory that outlives it stays.
    Rested = 1,
    /// Everything is given back.
    Over = 2,
}

/// The shared state of one run.
#[derive(Debug, Default)]
pub struct Control {
    stage: AtomicU64,
    ended: AtomicBool,
    phases: Mutex<Vec<(&'static str, u64)>>,
    /// Files compiled.
    compiled: AtomicU64,
    /// Times that a request of the load had to wait.
    pub waits: AtomicU64,
    /// The sum of these waits, in nanoseconds.
    pub waited: AtomicU64,
    /// Rounds in which every frame of the balloon was moved.
    pub balloon_rounds: AtomicU64,
}

impl Control {
    /// A run at its beginning, in the stage `Loaded`.
    pub fn new() -> Self {
        Self::default()
    }

    /// The present stage.
    pub fn stage(&self) -> Stage {
        // Acquire: pairs with the release in `enter`.
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Loaded,
            1 => Stage::Rested,
            _ => Stage::Over,
        }
    }

    /// Enters `stage`.
    pub fn enter(&self, stage: Stage) {
        // Release: pairs with the acquire in `stage`.
        self.stage.store(stage as u64, Ordering::Release);
    }

    /// Ends the run.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// The flag that is set when the run has ended.
    pub fn ended(&self) -> &AtomicBool {
        &self.ended
    }

    /// Records that phase `name` began at `time`.
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

    /// Counts files that the load has compiled.
    pub fn count_compiled(&self, files: u64) {
        self.compiled.fetch_add(files, Ordering::Relaxed);
    }

    /// Files compiled so far.
    pub fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// Counts a wait of the load of `time` nanoseconds.
    pub fn count_wait(&self, time: u64) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(time, Ordering::Relaxed);
    }
}
