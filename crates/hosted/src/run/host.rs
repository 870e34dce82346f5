//! The host's side of a run: its clocks, and what it measured.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use dirigible::schedule::{Clock, Current};
use dirigible_frames::Platform;
use dirigible_workload::{
    params::Column,
    report::{self, AttemptHost, ColumnHost, Residency},
    system::HostClock,
};

use crate::{HostFacts, HostedMachine, HostedPlatform, Mode};

/// Longest sleep of a thread between two looks whether the run has ended.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// What was measured on the host while `column` ran, and the host itself.
pub(super) fn measured(
    column: Column,
    machine: &HostedMachine,
    started: Instant,
    attempts: Vec<AttemptHost>,
    residency: Residency,
) -> (ColumnHost, report::HostFacts) {
    let facts = HostFacts::gather();
    let usage = process_times();
    let host = ColumnHost {
        name: column.name().into(),
        wall_ms: started.elapsed().as_millis() as u64,
        user_ms: usage.0,
        system_ms: usage.1,
        discard_calls: machine
            .balloons()
            .iter()
            .map(|b| b.counters().discards.calls)
            .sum(),
        residency,
        attempts,
    };
    let facts = report::HostFacts {
        kernel: facts.kernel,
        cpus: facts.cores as u64,
        process_madvise: facts.process_madvise,
    };
    (host, facts)
}

/// Milliseconds that this process has spent in user mode and in the kernel; 0 where `/proc` does not say.
fn process_times() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name, in parentheses, may hold spaces; user and system time are the 12th and 13th field after it.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |index| {
        fields
            .split_whitespace()
            .nth(index)
            .and_then(|n| n.parse::<u64>().ok())
    };
    let ms = 1000 / rustix::param::clock_ticks_per_second().max(1);
    (ticks(11).unwrap_or(0) * ms, ticks(12).unwrap_or(0) * ms)
}

/// Real time since the run began.
pub(super) struct SinceStart(pub(super) Instant);

impl HostClock for SinceStart {
    fn nanoseconds(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// The machine's clock for a queue of actors.
pub(super) struct MachineClock<'a>(pub(super) &'a HostedPlatform);

impl Clock for MachineClock<'_> {
    fn now(&self) -> u64 {
        self.0.now()
    }

    fn wait_until(&self, until: u64, ended: &AtomicBool) {
        if self.0.mode() == Mode::Deterministic {
            return self.0.advance_to(until);
        }
        // Acquire: pairs with the release that ends the run.
        while !ended.load(Ordering::Acquire) {
            let Some(left) = until.checked_sub(self.0.now()).filter(|&left| left > 0) else {
                return;
            };
            thread::sleep(Duration::from_nanos(left).min(LONGEST_NAP));
        }
    }

    fn pass(&self, next: Option<u64>) {
        let until = self.0.next_due().min(next.unwrap_or(u64::MAX));
        match self.0.mode() {
            Mode::Deterministic if (self.0.now() + 1..u64::MAX).contains(&until) => {
                self.0.advance_to(until);
            }
            _ => self.0.let_time_pass(),
        }
    }

    fn with_current(&self, run: &mut dyn FnMut(&Current)) {
        HostedPlatform::with_current(run);
    }
}
