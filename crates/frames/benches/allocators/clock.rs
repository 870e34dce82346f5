//! A clock for single calls: the time stamp counter where there is one that keeps time, else [`Instant`].

use std::time::{Duration, Instant};

/// Calibrated against [`Instant`], with what it costs itself.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// ns of a tick of the counter; `None` where [`Instant`] serves.
    tick: Option<f64>,
    /// Ticks that pass between two readings with nothing between them.
    cost: u64,
}

impl Clock {
    /// Calibrates, which takes 60 ms.
    pub fn new() -> Self {
        let rates = [calibrate(), calibrate(), calibrate()];
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        // A counter that stops or changes its pace is no clock.
        let steady = least > 0.0 && most.is_finite() && most < least * 1.01;
        let mut clock = Self {
            start: Instant::now(),
            tick: steady.then_some((least + most) / 2.0),
            cost: 0,
        };
        let mut costs: Vec<u64> = (0..10_001).map(|_| clock.ticks_of(|| ()).1).collect();
        costs.sort_unstable();
        clock.cost = costs[costs.len() / 2];
        clock
    }

    /// What it is.
    pub fn name(&self) -> &'static str {
        if self.tick.is_some() {
            "time stamp counter"
        } else {
            "the system's monotonic clock"
        }
    }

    /// The median of what two readings measure with nothing between them, ns.
    pub fn cost(&self) -> f64 {
        self.nanoseconds(self.cost)
    }

    /// Does `work`, and measures it in ticks; the clock's own cost is taken off.
    #[inline]
    pub fn time<R>(&self, work: impl FnOnce() -> R) -> (R, u64) {
        let (result, ticks) = self.ticks_of(work);
        (result, ticks.saturating_sub(self.cost))
    }

    #[inline]
    fn ticks_of<R>(&self, work: impl FnOnce() -> R) -> (R, u64) {
        if self.tick.is_some() {
            let before = counter::read();
            let result = work();
            (result, counter::read().wrapping_sub(before))
        } else {
            let before = self.start.elapsed();
            let result = work();
            (result, (self.start.elapsed() - before).as_nanos() as u64)
        }
    }

    /// Ticks as ns.
    pub fn nanoseconds(&self, ticks: u64) -> f64 {
        ticks as f64 * self.tick.unwrap_or(1.0)
    }
}

/// ns of a tick, over 20 ms; infinite if the counter does not move.
fn calibrate() -> f64 {
    let (start, first) = (Instant::now(), counter::read());
    while start.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    let (elapsed, last) = (start.elapsed(), counter::read());
    elapsed.as_nanos() as f64 / last.wrapping_sub(first) as f64
}

#[cfg(target_arch = "x86_64")]
mod counter {
    use std::arch::x86_64::{_mm_lfence, _rdtsc};

    /// The counter, after all that stands before has been done and before anything that stands behind begins.
    #[inline]
    pub fn read() -> u64 {
        // SAFETY: every x86-64 has these instructions, they touch no memory, and Linux lets programs read the counter.
        unsafe {
            _mm_lfence();
            let ticks = _rdtsc();
            _mm_lfence();
            ticks
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod counter {
    /// There is none that every machine has: calibration finds that it stands still.
    pub fn read() -> u64 {
        0
    }
}
