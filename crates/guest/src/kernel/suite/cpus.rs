//! CPUs, clock and interrupts.

use core::{
    hint::{black_box, spin_loop},
    sync::atomic::{AtomicU64, Ordering},
};

use dirigible_frames::Platform;

use super::manager::Memory;
use super::{
    deadline::MILLISECOND,
    outcome::{Outcome, Verdict, ensure},
};
use crate::kernel::{
    arch::{clock, cpu, interrupts, smp},
    machine::Guest,
    platform::GuestPlatform,
};

/// Two CPUs read the clock in turns: it never goes back from one to the other.
pub(super) fn clocks_agree_across_cpus(guest: &Guest, _: &mut Memory) -> Outcome {
    const ROUNDS: u64 = 20_000;
    ensure(guest.cpus >= 2, || {
        "needs two CPUs: start with -smp 2".into()
    })?;
    let shown = AtomicU64::new(clock::now());
    let turn = AtomicU64::new(0);
    let verdict = Verdict::default();
    smp::on_all(&|cpu| {
        let me = cpu.index() as u64;
        while me < 2 && !verdict.has_failed() {
            let now = turn.load(Ordering::Acquire);
            if now >= ROUNDS {
                break;
            }
            if now % 2 != me {
                spin_loop();
                continue;
            }
            let (before, mine) = (shown.load(Ordering::Relaxed), clock::now());
            verdict.note(ensure(before <= mine, || {
                alloc::format!("the clock went back from {before} to {mine} ns between two CPUs")
            }));
            shown.store(mine, Ordering::Relaxed);
            turn.store(now + 1, Ordering::Release);
        }
    });
    verdict.outcome()
}

/// A halted CPU wakes 1,000 times a second.
pub(super) fn the_timer_ticks(_: &Guest, _: &mut Memory) -> Outcome {
    let start = clock::now();
    let mut woken = 0;
    while clock::now() < start + 100 * MILLISECOND {
        interrupts::idle();
        woken += 1;
    }
    // A busy host may lose ticks. If the timer does not tick at all, the loop hangs, until the command's time limit
    // ends it.
    ensure((5..=500).contains(&woken), || {
        alloc::format!("{woken} ticks in 100 ms")
    })
}

/// Interrupts preserve all registers, vector registers too.
pub(super) fn interrupts_keep_registers(_: &Guest, _: &mut Memory) -> Outcome {
    fn compute() -> (f64, u64) {
        let (mut sum, mut hash) = (0.0_f64, 1_u64);
        for step in 1..200_000_u64 {
            let value = black_box(step) as f64;
            sum += (value * 1.000_1 + 0.5) / (value + 3.0);
            hash = hash.rotate_left(5) ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        (sum, hash)
    }
    let verdict = Verdict::default();
    let expected = x86_64::instructions::interrupts::without_interrupts(compute);
    smp::on_all(&|_| {
        let start = clock::now();
        while clock::now() < start + 300 * MILLISECOND {
            let found = compute();
            verdict.note(ensure(found == expected, || {
                alloc::format!("computed {found:?} with interrupts, {expected:?} without")
            }));
        }
    });
    verdict.outcome()
}

/// Each CPU does the work once, under its own number.
pub(super) fn all_cpus_work_together(guest: &Guest, _: &mut Memory) -> Outcome {
    for _ in 0..200 {
        let seen = AtomicU64::new(0);
        smp::on_all(&|cpu| {
            let own = cpu::current_id() == cpu && GuestPlatform.cpu() == cpu;
            let before = seen.fetch_or(1 << cpu.index(), Ordering::AcqRel);
            if !own || before & 1 << cpu.index() != 0 {
                seen.store(u64::MAX, Ordering::Release);
            }
        });
        let seen = seen.into_inner();
        ensure(seen == (1 << guest.cpus) - 1, || {
            alloc::format!("{} CPUs, seen {seen:#b}", guest.cpus)
        })?;
    }
    Ok(())
}
