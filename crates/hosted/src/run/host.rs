//! The host's side of a run: its clock, and what it measured.

use std::time::Instant;

use dirigible_workload::{
    params::Column,
    report::{self, AttemptHost, ColumnHost, Residency},
    system::HostClock,
};

use crate::{HostFacts, HostedMachine};

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

/// Milliseconds that this process has spent in user mode and in the kernel; 0 where `/proc` does not report it.
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
