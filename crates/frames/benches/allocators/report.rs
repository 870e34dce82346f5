//! The table, the same as JSON, and what LLFree does beside the same peer.

use std::fmt;

use serde_json::{Value, json};

use crate::peers::Contestant;
use crate::scenario::{Config, MEASURES, Sample, median};

/// The peer that both runs had, ours and the one with LLFree in it.
const YARDSTICK: &str = "buddy_system_allocator";

/// LLFree 0.2.0 (git 441c8d1) divided by `buddy_system_allocator` 0.13.0, in an interleaved run of this same load on
/// 2 CPUs of an AMD EPYC (Zen 4): by order and threads, in the order of [`MEASURES`].
const LLFREE: [(u8, usize, [f64; 4]); 4] = [
    (0, 1, [21.3 / 28.4, 17.6 / 15.1, 34.9 / 450.0, 17.6 / 285.0]),
    (
        0,
        2,
        [26.7 / 131.0, 22.1 / 149.0, 37.8 / 902.0, 40.2 / 634.0],
    ),
    (9, 1, [35.5 / 27.8, 13.8 / 15.1, 28.3 / 238.0, 15.5 / 108.0]),
    (9, 2, [46.8 / 68.3, 18.1 / 71.6, 29.1 / 592.0, 29.2 / 191.0]),
];

/// What this crate is to reach, in the order of [`MEASURES`]. A pair is one alloc and one free.
const AIMS: [(u8, usize, [f64; 4]); 4] = [
    (0, 1, [10.0, 10.0, 20.0, 40.0]),
    (0, 2, [10.0, 10.0, 20.0, 40.0]),
    (9, 1, [20.0, 20.0, 40.0, 20.0]),
    (9, 2, [45.0, 45.0, 90.0, 45.0]),
];

/// Descriptors and metadata of this crate are to be no more than this, per cent of the memory.
const METADATA_AIM: f64 = 0.45;

fn row_of(table: &[(u8, usize, [f64; 4])], order: u8, threads: usize) -> Option<[f64; 4]> {
    table
        .iter()
        .find(|row| (row.0, row.1) == (order, threads))
        .map(|row| row.2)
}

/// The samples of one allocator for one order and number of threads.
struct Cell {
    order: u8,
    threads: usize,
    samples: [Vec<f64>; 4],
}

impl Cell {
    fn median(&self, measure: usize) -> Option<f64> {
        median(&mut self.samples[measure].clone())
    }
}

struct Row {
    name: &'static str,
    cells: Vec<Cell>,
    metadata: Vec<(&'static str, usize)>,
}

/// All that was measured.
pub struct Table {
    rows: Vec<Row>,
}

/// Frames for which the metadata is counted: 4 GiB, as in the runs.
const METADATA_FRAMES: usize = 1 << 20;
const GIBS: usize = METADATA_FRAMES >> 18;

impl Table {
    /// An empty table with a row for each allocator.
    pub fn new(contestants: &[&dyn Contestant]) -> Self {
        let row = |c: &&dyn Contestant| Row {
            name: c.name(),
            cells: Vec::new(),
            metadata: Vec::new(),
        };
        Self {
            rows: contestants.iter().map(row).collect(),
        }
    }

    /// Notes one pass of allocator number `which`.
    pub fn add(&mut self, which: usize, config: &Config, sample: Sample) {
        let cells = &mut self.rows[which].cells;
        let at = cells
            .iter()
            .position(|c| (c.order, c.threads) == (config.order, config.threads));
        let at = at.unwrap_or_else(|| {
            cells.push(Cell {
                order: config.order,
                threads: config.threads,
                samples: Default::default(),
            });
            cells.len() - 1
        });
        for (samples, value) in cells[at].samples.iter_mut().zip(sample) {
            samples.extend(value);
        }
    }

    /// Asks every allocator for the size of its metadata.
    pub fn measure_metadata(&mut self, contestants: &[&dyn Contestant]) {
        for (row, contestant) in self.rows.iter_mut().zip(contestants) {
            row.metadata = contestant.metadata(METADATA_FRAMES);
        }
    }

