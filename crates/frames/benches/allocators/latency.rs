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
use crate::report::{Figure, Grid, Report, figure_json, short, texts};
use crate::scenario::Config;

const BUDGET: Duration = Duration::from_secs(35);
const PASSES: usize = 4;

/// What is told apart, by the positions in [`MEASURES`](crate::scenario::MEASURES) at which it is.
const CALLS: [(&str, usize); 3] = [("alloc", 0), ("free", 1), ("random_free", 3)];
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];
/// What they and the maximum are called in the JSON.
const NAMES: [&str; 4] = ["p50", "p99", "p99_9", "max"];

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

/// The figures of one call of one allocator, a sample for each pass: [`QUANTILES`], then the maximum; ns.
#[derive(Clone, Default)]
struct Call {
    figures: [Figure; 4],
    calls: u64,
}

impl Call {
    fn add(&mut self, clock: &Clock, histogram: &Histogram) {
        for (figure, value) in self.figures.iter_mut().zip(quantiles(clock, histogram)) {
            figure.add(value);
        }
        self.calls += histogram.len();
    }

    /// Medians over the passes, and the maximum of all.
    fn values(&self) -> [Option<f64>; 4] {
        let [p50, p99, p99_9, max] = &self.figures;
        [p50.median(), p99.median(), p99_9.median(), max.max()]
    }
}

/// The quantiles and the maximum, ns.
fn quantiles(clock: &Clock, histogram: &Histogram) -> [Option<f64>; 4] {
    let ns = |ticks: u64| clock.nanoseconds(ticks);
    let [p50, p99, p99_9] = QUANTILES.map(|share| histogram.quantile(share).map(ns));
    [p50, p99, p99_9, Some(ns(histogram.max()))]
}

/// What one allocator did in one [`Config`], by [`CALLS`].
type Row = [Call; 3];

/// All that was measured.
pub struct Latency {
    clock: Clock,
    /// What the clock measures of nothing.
    nothing: Histogram,
    contestants: Vec<Contestant>,
    /// The rows of all allocators for each order and number of threads.
    cells: Vec<(Config, Vec<Row>)>,
}

/// Runs all passes.
pub fn run(run: &Run) -> Latency {
    let clock = Clock::new();
    let nothing = Histogram::new();
    (0..run.scale.frames()).for_each(|_| nothing.add(clock.time(|| ()).1));
    let count = run.contestants.len();
    let cell = |config| (config, vec![Row::default(); count]);
    let mut cells: Vec<_> = run.scale.configs(&[1, 2]).into_iter().map(cell).collect();
    for pass in progress::passes("latency", run.passes.min(PASSES), BUDGET) {
        for (config, rows) in &mut cells {
            for which in (0..count).map(|turn| (pass + turn) % count) {
                let histograms = run.contestants[which].run(&Pass {
                    config: *config,
                    clock: &clock,
                });
                for (call, histogram) in rows[which].iter_mut().zip(&histograms) {
                    call.add(&clock, histogram);
                }
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
    fn grid(&self, config: &Config, rows: &[Row]) -> Grid {
        let calls = rows.iter().flatten();
        let passes = calls.map(|call| call.figures[0].samples()).max();
        let title = format!(
            "latency, order {}, {}: ns of single calls, percentiles (medians of {} passes) and maximum",
            config.order,
            gate::describe(config.threads),
            passes.unwrap_or(0),
        );
        let columns: Vec<String> = ["alloc", "free", "rand"]
            .iter()
            .flat_map(|call| ["50", "99", "99.9", "max"].map(|q| format!("{call} {q}")))
            .collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut grid = Grid::new(&title, [31, 12], &columns);
        for (&contestant, row) in self.contestants.iter().zip(rows) {
            let values: Vec<_> = row.iter().flat_map(Call::values).collect();
            grid.row(contestant, &values);
            if contestant == Contestant::Dirigible {
                let spread = row.iter().flat_map(|call| {
                    let [p50, p99, p99_9, _] = call.figures.each_ref().map(Figure::spread);
                    [p50, p99, p99_9, String::new()]
                });
                grid.line("  quartiles", &spread.collect::<Vec<_>>());
            }
        }
        grid.ratios();
        grid
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (config, rows) in &self.cells {
            writeln!(f, "{}", self.grid(config, rows))?;
        }
        let nothing = texts(&quantiles(&self.clock, &self.nothing), short);
        writeln!(
            f,
            "rand: frees in random order. Clock: {}; two readings with nothing between them are {} ns apart,",
            self.clock.name(),
            short(self.clock.cost()),
        )?;
        writeln!(
            f,
            "    which is taken off every figure. Of nothing it then measures {} ns (50, 99, 99.9, maximum):",
            nothing.join(", "),
        )?;
        writeln!(
            f,
            "    differences below these mean little, and the maxima hold whatever the machine did meanwhile.\n"
        )
    }
}

impl Report for Latency {
    fn json(&self) -> Value {
        let mut results = Vec::new();
        for (config, rows) in &self.cells {
            for (which, (contestant, row)) in self.contestants.iter().zip(rows).enumerate() {
                let mut value = json!({
                    "allocator": contestant.name(), "order": config.order, "threads": config.threads,
                });
                for (number, (name, _)) in CALLS.iter().enumerate() {
                    let call = &row[number];
                    value[*name] = json!({ "calls": call.calls });
                    for (position, key) in NAMES.iter().enumerate() {
                        let figure = |which: usize| &rows[which][number].figures[position];
                        value[*name][*key] = figure_json(&self.contestants, which, figure);
                    }
                }
                results.push(value);
            }
        }
        let nothing = quantiles(&self.clock, &self.nothing);
        let nothing: serde_json::Map<String, Value> = NAMES
            .iter()
            .zip(nothing)
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        json!({
            "unit": "ns",
            "clock": { "name": self.clock.name(), "cost": self.clock.cost(), "nothing": nothing },
            "results": results,
        })
    }

    fn check(&self) {
        for call in self.cells.iter().flat_map(|cell| &cell.1).flatten() {
            let [p50, p99, p99_9, max] = call.values();
            assert!(call.calls > 0);
            assert!(p50 <= p99 && p99 <= p99_9 && p99_9 <= max);
        }
    }
}
