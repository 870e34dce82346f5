//! Threads that do the same thing at the same time: pinning, a barrier that releases sharply, and the overlap of what followed.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A barrier on which the waiters spin: futex wake-ups take longer than a whole round of order-9 blocks.
pub struct Gate {
    threads: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
}

impl Gate {
    /// A gate that opens whenever `threads` threads stand before it.
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
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
            if spins.is_multiple_of(4096) {
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
    /// Passes the gate, then runs and times `work`, which is `operations` operations.
    pub fn time(gate: &Gate, operations: usize, work: impl FnOnce()) -> Self {
        gate.wait();
        let start = Instant::now();
        work();
        Self {
            start,
            end: Instant::now(),
            operations,
        }
    }

    fn nanoseconds_per_operation(&self) -> f64 {
        (self.end - self.start).as_nanos() as f64 / self.operations as f64
    }
}

/// The least share of a round's time in which all threads must have been at work.
const OVERLAP: f64 = 0.6;

/// ns per operation and thread in one round, or `None` when the threads ran one after the other more than together.
pub fn round(spans: &[Span]) -> Option<f64> {
    let last_start = spans.iter().map(|s| s.start).max()?;
    let first_end = spans.iter().map(|s| s.end).min()?;
    let first_start = spans.iter().map(|s| s.start).min()?;
    let last_end = spans.iter().map(|s| s.end).max()?;
    let together = first_end
        .checked_duration_since(last_start)
        .unwrap_or(Duration::ZERO);
    if together.as_secs_f64() < OVERLAP * (last_end - first_start).as_secs_f64() {
        return None;
    }
    Some(
        spans
            .iter()
            .map(Span::nanoseconds_per_operation)
            .sum::<f64>()
            / spans.len() as f64,
    )
}

/// Binds the calling thread to the `index`-th CPU that the process may use, if the system lets it.
pub fn pin(index: usize) {
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .collect();
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    set.set(cpus[index % cpus.len()]);
    // Without permission the figures are only noisier.
    let _ = sched_setaffinity(None, &set);
}
