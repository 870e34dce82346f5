//! Section `latency`: how long single calls take, since a mean hides the refills, the merges and the waits for a lock.
//!
//! The load is that of section `speed`, each call timed; rounds count whether the cores overlapped or not.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::clock::Clock;
use crate::gate;
use crate::histogram::Histogram;
use crate::peers::{Contestant, Peer, Scenario};
use crate::progress;
use crate::report::{Grid, Report, short};
use crate::scenario::Config;

const BUDGET: Duration = Duration::from_secs(40);
const PASSES: usize = 4;

/// What is told apart, by the positions in [`MEASURES`](crate::scenario::MEASURES) at which it is.
const CALLS: [(&str, usize); 3] = [("alloc", 0), ("free", 1), ("free rand", 3)];
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999)];

/// One histogram for each of [`CALLS`].
type Histograms = [Histogram; 3];

/// A peer whose calls are timed one by one.
struct Timed<'a, P> {
    peer: &'a P,
    clock: &'a Clock,
    cpus: Vec<Cpu>,
}

struct Cpu {
    histograms: Histograms,
    /// Which of [`CALLS`] goes on; their number if none.
    current: AtomicUsize,
}

impl Cpu {
    fn count(&self, ticks: u64) {
        // Relaxed: written by the thread that reads it.
        let current = self.current.load(Ordering::Relaxed);
        if let Some(histogram) = self.histograms.get(current) {
            histogram.add(ticks);
        }
    }
}

impl<P: Peer> Peer for Timed<'_, P> {
    fn alloc(&self, cpu: usize, order: u8) -> Option<u64> {
        let (frame, ticks) = self.clock.time(|| self.peer.alloc(cpu, order));
        self.cpus[cpu].count(ticks);
        frame
    }

    fn free(&self, cpu: usize, frame: u64, order: u8) {
        let ((), ticks) = self.clock.time(|| self.peer.free(cpu, frame, order));
        self.cpus[cpu].count(ticks);
    }

    fn begins(&self, cpu: usize, measure: Option<usize>) {
        let call = CALLS.iter().position(|call| Some(call.1) == measure);
        let current = &self.cpus[cpu].current;
        current.store(call.unwrap_or(CALLS.len()), Ordering::Relaxed);
    }
}

/// One pass of one allocator.
struct Pass<'a> {
    config: Config,
    clock: &'a Clock,
}

impl Scenario for Pass<'_> {
    type Outcome = Histograms;

    fn frames(&self) -> usize {
        self.config.frames()
    }

    fn cpus(&self) -> usize {
        self.config.threads
    }

    fn run<P: Peer>(&self, peer: &P) -> Histograms {
        let cpu = |_| Cpu {
            histograms: std::array::from_fn(|_| Histogram::new()),
            current: CALLS.len().into(),
        };
        let timed = Timed {
            peer,
            clock: self.clock,
            cpus: (0..self.config.threads).map(cpu).collect(),
        };
        self.config.times(&timed);
        peer.check();
        let all = timed.cpus.into_iter().map(|cpu| cpu.histograms);
        all.reduce(merged).expect("a thread")
    }
}

fn merged(into: Histograms, from: Histograms) -> Histograms {
    into.iter()
        .zip(&from)
        .for_each(|(into, from)| into.merge(from));
    into
}

/// All that was measured.
pub struct Latency {
    clock: Clock,
    /// What the clock measures of nothing.
    nothing: Histogram,
    contestants: Vec<Contestant>,
    /// For each order and number of threads the histograms of each allocator, all passes together.
    cells: Vec<(Config, Vec<Option<Histograms>>)>,
}

