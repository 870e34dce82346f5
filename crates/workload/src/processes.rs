//! Our kernel for the programs of the load: processes over address spaces, files and pipes.
//!
//! [`Processes`] keeps the table of all programs, [`Process`] answers the
//! [`Calls`](crate::calls::Calls) of one. A program that is spawned
//! waits in the queue of a CPU until the engine of that CPU takes it ([`Processes::arrive`]); it runs there to its end,
//! on a stack of its own.
//!
//! What a process causes in the kernel is unmovable memory: 16 KiB for its stack in the kernel, its page tables, the
//! pages of its pipes, and the inodes and names of the files that it uses.

mod files;
mod memory;
mod pipes;
mod process;
mod table;
#[cfg(test)]
mod tests;

use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dirigible::schedule::{Actor, Next, time};
use dirigible_frames::{Event, PageTables};
use spin::Mutex;

use crate::{
    calls::{Ended, Failure, Pid},
    control::Control,
    programs::{LoadPlan, Program, run},
    system::System,
    tuning::STALL,
};
use pipes::Pipes;
pub use process::Process;
use table::Table;

/// Most programs at a time.
pub const MAX_PROGRAMS: usize = 128;
/// A program that sleeps or waits for another one looks at least this often whether it is being killed.
const NAP: u64 = 250 * time::MILLISECOND;
/// Memory has ended when for so long no request of a program was served that could not be served at once.
const PATIENCE: u64 = 5 * time::SECOND;

/// All processes of a machine.
pub struct Processes<'e, 'a, P: PageTables> {
    system: &'e System<'a, P>,
    control: &'e Control,
    plan: LoadPlan,
    table: Mutex<Table>,
    pipes: Pipes,
    /// By place in the table: the program there is being killed.
    // Relaxed, everywhere: the program looks at each call; nothing is published with it.
    killed: [AtomicBool; MAX_PROGRAMS],
    /// By CPU: how many programs wait to begin. Raised after the table says so (release), read before it is (acquire).
    arrivals: Vec<AtomicUsize>,
    /// No program begins any more.
    closed: AtomicBool,
    /// Since when requests have failed without one that succeeded; 0: the last one succeeded.
    // Relaxed: a time that decides when to give up; it orders nothing.
    failing_since: AtomicU64,
}

impl<'e, 'a, P: PageTables> Processes<'e, 'a, P> {
    /// No process yet, on a machine with `cpus` engines for programs.
    pub fn new(
        system: &'e System<'a, P>,
        control: &'e Control,
        plan: LoadPlan,
        cpus: usize,
    ) -> Self {
        Self {
            system,
            control,
            plan,
            table: Mutex::new(Table::new(MAX_PROGRAMS)),
            pipes: Pipes::default(),
            killed: [const { AtomicBool::new(false) }; MAX_PROGRAMS],
            arrivals: (0..cpus.max(1)).map(|_| AtomicUsize::new(0)).collect(),
            closed: AtomicBool::new(false),
            failing_since: AtomicU64::new(0),
        }
    }

