//! Section `speed`: ns per operation under the load of [`scenario`](crate::scenario), the allocators in turns.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Run;
use crate::gate;
use crate::llfree::{self, NOTES, YARDSTICK};
use crate::peers::Contestant;
use crate::progress;
use crate::report::{Figure, Grid, Report, divided, figure_json, short, texts};
use crate::scenario::{Config, MEASURES};

/// The numbers of threads.
const THREADS: [usize; 3] = [1, 2, 4];

const BUDGET: Duration = Duration::from_secs(90);

/// What this crate is to reach, by order and threads, in the order of [`MEASURES`]. A pair is one alloc and one free.
const AIMS: [(u8, usize, [f64; 4]); 4] = [
    (0, 1, [10.0, 10.0, 16.0, 30.0]),
    (0, 2, [10.0, 10.0, 16.0, 40.0]),
    (9, 1, [16.0, 16.0, 20.0, 22.0]),
    (9, 2, [35.0, 25.0, 20.0, 90.0]),
];

/// ns of a locked exchange on the machine on which the aims were set. Every call needs one, so the aims in ns are worth
/// as much as this figure on another machine.
const EXCHANGE_OF_AIMS: f64 = 4.7;

/// ns of an exchange on a line that this CPU has already, the least of many tries.
fn exchange() -> f64 {
    const TIMES: u32 = 10_000;
    let word = AtomicU32::new(0);
    let once = || {
        let start = Instant::now();
        for number in 0..TIMES {
            std::hint::black_box(word.swap(number, Ordering::AcqRel));
        }
        start.elapsed().as_nanos() as f64 / f64::from(TIMES)
    };
    (0..50).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// The figures of one order and number of threads: of each allocator, each measure.
struct Cell {
    config: Config,
    figures: Vec<[Figure; 4]>,
}

/// All that was measured.
pub struct Table {
    contestants: Vec<Contestant>,
    cells: Vec<Cell>,
    /// ns of a locked exchange here.
    exchange: f64,
}

/// Runs all passes.
pub fn run(run: &Run) -> Table {
    let cell = |config| Cell {
        config,
        figures: vec![Default::default(); run.contestants.len()],
    };
    let mut cells: Vec<Cell> = run.scale.configs(&THREADS).into_iter().map(cell).collect();
    let count = run.contestants.len();
    for pass in progress::passes("speed", run.passes, BUDGET) {
        for cell in &mut cells {
            // The order rotates, so that a disturbance of the machine hits all alike.
            for which in (0..count).map(|turn| (pass + turn) % count) {
                let sample = run.contestants[which].run(&cell.config);
                for (figure, value) in cell.figures[which].iter_mut().zip(sample) {
                    figure.add(value);
                }
            }
        }
    }
    Table {
        contestants: run.contestants.clone(),
        cells,
        exchange: exchange(),
    }
}

impl Cell {
    fn medians(&self, which: usize) -> [Option<f64>; 4] {
        std::array::from_fn(|measure| self.figures[which][measure].median())
    }

    fn grid(&self, contestants: &[Contestant]) -> Grid {
        let Config { order, threads, .. } = self.config;
        let passes = self.figures.iter().flatten().map(Figure::samples).max();
        let passes = passes.unwrap_or(0);
        let title = format!(
            "order {order}, {}: ns{}, medians of {passes} passes",
            gate::describe(threads),
            if threads > gate::cores() {
                " of a core's time"
            } else {
                ""
            }
        );
        let columns = ["alloc", "free", "pair", "free rand"];
        let mut grid = Grid::new(&title, [42, 16], &columns);
        for (which, &contestant) in contestants.iter().enumerate() {
            grid.row(contestant, &self.medians(which));
            if contestant == Contestant::Dirigible {
                let spread = self.figures[which].each_ref().map(Figure::spread);
                grid.line("  quartiles", &spread);
                let aims = llfree::row(&AIMS, order, threads);
                if aims[0].is_some() {
                    grid.line("  aim", &texts(&aims, short));
                    grid.divisor("its aim", &aims);
                }
            }
        }
        let yardstick = contestants.iter().position(|&c| c == YARDSTICK);
        let llfree = llfree::by_yardstick(order, threads);
        if let Some(which) = yardstick {
            let estimate: Vec<_> = self
                .medians(which)
                .iter()
                .zip(llfree)
                .map(|(y, l)| Some((*y)? * l?))
                .collect();
            if estimate.iter().any(Option::is_some) {
                grid.divisor("LLFree, by way of buddy_system (*)", &estimate);
            }
        }
        grid.ratios();
        if llfree[0].is_some() {
            grid.ratio_line("LLFree divided by buddy_system (*)", &llfree);
        }
        let [llfree, linux] = llfree::published(order, threads);
        grid.ratio_line(
            "LLFree divided by Linux, published (**)",
            &divided(&llfree, &linux),
        );
        grid
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cell in &self.cells {
            writeln!(f, "{}", cell.grid(&self.contestants))?;
        }
        writeln!(
            f,
            "a locked exchange, of which every call needs one: {:.1} ns here, {EXCHANGE_OF_AIMS} where the aims were set",
            self.exchange
        )?;
        writeln!(
            f,
            "pair: one alloc and one free. -: none, or the cores overlapped too little in more than half of the rounds"
        )?;
        writeln!(f, "    (run it on an idle machine).\n{NOTES}")
    }
}

impl Report for Table {
    fn json(&self) -> Value {
        let mut results = Vec::new();
        for cell in &self.cells {
            let Config { order, threads, .. } = cell.config;
            for (which, contestant) in self.contestants.iter().enumerate() {
                let mut value = json!({
                    "allocator": contestant.name(), "order": order, "threads": threads,
                    "cores": gate::cores().min(threads),
                });
                for (measure, name) in MEASURES.iter().enumerate() {
                    let figure = |which: usize| &cell.figures[which][measure];
                    value[*name] = figure_json(&self.contestants, which, figure);
                }
                if *contestant == Contestant::Dirigible {
                    value["aims"] = json!(llfree::row(&AIMS, order, threads));
                }
                results.push(value);
            }
        }
        let llfree: Vec<Value> = self
            .cells
            .iter()
            .map(|cell| {
                let Config { order, threads, .. } = cell.config;
                let by_yardstick = llfree::by_yardstick(order, threads);
                let [published, linux] = llfree::published(order, threads);
                let mut value = json!({ "order": order, "threads": threads });
                for (measure, name) in MEASURES.iter().enumerate() {
                    value[*name] = json!({
                        "divided_by_yardstick": by_yardstick[measure],
                        "published": published[measure], "published_linux": linux[measure],
                    });
                }
                value
            })
            .collect();
        json!({
            "unit": "ns", "results": results, "yardstick": YARDSTICK.name(), "llfree": llfree,
            "locked_exchange": { "here": self.exchange, "where_the_aims_were_set": EXCHANGE_OF_AIMS },
        })
    }
}
