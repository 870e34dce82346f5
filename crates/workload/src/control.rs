//! The stage of a run, which the director sets and the load follows, and the counts that the load keeps.

use alloc::{string::ToString, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use crate::{
    calls::Failure,
    report::{Compiled, ProgramFailure},
};
use dirigible::schedule::time::MILLISECOND;

/// The phase that ends the load.
const KILL: &str = "kill";

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

/// A phase that has begun.
#[derive(Clone, Copy, Debug)]
struct PhaseLog {
    name: &'static str,
    begun: u64,
    /// Files that were compiled before it.
    files: u64,
}

/// The shared state of one run.
#[derive(Debug, Default)]
pub struct Control {
    stage: AtomicU64,
    ended: AtomicBool,
    phases: Mutex<Vec<PhaseLog>>,
    /// Files compiled.
    files: AtomicU64,
    /// Programs that gave up.
    failures: Mutex<Vec<(&'static str, Failure, u64)>>,
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
        let files = self.files.load(Ordering::Relaxed);
        self.phases.lock().push(PhaseLog {
            name,
            begun: time,
            files,
        });
    }

    /// The phases that have begun, with their times.
    pub fn phases(&self) -> Vec<(&'static str, u64)> {
        let phases = self.phases.lock();
        phases
            .iter()
            .map(|phase| (phase.name, phase.begun))
            .collect()
    }

    /// The phase that began last.
    pub fn phase(&self) -> &'static str {
        self.phases.lock().last().map_or("boot", |phase| phase.name)
    }

    /// Files compiled in each phase that has ended; nothing is compiled in the last one.
    pub fn compiled(&self) -> Vec<Compiled> {
        let phases = self.phases.lock();
        let lengths = phases.iter().zip(phases.iter().skip(1));
        let of_phase = |(phase, next): (&PhaseLog, &PhaseLog)| Compiled {
            phase: phase.name.into(),
            files: next.files - phase.files,
            ms: next.begun.saturating_sub(phase.begun) / MILLISECOND,
        };
        lengths
            .take_while(|(phase, _)| phase.name != KILL)
            .map(of_phase)
            .collect()
    }

    // The counters below are sums for the report and publish nothing: Relaxed.

    /// Counts a program that gave up after a failure.
    pub fn count_failure(&self, program: &'static str, failure: Failure) {
        let mut failures = self.failures.lock();
        let known = failures
            .iter_mut()
            .find(|(name, what, _)| (*name, *what) == (program, failure));
        match known {
            Some((.., times)) => *times += 1,
            None => failures.push((program, failure, 1)),
        }
    }

    /// The programs that gave up, by program and failure, in the order of the first of each.
    pub fn failures(&self) -> Vec<ProgramFailure> {
        let failures = self.failures.lock();
        let report = |&(program, failure, times): &(&str, Failure, u64)| ProgramFailure {
            program: program.to_string(),
            failure: failure.to_string(),
            times,
        };
        failures.iter().map(report).collect()
    }

    /// Counts files that the load has compiled.
    pub fn count_compiled(&self, files: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
    }

    /// Counts a wait of the load of `time` nanoseconds.
    pub fn count_wait(&self, time: u64) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(time, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_to_the_phase_in_which_they_were_compiled() {
        let control = Control::new();
        let files = |count| control.count_compiled(count);
        control.log_phase("warm-up", 0);
        files(5);
        control.log_phase("pass1", 3_000 * MILLISECOND);
        files(2);
        control.log_phase("gap", 4_500 * MILLISECOND);
        control.log_phase(KILL, 5_000 * MILLISECOND);
        files(9);
        control.log_phase("rested", 9_000 * MILLISECOND);
        let compiled: Vec<_> = control
            .compiled()
            .into_iter()
            .map(|phase| (phase.phase, phase.files, phase.ms))
            .collect();
        let expected = [("warm-up", 5, 3000), ("pass1", 2, 1500), ("gap", 0, 500)];
        assert_eq!(
            compiled,
            expected.map(|(phase, files, ms)| (phase.into(), files, ms))
        );
    }
}