    /// Begins the first program, which begins all others.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub fn begin(&self, program: &Program) -> Result<Pid, Failure> {
        self.spawn(None, program, None)
    }

    /// A program that waits to begin on `cpu`, for the engine of that CPU. With none it costs one load.
    pub fn arrive<'p>(&'p self, cpu: usize) -> Option<Box<dyn Actor + 'p>>
    where
        'e: 'p,
    {
        let arrivals = &self.arrivals[cpu];
        if arrivals.load(Ordering::Acquire) == 0 {
            return None;
        }
        let place = self.table.lock().take_ready(cpu)?;
        // Relaxed: the table's lock has ordered it; a count that is read too large costs a look.
        arrivals.fetch_sub(1, Ordering::Relaxed);
        Some(Box::new(Running {
            processes: self,
            place,
            starved: false,
        }))
    }

    /// Kills all programs, and lets none begin any more. They end when they make their next call.
    pub fn kill_all(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for killed in &self.killed {
            killed.store(true, Ordering::Relaxed);
        }
    }

    /// How many programs have not ended.
    pub fn alive(&self) -> usize {
        self.table.lock().alive()
    }

    /// A process for the operator's own use: it is no program, and nobody kills it.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub fn operator(&self) -> Result<Process<'_, 'e, 'a, P>, Failure> {
        Process::new(self, None, None)
    }

    /// Counts a failure of `program`, unless it is that of being killed.
    pub(crate) fn count_failure(&self, program: &Program, failure: Failure) {
        if failure != Failure::Killed {
            self.control.count_failure(program.name(), failure);
        }
    }

    /// The plan of the load.
    pub fn plan(&self) -> &LoadPlan {
        &self.plan
    }

    fn spawn(
        &self,
        parent: Option<usize>,
        program: &Program,
        pipe: Option<crate::calls::PipeEnd>,
    ) -> Result<Pid, Failure> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Failure::Killed);
        }
        let mut table = self.table.lock();
        let cpus = self.arrivals.len();
        let (place, cpu, pid) = table
            .add(parent, program, pipe, cpus)
            .ok_or(Failure::TooMany)?;
        self.killed[place].store(false, Ordering::Relaxed);
        if self.closed.load(Ordering::Relaxed) {
            // `kill_all` came in between: it may have passed this place already.
            self.killed[place].store(true, Ordering::Relaxed);
        }
        drop(table);
        // Release: pairs with the acquire in `arrive`.
        self.arrivals[cpu].fetch_add(1, Ordering::Release);
        Ok(pid)
    }

    /// Whether the program in `place` is to end: it is being killed, or the run is over (another thread has panicked).
    fn is_killed(&self, place: Option<usize>) -> bool {
        // Acquire: pairs with the release that ends the run.
        let over = || self.control.ended().load(Ordering::Acquire);
        place.is_some_and(|place| self.killed[place].load(Ordering::Relaxed) || over())
    }

    /// A request was served that had failed before: memory has not ended.
    fn served(&self) {
        self.failing_since.store(0, Ordering::Relaxed);
    }

    /// A request of a program has found no memory, after everything was tried: the program waits and tries again. If
    /// none has been served for a while, the program with the most memory is killed.
    fn failed(&self) -> Failure {
        let parts = self.system.parts();
        let now = parts.platform.now().max(1);
        let since = self.failing_since.load(Ordering::Relaxed);
        if since == 0 {
            self.failing_since.store(now, Ordering::Relaxed);
        } else if now.saturating_sub(since) >= PATIENCE {
            let again =
                self.failing_since
                    .compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
            // Of several CPUs that see it one acts.
            if again.is_ok() && self.kill_largest() {
                let cpu = parts.platform.cpu();
                parts.frames.events().add(cpu, Event::OomKill, 1);
            }
        }
        Failure::NoMemory
    }

    /// The disk cannot give back what it has of the memory of the program in `place`: kills it, as a bus error would.
    fn lost_memory(&self, place: Option<usize>) {
        let Some(place) = place else {
            return;
        };
        let (program, _) = self.table.lock().program(place);
        self.count_failure(&program, Failure::Io);
        self.killed[place].store(true, Ordering::Relaxed);
    }

    /// Kills the program with the most memory, unless one that is being killed has not ended yet.
    fn kill_largest(&self) -> bool {
        let spaces: Vec<_> = {
            let table = self.table.lock();
            // It may hold memory until it has ended, when it has no address space any more.
            if table.running().any(|place| self.is_killed(Some(place))) {
                return false;
            }
            table.spaces().collect()
        };
        let paging = self.system.parts().paging;
        let of = |space| {
            paging
                .usage(space)
                .map_or(0, |usage| usage.frames() + usage.swapped + usage.tables)
        };
        let largest = spaces
            .into_iter()
            .max_by_key(|&(place, space)| (of(space), place));
        let Some((place, space)) = largest else {
            return false;
        };
        // Under the lock: the program may have ended meanwhile, and another one have its place.
        let table = self.table.lock();
        let is_there = table.spaces().any(|found| found == (place, space));
        if is_there {
            self.killed[place].store(true, Ordering::Relaxed);
        }
        is_there
    }
}

/// A program that runs, as the engine sees it: one step from its beginning to its end.
struct Running<'p, 'e, 'a, P: PageTables> {
    processes: &'p Processes<'e, 'a, P>,
    place: usize,
    /// It has found no memory to begin with.
    starved: bool,
}

impl<P: PageTables> Actor for Running<'_, '_, '_, P> {
    fn step(&mut self, now: u64) -> Next {
        let Self {
            processes,
            place,
            starved,
        } = *self;
        let (program, pipe) = processes.table.lock().program(place);
        let process = match Process::new(processes, Some(place), pipe) {
            Ok(process) => process,
            Err(_) if !processes.is_killed(Some(place)) => {
                // No memory to begin with: again later, as any other request.
                self.starved = true;
                processes.control.count_wait(STALL);
                return Next::At(now + STALL);
            }
            Err(_) => {
                if let Some(end) = pipe {
                    processes.pipes.close(processes.system, end);
                }
                processes.table.lock().end(place, Ended::Failed);
                return Next::Done;
            }
        };
        if starved {
            processes.served();
        }
        let ended = match run(&program, &processes.plan, &process) {
            Ok(()) => Ended::Done,
            Err(failure) => {
                processes.count_failure(&program, failure);
                Ended::Failed
            }
        };
        process.finish();
        processes.table.lock().end(place, ended);
        Next::Done
    }
}
