//! The platform of the hosted machine.

use core::{cell::Cell, sync::atomic::Ordering};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use dirigible::schedule::{Current, caller};
use dirigible_frames::{Cost, CpuId, FrameContents, PageTables, Pfn, Platform};

use crate::{
    binding::{BindError, CpuBinding, CpuTable, bound_cpu},
    clock::{Clock, Due},
    costs::{RELAX, price},
    devices::interrupt::Event,
    memory::{guest_ram::GuestRam, managed::ManagedMemory},
    sections::Sections,
};

/// How a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// One thread, virtual time: devices take requests inside `notify` and answer as time passes. The same input gives
    /// the same run.
    #[default]
    Deterministic,
    /// Real threads, real time, devices on threads of their own.
    Threads,
}

/// Longest that [`Platform::relax`] parks a thread; an interrupt ends it at once.
const LONGEST_NAP: Duration = Duration::from_micros(100);

thread_local! {
    /// A machine's number, and how many of its interrupts this thread knew of when it was last idle.
    static SEEN: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    /// The program that this thread runs, of whichever machine it is.
    static CURRENT: Current = const { Current::new() };
}

/// Guest memory, CPUs and clock of a hosted machine.
///
/// # Who may call what
///
/// In a deterministic machine one thread does everything; it is CPU 0 unless bound to another. In a threaded machine a
/// thread binds itself to a CPU of its own by [`bind_cpu`](Self::bind_cpu) before it works with the memory manager.
///
/// # Panics
///
/// - `cpu`, `enter_access`, `leave_access` and `shoot_down` on an unbound thread of a threaded machine;
/// - accesses to frames that are not managed memory (holes, metadata, DMA area, beyond the end), to a word above 511,
///   and runs of frames that cross a hole. All are the caller's mistakes.
#[derive(Debug)]
pub struct HostedPlatform {
    managed: ManagedMemory,
    /// Keeps `managed` mapped.
    ram: GuestRam,
    machine: u64,
    mode: Mode,
    clock: Arc<Clock>,
    cpus: Arc<CpuTable>,
    cpu_count: u16,
    sections: Sections,
    interrupts: Arc<Event>,
    dues: OnceLock<Vec<Arc<dyn Due>>>,
}

impl HostedPlatform {
    /// The platform of a machine with this memory.
    pub(crate) fn new(
        ram: GuestRam,
        cpus: u16,
        mode: Mode,
        clock: Arc<Clock>,
        interrupts: Arc<Event>,
    ) -> Self {
        let machine = ram.shared().id();
        Self {
            managed: ram.shared().managed().clone(),
            ram,
            machine,
            mode,
            clock,
            cpus: Arc::new(CpuTable::new(machine, cpus)),
            cpu_count: cpus,
            sections: Sections::new(cpus),
            interrupts,
            dues: OnceLock::new(),
        }
    }

    /// Sets what has work to do as virtual time passes. Only the first call has an effect.
    pub(crate) fn set_dues(&self, dues: Vec<Arc<dyn Due>>) {
        let _ = self.dues.set(dues);
    }

    /// Makes the calling thread CPU `cpu` until the result is dropped.
    pub fn bind_cpu(&self, cpu: CpuId) -> Result<CpuBinding, BindError> {
        self.cpus.bind(cpu)
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> u16 {
        self.cpu_count
    }

    /// How the machine runs.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The machine's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Moves virtual time on to `ns`, unless it is later already, and lets devices answer what was due until then.
    /// Real time goes on by itself: in a threaded machine nothing happens.
    pub fn advance_to(&self, ns: u64) {
        self.clock.advance_to(ns);
        self.run_due();
    }

    /// Lets devices do what is due by now.
    pub(crate) fn run_due(&self) {
        if self.mode != Mode::Deterministic {
            return;
        }
        let now = self.clock.now();
        for due in self.dues.get().into_iter().flatten() {
            if due.due() <= now {
                due.run(now);
            }
        }
    }

    /// The earliest moment of virtual time at which a device has something to do; `u64::MAX`: none has.
    pub(crate) fn next_due(&self) -> u64 {
        let dues = self.dues.get().into_iter().flatten();
        dues.map(|due| due.due()).min().unwrap_or(u64::MAX)
    }

    /// Lets a moment pass: [`RELAX`] of virtual time, in which devices answer what is due; or parks the thread.
    pub(crate) fn let_time_pass(&self) {
        match self.mode {
            Mode::Deterministic => {
                self.clock.charge(RELAX);
                self.run_due();
            }
            Mode::Threads => self.park(),
        }
    }

    /// Calls `run` with the place where this thread keeps which program it runs.
    pub(crate) fn with_current(run: &mut dyn FnMut(&Current)) {
        CURRENT.with(|current| run(current));
    }

    /// Parks this thread until an interrupt that it has not yet seen.
    fn park(&self) {
        let (machine, seen) = SEEN.get();
        // One that came since the last call may be the one that the caller looked for just too early: it looks again.
        if machine == self.machine && seen == self.interrupts.count() {
            self.interrupts.wait_past(seen, LONGEST_NAP);
        }
        SEEN.set((self.machine, self.interrupts.count()));
    }

    /// CPU of a thread in an access section or shooting down.
    #[inline]
    fn section_cpu(&self) -> Option<CpuId> {
        match self.mode {
            // One thread: whoever is inside a section is the caller.
            Mode::Deterministic => None,
            Mode::Threads => Some(self.cpu()),
        }
    }
}

impl Platform for HostedPlatform {
    #[inline]
    fn cpu(&self) -> CpuId {
        match (bound_cpu(self.machine), self.mode) {
            (Some(cpu), _) => cpu,
            (None, Mode::Deterministic) => CpuId::new(0),
            (None, Mode::Threads) => not_bound(),
        }
    }

