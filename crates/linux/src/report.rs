//! What a run did.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;

use crate::{
    counters::{Count, Counters},
    task::Run,
};

/// The result of a run. Sizes of contents are in pages of 4 KiB.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The memory that the load was made for.
    memory_bytes: u64,
    seed: u64,
    /// How long the load ran.
    elapsed_ms: u64,
    #[serde(flatten)]
    counts: std::collections::BTreeMap<&'static str, u64>,
}

impl Report {
    /// The result of `run`.
    pub fn new(run: &Run, elapsed: Duration, counters: &Counters) -> Self {
        let counts = Count::ALL.map(|count| (count.name(), counters.get(count)));
        Self {
            memory_bytes: run.memory,
            seed: run.plan.seed,
            elapsed_ms: elapsed.as_millis() as u64,
            counts: counts.into(),
        }
    }

    /// Prints it, as JSON or as text.
    ///
    /// # Errors
    ///
    /// The standard output is closed or full.
    pub fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string_pretty(self)?)?;
            return out.flush();
        }
        let seconds = self.elapsed_ms as f64 / 1000.0;
        writeln!(
            out,
            "load for {} MiB, seed {}, {seconds:.1} s",
            self.memory_bytes >> 20,
            self.seed
        )?;
        for count in Count::ALL {
            let value = self.counts.get(count.name()).copied().unwrap_or(0);
            let rate = value as f64 / seconds.max(0.001);
            writeln!(out, "{value:>14}  {} ({rate:.1} a second)", count.about())?;
        }
        out.flush()
    }
}
