//! Time: the time stamp counter, measured against the old interval timer at boot.

use core::{
    arch::x86_64::_rdtsc,
    sync::atomic::{AtomicU64, Ordering},
};

use x86_64::instructions::port::Port;

use super::apic;

/// The interval timer's pace.
const PIT_HZ: u64 = 1_193_182;
/// Its ticks in the 20 ms of the measurement.
const PIT_TICKS: u64 = PIT_HZ / 50;
const PIT_COUNTER: u16 = 0x40;
const PIT_COMMAND: u16 = 0x43;
/// Timer interrupts a second.
const HZ: u32 = 1000;

static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds in a tick, times 2^32; 0 until measured.
static SCALE: AtomicU64 = AtomicU64::new(0);
/// Ticks of the local APIC's timer between two interrupts.
static TIMER_COUNT: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter.
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 has the instruction, and ring 0 may always use it.
    unsafe { _rdtsc() }
}

/// Nanoseconds for a number of ticks.
#[inline]
pub fn nanoseconds(ticks: u64) -> u64 {
    // Relaxed: written once, before other CPUs run.
    ((u128::from(ticks) * u128::from(SCALE.load(Ordering::Relaxed))) >> 32) as u64
}

/// Nanoseconds since [`restart`], or boot.
#[inline]
pub fn now() -> u64 {
    nanoseconds(ticks().wrapping_sub(START.load(Ordering::Relaxed)))
}

/// The clock begins at 0 again.
pub fn restart() {
    START.store(ticks(), Ordering::Relaxed);
}

/// Measures the counter and the local APIC's timer: 20 ms. Gives the counter's MHz.
pub fn calibrate() -> u64 {
    let mut command = Port::<u8>::new(PIT_COMMAND);
    let mut counter = Port::<u8>::new(PIT_COUNTER);
    // SAFETY: the interval timer's ports; nobody else uses it.
    let mut read = || unsafe {
        command.write(0);
        u64::from(counter.read()) | u64::from(counter.read()) << 8
    };
    // SAFETY: as above. Counter 0 runs freely from its top, in mode 2.
    unsafe {
        Port::<u8>::new(PIT_COMMAND).write(0x34);
        Port::<u8>::new(PIT_COUNTER).write(0xff);
        Port::<u8>::new(PIT_COUNTER).write(0xff);
    }
    apic::start_counting();
    let (first, start, counted) = (read(), ticks(), apic::counted());
    let elapsed = loop {
        let elapsed = first.wrapping_sub(read()) & 0xffff;
        // A timer that stands still must not hang the boot: 2^34 ticks are seconds.
        if elapsed >= PIT_TICKS || ticks() - start > 1 << 34 {
            break elapsed.max(1);
        }
    };
    let spent = ticks() - start;
    let timer = apic::counted() - counted;
    let ns = u128::from(elapsed) * 1_000_000_000 / u128::from(PIT_HZ);
    let scale = ((ns << 32) / u128::from(spent.max(1))) as u64;
    SCALE.store(scale.max(1), Ordering::Relaxed);
    let per_tick = u128::from(timer) * 1_000_000_000 / ns.max(1) / u128::from(HZ);
    TIMER_COUNT.store(per_tick as u64, Ordering::Relaxed);
    (u128::from(spent) * 1000 / ns.max(1)) as u64
}

/// Starts the calling CPU's timer interrupt, a thousand a second.
pub fn start_tick() {
    apic::start_timer(TIMER_COUNT.load(Ordering::Relaxed) as u32);
}

/// Waits, busily: for the milliseconds of waking CPUs.
pub fn spin_for(ns: u64) {
    let start = ticks();
    while nanoseconds(ticks() - start) < ns {
        core::hint::spin_loop();
    }
}