    #[inline]
    fn caller(&self, cpu: CpuId) -> u64 {
        caller(cpu, CURRENT.with(Current::number))
    }

    #[inline]
    fn now(&self) -> u64 {
        self.clock.now()
    }

    #[inline]
    fn charge(&self, cost: Cost) {
        self.clock.charge(price(cost));
    }

    /// In a program: lets other actors of its engine run. Elsewhere, in a deterministic machine: lets [`RELAX`] of
    /// virtual time pass and devices answer what is due; with threads: parks until a device's interrupt, 100 µs at
    /// most. It never spins.
    fn relax(&self) {
        if !CURRENT.with(Current::wait) {
            self.let_time_pass();
        }
    }

    /// In a program: its engine resumes it at `time`, or earlier when the run is over. Elsewhere as
    /// [`relax`](Platform::relax), again and again.
    fn sleep_until(&self, time: u64) {
        if self.now() >= time || CURRENT.with(|current| current.wait_until(time)) {
            return;
        }
        while self.now() < time {
            self.let_time_pass();
        }
    }
}

impl FrameContents for HostedPlatform {
    #[inline]
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        self.managed.word(frame, index).load(Ordering::Relaxed)
    }

    #[inline]
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        self.managed
            .word(frame, index)
            .store(value, Ordering::Relaxed);
    }

    #[inline]
    fn write_lines(&self, frame: Pfn, words: &[u64; 64]) {
        self.managed.write_lines(frame, words);
    }

    #[inline]
    fn read_lines(&self, frame: Pfn, out: &mut [u64; 64]) {
        self.managed.read_lines(frame, out);
    }

    fn copy_frames(&self, from: Pfn, to: Pfn, count: usize) {
        self.managed.copy(from, to, count);
    }

    fn zero_frames(&self, first: Pfn, count: usize) {
        self.managed.zero(first, count);
    }
}

impl PageTables for HostedPlatform {
    #[inline]
    fn load_entry(&self, table: Pfn, index: usize) -> u64 {
        self.managed.word(table, index).load(Ordering::Acquire)
    }

    #[inline]
    fn swap_entry(&self, table: Pfn, index: usize, value: u64) -> u64 {
        self.managed
            .word(table, index)
            .swap(value, Ordering::AcqRel)
    }

    #[inline]
    fn compare_exchange_entry(
        &self,
        table: Pfn,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        self.managed.word(table, index).compare_exchange(
            current,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
    }

    #[inline]
    fn or_entry(&self, table: Pfn, index: usize, bits: u64) -> u64 {
        self.managed
            .word(table, index)
            .fetch_or(bits, Ordering::AcqRel)
    }

    #[inline]
    fn enter_access(&self) {
        if let Some(cpu) = self.section_cpu() {
            self.sections.enter(cpu);
        }
    }

    #[inline]
    fn leave_access(&self) {
        if let Some(cpu) = self.section_cpu() {
            self.sections.leave(cpu);
        }
    }

    fn shoot_down(&self, _space: u32, _address: u64) {
        if let Some(cpu) = self.section_cpu() {
            self.sections.wait_for_others(cpu);
        }
    }
}

/// A caller's mistake: kept out of line so that `cpu` stays small.
#[cold]
#[inline(never)]
fn not_bound() -> ! {
    panic!("this thread is no CPU of the threaded machine: call HostedPlatform::bind_cpu first");
}
