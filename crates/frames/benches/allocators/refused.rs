//! Section `refused`: what a requester that cannot be served costs the one beside it.
//!
//! All memory is taken, then most of it freed again so that one frame keeps each second block, or each block, from
//! being whole. One thread then requests two blocks in a row (order 10), or one, over and over, which always fails,
//! while another allocates and frees. The other's time per pair is taken with and without it, in turns.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Run;
use crate::gate;
use crate::peers::{Contestant, Peer, Scenario};
use crate::progress;
use crate::report::{Figure, Grid, Report, figure_json, short, texts};

const BUDGET: Duration = Duration::from_secs(30);
const PASSES: usize = 6;
/// How often in a pass the worker is timed alone and with the other.
const TURNS: usize = 3;
const BLOCK: usize = 512;

/// Who asks for what.
struct Case {
    /// The order of the requests that fail.
    doomed: u8,
    /// The order that the worker takes and frees.
    worker: u8,
}

const CASES: [Case; 3] = [
    Case {
        doomed: 10,
        worker: 0,
    },
    Case {
        doomed: 10,
        worker: 9,
    },
    Case {
        doomed: 9,
        worker: 0,
    },
];

impl Case {
    /// Blocks from the first of which one frame is never freed.
    fn step(&self) -> usize {
        // A whole block is what the worker may have when the other wants two.
        if self.doomed == 10 { 2 } else { 1 }
    }
}

/// What came out of a turn.
#[derive(Default)]
struct Turn {
    /// Pairs that the worker made, and in how long.
    pairs: u64,
    worked: Duration,
    /// Requests of the worker that were refused.
    starved: u64,
    /// Requests of the other that were refused, and in how long.
    refusals: u64,
    refused: Duration,
    /// Those that were served although they could not be.
    served: u64,
}

/// One pass of one allocator.
struct Pass<'a> {
    case: &'a Case,
    frames: usize,
    length: Duration,
}

impl Scenario for Pass<'_> {
    type Outcome = Vec<[Turn; 2]>;

    fn frames(&self) -> usize {
        self.frames
    }

    fn cpus(&self) -> usize {
        2
    }

    fn run<P: Peer>(&self, peer: &P) -> Self::Outcome {
        let kept = arrange(peer, self.case.step());
        let turn = || [false, true].map(|beside| self.turn(peer, beside));
        let turns = (0..TURNS).map(|_| turn()).collect();
        kept.into_iter().for_each(|frame| peer.free(0, frame, 0));
        peer.check();
        turns
    }
}

/// Takes everything, then frees all but one frame of every `step`-th block. Gives the frames that stay.
fn arrange<P: Peer>(peer: &P, step: usize) -> Vec<u64> {
    let all: Vec<u64> = std::iter::from_fn(|| peer.alloc_last(0)).collect();
    let mut spoilt = BTreeSet::new();
    let (kept, free): (Vec<u64>, Vec<u64>) = all.into_iter().partition(|&frame| {
        let block = peer.number(frame) / BLOCK;
        block.is_multiple_of(step) && spoilt.insert(block)
    });
    free.into_iter().for_each(|frame| peer.free(0, frame, 0));
    kept
}

impl Pass<'_> {
    /// The worker for a while, with the other or without.
    fn turn<P: Peer>(&self, peer: &P, beside: bool) -> Turn {
        let stop = AtomicBool::new(false);
        let running = || !stop.load(Ordering::Relaxed);
        thread::scope(|scope| {
            let doomed = beside.then(|| {
                scope.spawn(|| {
                    gate::pin(1);
                    self.be_refused(peer, &running)
                })
            });
            let worker = scope.spawn(|| {
                gate::pin(0);
                self.work(peer, &running)
            });
            thread::sleep(self.length);
            stop.store(true, Ordering::Relaxed);
            let turn = worker.join().expect("the worker panicked");
            let refused = doomed.map(|d| d.join().expect("the refused one panicked"));
            Turn {
                pairs: turn.pairs,
                worked: turn.worked,
                starved: turn.starved,
                ..refused.unwrap_or_default()
            }
        })
    }

    fn work<P: Peer>(&self, peer: &P, running: &impl Fn() -> bool) -> Turn {
        let mut turn = Turn::default();
        let start = Instant::now();
        // At least one: a short turn may have ended before this thread began.
        loop {
            match peer.alloc(0, self.case.worker) {
                Some(frame) => {
                    peer.free(0, frame, self.case.worker);
                    turn.pairs += 1;
                }
                None => turn.starved += 1,
            }
            if !running() {
                break;
            }
        }
        turn.worked = start.elapsed();
        turn
    }

    fn be_refused<P: Peer>(&self, peer: &P, running: &impl Fn() -> bool) -> Turn {
        let mut turn = Turn::default();
        let start = Instant::now();
        while running() {
            match peer.alloc(1, self.case.doomed) {
                Some(frame) => {
                    peer.free(1, frame, self.case.doomed);
                    turn.served += 1;
                }
                None => turn.refusals += 1,
            }
        }
        turn.refused = start.elapsed();
        turn
    }
}

