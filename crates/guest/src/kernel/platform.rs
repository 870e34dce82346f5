//! The memory manager's interface to the machine: `dirigible_frames`' platform traits on bare metal.

use core::sync::atomic::Ordering;

use dirigible::schedule;
use dirigible_frames::{
    CpuId, FrameContents, Interrupts, LINES_PER_FRAME, PageTables, Pfn, Platform, WORDS_PER_LINE,
};

use super::arch::{clock, cpu, interrupts, masking::Masking, physical, shoot_down, user};

/// Nanoseconds that a wait spins before it halts the CPU. Most locks are released, and most requests answered, sooner
/// than a halted CPU wakes.
const SPIN: u64 = 30_000;
/// If less than so many nanoseconds lie between two waits, they count as one.
const BETWEEN: u64 = 20_000;
/// Pause instructions in one spinning wait.
const PAUSES: u32 = 32;

/// The bare machine.
#[derive(Debug)]
pub struct GuestPlatform;

impl Platform for GuestPlatform {
    fn interrupts(&self) -> Option<&'static dyn Interrupts> {
        Some(&Masking)
    }

    #[inline]
    fn cpu(&self) -> CpuId {
        cpu::current_id()
    }

    #[inline]
    fn now(&self) -> u64 {
        clock::now()
    }

    fn caller(&self, cpu: CpuId) -> u64 {
        schedule::caller(cpu, cpu::current().program.number())
    }

    /// In a program: lets other actors of its engine run, even inside a page fault. Elsewhere: [`let_time_pass`].
    fn relax(&self) {
        let cpu = cpu::current();
        if cpu.program.number().is_none() {
            return let_time_pass();
        }
        let suspended = user::suspend(cpu);
        cpu.program.wait();
        user::go_on(cpu, suspended);
    }

    /// In a program: its engine resumes it at `time`, or earlier when the run is over. Elsewhere: [`let_time_pass`].
    fn sleep_until(&self, time: u64) {
        let cpu = cpu::current();
        if clock::now() >= time {
            return;
        }
        if cpu.program.number().is_some() {
            let suspended = user::suspend(cpu);
            cpu.program.wait_until(time);
            return user::go_on(cpu, suspended);
        }
        while clock::now() < time {
            let_time_pass();
        }
    }
}

/// Spins for a moment, and when the wait goes on halts the CPU until an interrupt, at most until the next tick.
pub fn let_time_pass() {
    let cpu = cpu::current();
    let now = clock::now();
    let (mut since, last) = cpu.waiting.get();
    // The clock begins anew when a run does.
    if last > now || now - last > BETWEEN {
        since = now;
    }
    if now - since < SPIN {
        for _ in 0..PAUSES {
            core::hint::spin_loop();
        }
    } else {
        interrupts::idle();
    }
    cpu.waiting.set((since, clock::now()));
}

impl FrameContents for GuestPlatform {
    #[inline]
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        physical::word(frame, index).load(Ordering::Relaxed)
    }

    #[inline]
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        physical::word(frame, index).store(value, Ordering::Relaxed);
    }

    fn write_lines(&self, frame: Pfn, lines: &[u64; LINES_PER_FRAME]) {
        let words = physical::words(frame).iter().step_by(WORDS_PER_LINE);
        for (word, &value) in words.zip(lines) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn read_lines(&self, frame: Pfn, out: &mut [u64; LINES_PER_FRAME]) {
        let words = physical::words(frame).iter().step_by(WORDS_PER_LINE);
        for (word, value) in words.zip(out) {
            *value = word.load(Ordering::Relaxed);
        }
    }

    fn copy_frames(&self, from: Pfn, to: Pfn, count: usize) {
        physical::copy(from, to, count);
    }

    fn zero_frames(&self, first: Pfn, count: usize) {
        physical::zero(first, count);
    }
}

impl PageTables for GuestPlatform {
    #[inline]
    fn load_entry(&self, table: Pfn, index: usize) -> u64 {
        physical::word(table, index).load(Ordering::Acquire)
    }

    #[inline]
    fn swap_entry(&self, table: Pfn, index: usize, value: u64) -> u64 {
        physical::word(table, index).swap(value, Ordering::AcqRel)
    }

    #[inline]
    fn compare_exchange_entry(
        &self,
        table: Pfn,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        physical::word(table, index).compare_exchange(
            current,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
    }

    #[inline]
    fn or_entry(&self, table: Pfn, index: usize, bits: u64) -> u64 {
        physical::word(table, index).fetch_or(bits, Ordering::AcqRel)
    }

    /// For page walks by software. Whether the hardware may walk is known from the root table that a CPU has loaded.
    #[inline]
    fn enter_access(&self) {
        cpu::current().section.enter();
    }

    #[inline]
    fn leave_access(&self) {
        cpu::current().section.leave();
    }

    fn shoot_down(&self, _space: u32, _address: u64) {
        shoot_down::everywhere();
    }
}
