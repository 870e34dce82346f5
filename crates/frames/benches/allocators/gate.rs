//! Threads that do the same thing at the same time: pinning, a barrier that releases sharply, and the overlap of what
//! followed.

use std::hint::spin_loop;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A barrier on which the waiters spin: futex wake-ups take longer than a whole round of order-9 blocks.
pub struct Gate {
    threads: usize,
    /// How long a waiter spins before it yields.
    patience: u32,
    arrived: AtomicUsize,
    generation: AtomicUsize,
}

impl Gate {
    /// A gate that opens whenever `threads` threads stand before it.
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            // If threads share a core, a spinning one keeps the awaited one from running.
            patience: if threads > cores() { 16 } else { 4096 },
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
        }
    }

    /// Waits for all threads. Spins, and yields the CPU now and then, since the others may need it to get here.
    pub fn wait(&self) {
        // Pairs with the release below: what was done before the gate is visible behind it.
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation + 1, Ordering::Release);
            return;
        }
        let mut spins = 0u32;
        while self.generation.load(Ordering::Acquire) == generation {
            spins += 1;
            if spins.is_multiple_of(self.patience) {
                thread::yield_now()
            } else {
                spin_loop()
            }
        }
    }
}

/// When one thread did its part of a round.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    start: Instant,
    end: Instant,
    operations: usize,
}

impl Span {
    /// `operations` operations from `start` to `end`.
    pub fn new(start: Instant, end: Instant, operations: usize) -> Self {
        Self {
            start,
            end,
            operations,
        }
    }

    /// Passes the gate, then runs and times `work`, which is `operations` operations.
    pub fn time(gate: &Gate, operations: usize, work: impl FnOnce()) -> Self {
        gate.wait();
        let start = Instant::now();
        work();
        Self::new(start, Instant::now(), operations)
    }

    /// Both, where they shared a core: from the first start to the last end.
    fn and(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
            operations: self.operations + other.operations,
        }
    }

    fn nanoseconds_per_operation(&self) -> f64 {
        (self.end - self.start).as_nanos() as f64 / self.operations as f64
    }
}

/// The least share of a round's time in which all cores must have been at work.
const OVERLAP: f64 = 0.6;

/// ns per operation of a core in one round, where thread *i* ran on core *i* modulo `cores`; `None` when the cores were
/// at work one after the other more than together.
///
/// Threads that share a core cannot overlap; what they did counts as the work of that core, so that the figure is ns of
/// a core's time in either case.
pub fn round(spans: &[Span], cores: usize) -> Option<f64> {
    let cores: Vec<Span> = (0..cores.min(spans.len()))
        .filter_map(|core| {
            let on_it = spans.iter().skip(core).step_by(cores).copied();
            on_it.reduce(Span::and)
        })
        .collect();
    let last_start = cores.iter().map(|s| s.start).max()?;
    let first_end = cores.iter().map(|s| s.end).min()?;
    let first_start = cores.iter().map(|s| s.start).min()?;
    let last_end = cores.iter().map(|s| s.end).max()?;
    let together = first_end
        .checked_duration_since(last_start)
        .unwrap_or(Duration::ZERO);
    if together.as_secs_f64() < OVERLAP * (last_end - first_start).as_secs_f64() {
        return None;
    }
    let sum: f64 = cores.iter().map(Span::nanoseconds_per_operation).sum();
    Some(sum / cores.len() as f64)
}

/// How many CPUs this process may use. To be asked by the main thread first: a pinned thread sees only its own.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| allowed().len().max(1))
}

/// Threads, and what they share cores on: "1 thread", "4 threads on 2 cores (time-sharing)".
pub fn describe(threads: usize) -> String {
    match threads {
        1 => "1 thread".to_owned(),
        _ if threads <= cores() => format!("{threads} threads"),
        _ => {
            let cores = cores();
            let plural = if cores == 1 { "" } else { "s" };
            format!("{threads} threads on {cores} core{plural} (time-sharing)")
        }
    }
}

fn allowed() -> Vec<usize> {
    sched_getaffinity(None).map_or_else(
        |_| Vec::new(),
        |set| {
            (0..CpuSet::MAX_CPU)
                .filter(|&cpu| set.is_set(cpu))
                .collect()
        },
    )
}

/// Binds the calling thread to the `index`-th CPU that the process may use, if the system lets it.
pub fn pin(index: usize) {
    let cpus = allowed();
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    set.set(cpus[index % cpus.len()]);
    // Without permission the figures are only noisier.
    let _ = sched_setaffinity(None, &set);
}