    fn median_of(&self, name: &str, order: u8, threads: usize, measure: usize) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.name.starts_with(name))?;
        row.cells
            .iter()
            .find(|c| (c.order, c.threads) == (order, threads))?
            .median(measure)
    }

    /// The table as JSON: medians, quartiles and extremes over the passes, ns; a pair is one alloc and one free.
    pub fn json(&self) -> Value {
        let figure = |samples: &[f64]| {
            let mut sorted = samples.to_vec();
            let Some(middle) = median(&mut sorted) else {
                return Value::Null;
            };
            let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
            json!({ "median": middle, "q1": at(0.25), "q3": at(0.75), "min": at(0.0), "max": at(1.0), "samples": sorted.len() })
        };
        let results: Vec<Value> = self
            .rows
            .iter()
            .flat_map(|row| row.cells.iter().map(move |cell| (row, cell)))
            .map(|(row, cell)| {
                let mut value =
                    json!({ "allocator": row.name, "order": cell.order, "threads": cell.threads });
                for (name, samples) in MEASURES.iter().zip(&cell.samples) {
                    value[*name] = figure(samples);
                }
                value
            })
            .collect();
        let metadata: Vec<Value> = self
            .rows
            .iter()
            .flat_map(|row| row.metadata.iter().map(move |&(what, bytes)| (row.name, what, bytes)))
            .map(|(name, what, bytes)| json!({ "allocator": name, "state": what, "bytes_per_gib": bytes / GIBS }))
            .collect();
        json!({ "schema": 1, "unit": "ns", "frames": METADATA_FRAMES, "results": results, "metadata": metadata })
    }

    fn write_order(&self, f: &mut fmt::Formatter<'_>, order: u8) -> fmt::Result {
        let passes = self
            .rows
            .iter()
            .flat_map(|r| &r.cells)
            .flat_map(|c| &c.samples)
            .map(Vec::len)
            .max()
            .unwrap_or(0);
        writeln!(
            f,
            "order {order}, ns (pair: one alloc and one free), medians of {passes} passes"
        )?;
        writeln!(f, "{:28}  {:^36}  {:^36}", "", "1 thread", "2 threads")?;
        write!(f, "{:28}", "")?;
        for _ in 0..2 {
            write!(
                f,
                "  {:>8} {:>8} {:>8} {:>9}",
                "alloc", "free", "pair", "free rand"
            )?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write_figures(f, row.name, 1, |threads, m| {
                self.median_of(row.name, order, threads, m)
            })?;
        }
        write_figures(f, "aim of dirigible-frames", 0, |threads, m| {
            row_of(&AIMS, order, threads).map(|r| r[m])
        })?;
        writeln!(f, "divided by {YARDSTICK}:")?;
        write_figures(f, "  dirigible-frames", 3, |threads, m| {
            Some(
                self.median_of("dirigible", order, threads, m)?
                    / self.median_of(YARDSTICK, order, threads, m)?,
            )
        })?;
        write_figures(f, "  LLFree, other machine (*)", 3, |threads, m| {
            row_of(&LLFREE, order, threads).map(|r| r[m])
        })?;
        writeln!(f)
    }
}

fn write_figures(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    digits: usize,
    figure: impl Fn(usize, usize) -> Option<f64>,
) -> fmt::Result {
    write!(f, "{name:28}")?;
    for threads in [1, 2] {
        write!(f, " ")?;
        for measure in 0..MEASURES.len() {
            let width = if measure == 3 { 9 } else { 8 };
            match figure(threads, measure) {
                Some(value) => write!(f, " {value:>width$.digits$}")?,
                None => write!(f, " {:>width$}", "-")?,
            }
        }
    }
    writeln!(f)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for order in [0, 9] {
            self.write_order(f, order)?;
        }
        writeln!(
            f,
            "{:56} {:>13} {:>12}",
            "metadata, 4 GiB managed", "bytes per GiB", "% of memory"
        )?;
        for row in &self.rows {
            for &(what, bytes) in &row.metadata {
                let name = format!("{}: {what}", row.name);
                let per_cent = bytes as f64 * 100.0 / (METADATA_FRAMES * 4096) as f64;
                writeln!(f, "{name:56} {:>13} {per_cent:>12.4}", bytes / GIBS)?;
            }
        }
        writeln!(
            f,
            "aim of dirigible-frames: at most {METADATA_AIM} %, 16 bytes of descriptor for each frame included"
        )?;
        writeln!(
            f,
            "\n- : the threads overlapped too little in more than half of the rounds; run it on an idle machine."
        )?;
        writeln!(
            f,
            "(*) git only, not run here: measured beside {YARDSTICK} with this load on 2 CPUs of an AMD EPYC."
        )
    }
}