/// The figures of one allocator in one case.
#[derive(Clone, Default)]
struct Row {
    alone: Figure,
    beside: Figure,
    refusal: Figure,
    pairs: u64,
    starved: u64,
    served: u64,
}

impl Row {
    fn add(&mut self, [alone, beside]: &[Turn; 2]) {
        self.alone.add(each(alone.worked, alone.pairs));
        self.beside.add(each(beside.worked, beside.pairs));
        self.refusal.add(each(beside.refused, beside.refusals));
        self.pairs += beside.pairs;
        self.starved += alone.starved + beside.starved;
        self.served += beside.served;
    }

    fn values(&self) -> [Option<f64>; 4] {
        let (alone, beside) = (self.alone.median(), self.beside.median());
        let slower = beside.zip(alone).map(|(beside, alone)| beside / alone);
        [alone, beside, slower, self.refusal.median()]
    }
}

fn each(time: Duration, count: u64) -> Option<f64> {
    (count > 0).then(|| time.as_nanos() as f64 / count as f64)
}

/// All that was measured: for each case the rows of all allocators.
pub struct Refused {
    contestants: Vec<Contestant>,
    cases: Vec<Vec<Row>>,
}

/// Runs all passes.
pub fn run(run: &Run) -> Refused {
    let count = run.contestants.len();
    let mut cases = vec![vec![Row::default(); count]; CASES.len()];
    let length = Duration::from_millis(if run.scale.is_smoke() { 2 } else { 15 });
    for pass in progress::passes("refused", run.passes.min(PASSES), BUDGET) {
        for (case, rows) in CASES.iter().zip(&mut cases) {
            for which in (0..count).map(|turn| (pass + turn) % count) {
                let turns = run.contestants[which].run(&Pass {
                    case,
                    frames: run.scale.frames(),
                    length,
                });
                turns.iter().for_each(|turn| rows[which].add(turn));
            }
        }
    }
    Refused {
        contestants: run.contestants.clone(),
        cases,
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (case, rows) in CASES.iter().zip(&self.cases) {
            let title = format!(
                "order {} in vain beside a worker's pairs of order {}, {}: ns, medians of {} turns",
                case.doomed,
                case.worker,
                gate::describe(2),
                rows.iter().map(|r| r.beside.samples()).max().unwrap_or(0)
            );
            let columns = ["pair alone", "pair beside", "beside/alone", "refusal"];
            let mut grid = Grid::new(&title, [42, 18], &columns);
            for (&contestant, row) in self.contestants.iter().zip(rows) {
                let [alone, beside, slower, refusal] = row.values();
                let shown = texts(&[alone, beside, slower, refusal], short);
                grid.row_as(contestant, &shown, &[alone, beside, None, refusal]);
                if contestant == Contestant::Dirigible {
                    let [alone, beside, refusal] =
                        [&row.alone, &row.beside, &row.refusal].map(Figure::spread);
                    grid.line("  quartiles", &[alone, beside, String::new(), refusal]);
                    let worst = [row.alone.max(), row.beside.max(), None, row.refusal.max()];
                    grid.line("  worst turn", &texts(&worst, short));
                }
            }
            grid.ratios();
            write!(f, "{grid}")?;
            for (contestant, row) in self.contestants.iter().zip(rows) {
                if *contestant == Contestant::Dirigible || row.starved + row.served > 0 {
                    writeln!(
                        f,
                        "{}: {} requests of the worker refused beside {} pairs; {} in vain that were served",
                        contestant.name(),
                        row.starved,
                        row.pairs,
                        row.served
                    )?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Report for Refused {
    fn json(&self) -> Value {
        let mut results = Vec::new();
        for (case, rows) in CASES.iter().zip(&self.cases) {
            for (which, (contestant, row)) in self.contestants.iter().zip(rows).enumerate() {
                let figure = |of: fn(&Row) -> &Figure| {
                    figure_json(&self.contestants, which, |which| of(&rows[which]))
                };
                results.push(json!({
                    "allocator": contestant.name(), "refused_order": case.doomed, "worker_order": case.worker,
                    "pair_alone": figure(|row| &row.alone), "pair_beside": figure(|row| &row.beside),
                    "refusal": figure(|row| &row.refusal),
                    "pairs": row.pairs, "worker_refused": row.starved, "served": row.served,
                }));
            }
        }
        json!({ "unit": "ns", "results": results })
    }

    fn check(&self) {
        for (case, rows) in CASES.iter().zip(&self.cases) {
            for (contestant, row) in self.contestants.iter().zip(rows) {
                let name = contestant.name();
                assert_eq!(row.served, 0, "{name}: order {} served", case.doomed);
                assert!(row.pairs > 0, "{name}: no pair of order {}", case.worker);
            }
        }
    }
}