/// Runs all passes.
pub fn run(run: &Run) -> Latency {
    let clock = Clock::new();
    let nothing = Histogram::new();
    (0..run.scale.frames()).for_each(|_| nothing.add(clock.time(|| ()).1));
    let count = run.contestants.len();
    let cell = |config| (config, (0..count).map(|_| None).collect::<Vec<_>>());
    let mut cells: Vec<_> = run.scale.configs(&[1, 2]).into_iter().map(cell).collect();
    for pass in progress::passes("latency", run.passes.min(PASSES), BUDGET) {
        for (config, histograms) in &mut cells {
            for which in (0..count).map(|turn| (pass + turn) % count) {
                let config = *config;
                let clock = &clock;
                let new = run.contestants[which].run(&Pass { config, clock });
                histograms[which] = Some(match histograms[which].take() {
                    Some(old) => merged(old, new),
                    None => new,
                });
            }
        }
    }
    Latency {
        clock,
        nothing,
        contestants: run.contestants.clone(),
        cells,
    }
}

impl Latency {
    /// The quantiles and the maximum, ns.
    fn figures(&self, histogram: &Histogram) -> [Option<f64>; 4] {
        let ns = |ticks: u64| self.clock.nanoseconds(ticks);
        let [p50, p99, p99_9] = QUANTILES.map(|(_, share)| histogram.quantile(share).map(ns));
        [p50, p99, p99_9, Some(ns(histogram.max()))]
    }

    fn grid(&self, config: &Config, all: &[Option<Histograms>]) -> Grid {
        let title = format!(
            "latency, order {}, {}: ns of single calls (50th, 99th, 99.9th of 100, maximum)",
            config.order,
            gate::describe(config.threads)
        );
        let columns: Vec<String> = CALLS
            .iter()
            .flat_map(|(call, _)| ["50", "99", "99.9", "max"].map(|q| format!("{call} {q}")))
            .map(|column| column.replace("free rand", "rand"))
            .collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut grid = Grid::new(&title, 11, &columns);
        for (&contestant, histograms) in self.contestants.iter().zip(all) {
            let Some(histograms) = histograms else {
                continue;
            };
            let values: Vec<_> = histograms.iter().flat_map(|h| self.figures(h)).collect();
            grid.row(contestant, &values);
        }
        grid.ratios();
        grid
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (config, all) in &self.cells {
            writeln!(f, "{}", self.grid(config, all))?;
        }
        let [p50, p99, p99_9, max] = self
            .figures(&self.nothing)
            .map(|v| v.map_or_else(String::new, short));
        writeln!(
            f,
            "clock: {}; two readings with nothing between them are {} ns apart, which is taken off each figure above. Of nothing it\n    \
             then measures {p50} (50th), {p99} (99th), {p99_9} (99.9th), {max} (maximum) in {} calls: no figure above means more than that.\n    \
             The maxima hold whatever the machine did meanwhile.\n",
            self.clock.name(),
            short(self.clock.cost()),
            self.nothing.len(),
        )
    }
}

impl Report for Latency {
    fn json(&self) -> Value {
        let quantiles = |histogram: &Histogram| {
            let [p50, p99, p99_9, max] = self.figures(histogram);
            json!({ "p50": p50, "p99": p99, "p99_9": p99_9, "max": max, "calls": histogram.len() })
        };
        let mut results = Vec::new();
        for (config, all) in &self.cells {
            for (contestant, histograms) in self.contestants.iter().zip(all) {
                let mut value = json!({
                    "allocator": contestant.name(), "order": config.order, "threads": config.threads,
                });
                for ((call, _), histogram) in CALLS.iter().zip(histograms.iter().flatten()) {
                    value[call.replace("free rand", "random_free")] = quantiles(histogram);
                }
                results.push(value);
            }
        }
        json!({
            "unit": "ns",
            "clock": { "name": self.clock.name(), "cost": self.clock.cost(), "nothing": quantiles(&self.nothing) },
            "results": results,
        })
    }

    fn check(&self) {
        for histograms in self.cells.iter().flat_map(|cell| &cell.1) {
            let histograms = histograms.as_ref().expect("every allocator ran");
            assert!(histograms.iter().all(|h| h.len() > 0));
            assert!(
                histograms
                    .iter()
                    .all(|h| h.quantile(0.5) <= h.quantile(0.999))
            );
            assert!(
                histograms
                    .iter()
                    .all(|h| h.quantile(0.999) <= Some(h.max()))
            );
        }
    }
}
