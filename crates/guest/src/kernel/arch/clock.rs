//! Time: the time stamp counter, calibrated against the legacy interval timer (PIT) at boot.

use core::{
    arch::x86_64::_rdtsc,
    sync::atomic::{AtomicU64, Ordering},
};

use x86_64::instructions::port::Port;

use super::apic;

/// Ticks of the interval timer in a second.
const PIT_HZ: u64 = 1_193_182;
/// Ticks of the interval timer in the 20 ms of one measurement.
const PIT_TICKS: u64 = PIT_HZ / 50;
const PIT_COUNTER: u16 = 0x40;
const PIT_COMMAND: u16 = 0x43;
/// Most measurements after the first.
const ATTEMPTS: u32 = 20;
/// Timer interrupts in a second.
const HZ: u32 = 1000;

static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds in a tick of the time stamp counter, times 2^32; 0 until measured.
static SCALE: AtomicU64 = AtomicU64::new(0);
/// Ticks of the local APIC's timer between two interrupts.
static TIMER_COUNT: AtomicU64 = AtomicU64::new(0);

/// Reads the time stamp counter.
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and ring 0 may always use it.
    unsafe { _rdtsc() }
}

/// Converts ticks of the time stamp counter to nanoseconds.
#[inline]
pub fn nanoseconds(ticks: u64) -> u64 {
    // Relaxed: written at boot, before other CPUs run.
    ((u128::from(ticks) * u128::from(SCALE.load(Ordering::Relaxed))) >> 32) as u64
}

/// Nanoseconds since [`restart`].
#[inline]
pub fn now() -> u64 {
    nanoseconds(ticks().wrapping_sub(START.load(Ordering::Relaxed)))
}

/// Starts the clock at 0 again.
pub fn restart() {
    START.store(ticks(), Ordering::Relaxed);
}

/// Why the clock could not be calibrated.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The interval timer does not count.
    #[error("the interval timer (ports 0x40 and 0x43) stands still: the machine needs one")]
    NotCounting,
    /// No two measurements in a row agree.
    #[error("the time stamp counter's pace cannot be measured: the host is too busy")]
    Unsteady,
}

/// The result of one measurement.
#[derive(Clone, Copy)]
struct Rates {
    /// Ticks of the time stamp counter in a second.
    counter: u64,
    /// Ticks of the local APIC's timer in a second.
    timer: u64,
}

/// Measures the time stamp counter and the local APIC's timer, until two measurements in a row agree within 1 %: the
/// host may stop a virtual CPU for longer than the interval timer counts. Gives the counter's frequency in MHz.
///
/// # Errors
///
/// The interval timer does not count, or no two measurements in a row agree.
pub fn calibrate() -> Result<u64, ClockError> {
    let mut last = measure()?;
    for _ in 0..ATTEMPTS {
        let now = measure()?;
        let agree = |one: u64, other: u64| one.abs_diff(other) <= one.min(other) / 100;
        if agree(last.counter, now.counter) && agree(last.timer, now.timer) {
            let scale = (1_000_000_000_u128 << 32) / u128::from(now.counter.max(1));
            SCALE.store(scale as u64, Ordering::Relaxed);
            TIMER_COUNT.store(now.timer / u64::from(HZ), Ordering::Relaxed);
            return Ok(now.counter / 1_000_000);
        }
        last = now;
    }
    Err(ClockError::Unsteady)
}

fn measure() -> Result<Rates, ClockError> {
    let mut command = Port::<u8>::new(PIT_COMMAND);
    let mut counter = Port::<u8>::new(PIT_COUNTER);
    // SAFETY: the interval timer's ports; nothing else uses it. Counter 0 runs freely from its highest value, in mode
    // 2.
    unsafe {
        command.write(0x34);
        counter.write(0xff);
        counter.write(0xff);
    }
    // SAFETY: as above.
    let mut read = || unsafe {
        command.write(0);
        u64::from(counter.read()) | u64::from(counter.read()) << 8
    };
    apic::start_counting();
    let (first, start, counted) = (read(), ticks(), apic::counted());
    let elapsed = loop {
        let elapsed = first.wrapping_sub(read()) & 0xffff;
        if elapsed >= PIT_TICKS {
            break elapsed;
        }
        // 2^34 ticks take several seconds.
        if ticks() - start > 1 << 34 {
            return Err(ClockError::NotCounting);
        }
    };
    let (spent, timer) = (ticks() - start, apic::counted() - counted);
    let in_a_second =
        |count: u64| (u128::from(count) * u128::from(PIT_HZ) / u128::from(elapsed)) as u64;
    Ok(Rates {
        counter: in_a_second(spent),
        timer: in_a_second(u64::from(timer)),
    })
}

/// Starts the calling CPU's timer interrupt, 1,000 times a second.
pub fn start_tick() {
    start_fast_tick(1);
}

/// Starts the calling CPU's timer interrupt, 1,000 * `times` times a second.
pub fn start_fast_tick(times: u32) {
    apic::start_timer(TIMER_COUNT.load(Ordering::Relaxed) as u32 / times);
}

/// Spins for `ns` nanoseconds. For the short waits while CPUs are started.
pub fn spin_for(ns: u64) {
    let start = ticks();
    while nanoseconds(ticks() - start) < ns {
        core::hint::spin_loop();
    }
}
