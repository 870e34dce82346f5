//! The table of programs, pipes, kills and the end of memory, on a machine whose memory is a vector and whose time passes
//! only while somebody sleeps.

extern crate std;

use std::{
    boxed::Box,
    cell::RefCell,
    collections::BTreeSet,
    ops::Range,
    string::String,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    vec,
    vec::Vec,
};

use dirigible::schedule::{Actor, Next, time::SECOND};
use dirigible_disk::{BlockDevice, Completion, DiskError, DiskRequest, SubmitError};
use dirigible_files::{FileStore, Parts as StoreParts, StoreConfig};
use dirigible_frames::{
    AllocRequest, Config, CpuId, Event, FrameAllocator, FrameContents, Order, PageTables, Pfn,
    Platform, Reclaim, Watermarks, ZoneConfig,
};
use dirigible_mobility::{CompactionConfig, Mobility};
use dirigible_pagecache::{BlockPages, CacheConfig, CacheParts, PageCache};
use dirigible_paging::{Page, PageSource, Paging, SlowPath, SlowPathConfig, SpaceId};
use dirigible_reclaim::{Evictable, Generations, ReclaimConfig, Reclaimer};
use dirigible_swap::Swap;
use spin::Mutex;

use super::{MAX_PROGRAMS, NAP, PATIENCE, Process, Processes, Running, table::Table};
use crate::{
    balloon::BalloonControl,
    calls::{Calls, Check, Ended, Failure, Pid},
    content::{ContentLog, LINES},
    control::Control,
    experiment::{FILES, PAGING, SPACES},
    params::{Params, Profile},
    programs::{LoadPlan, Program},
    stalls::Stalls,
    system::{HostClock, Parts, System},
    tuning::STALL,
    user::UserMemory,
};

const BASE: u64 = 1024;
const WORDS: usize = 512;
const MS: u64 = 1_000_000;
/// Blocks of the disk that are swap. Reclaim takes no pages of programs by itself.
const SWAP: Range<u64> = 256..320;
/// No test names what its programs are: they are run by hand.
const ANY: Program = Program::Walk;

type Happening = Box<dyn FnOnce() + Send>;

/// Memory of words, and a clock that sleepers move. What is planned for a time happens when it comes.
struct Machine {
    words: Vec<AtomicU64>,
    clock: AtomicU64,
    planned: Mutex<Vec<(u64, Happening)>>,
}

impl Machine {
    fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        &self.words[(frame.get() - BASE) as usize * WORDS + index]
    }

    fn at(&self, time: u64, event: impl FnOnce() + Send + 'static) {
        self.planned.lock().push((time, Box::new(event)));
    }

    fn pass_to(&self, time: u64) {
        self.clock.fetch_max(time, Ordering::Relaxed);
        loop {
            let mut planned = self.planned.lock();
            let due = planned.iter().position(|&(at, _)| at <= time);
            let Some(due) = due else { return };
            let (_, event) = planned.remove(due);
            drop(planned);
            event();
        }
    }
}

impl Platform for Machine {
    fn cpu(&self) -> CpuId {
        CpuId::new(0)
    }
    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }
    fn relax(&self) {
        self.pass_to(self.now() + MS);
    }
    fn sleep_until(&self, time: u64) {
        self.pass_to(time);
    }
}

impl FrameContents for Machine {
    fn read_word(&self, frame: Pfn, index: usize) -> u64 {
        self.word(frame, index).load(Ordering::Relaxed)
    }
    fn write_word(&self, frame: Pfn, index: usize, value: u64) {
        self.word(frame, index).store(value, Ordering::Relaxed);
    }
    fn copy_frames(&self, from: Pfn, to: Pfn, count: usize) {
        for (offset, index) in
            (0..count as u64).flat_map(|offset| (0..WORDS).map(move |index| (offset, index)))
        {
            self.write_word(
                to.plus(offset),
                index,
                self.read_word(from.plus(offset), index),
            );
        }
    }
    fn zero_frames(&self, first: Pfn, count: usize) {
        for offset in 0..count as u64 {
            (0..WORDS).for_each(|index| self.write_word(first.plus(offset), index, 0));
        }
    }
}

impl PageTables for Machine {
    fn load_entry(&self, table: Pfn, index: usize) -> u64 {
        self.word(table, index).load(Ordering::Acquire)
    }
    fn swap_entry(&self, table: Pfn, index: usize, value: u64) -> u64 {
        self.word(table, index).swap(value, Ordering::AcqRel)
    }
    fn compare_exchange_entry(&self, t: Pfn, i: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.word(t, i)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
    fn or_entry(&self, table: Pfn, index: usize, bits: u64) -> u64 {
        self.word(table, index).fetch_or(bits, Ordering::AcqRel)
    }
    fn shoot_down(&self, _space: u32, _address: u64) {}
}

/// A disk that has done everything when it is asked.
struct Disk {
    machine: &'static Machine,
    blocks: Mutex<Vec<[u64; WORDS]>>,
    done: Mutex<Vec<Completion>>,
    /// Blocks that cannot be read.
    bad: Mutex<Vec<u64>>,
}

impl BlockDevice for Disk {
    fn blocks(&self) -> u64 {
        self.blocks.lock().len() as u64
    }
    fn depth(&self) -> usize {
        8
    }
    fn submit(&self, request: DiskRequest<'_>) -> Result<(), SubmitError> {
        let mut done = self.done.lock();
        if done.len() == self.depth() {
            return Err(SubmitError::Busy);
        }
        let mut blocks = self.blocks.lock();
        for (block, &frame) in (request.block as usize..).zip(request.frames) {
            for (index, word) in blocks[block].iter_mut().enumerate() {
                match request.write {
                    true => *word = self.machine.read_word(frame, index),
                    false => self.machine.write_word(frame, index, *word),
                }
            }
        }
        let end = request.block + request.frames.len() as u64;
        let bad = self
            .bad
            .lock()
            .iter()
            .any(|block| (request.block..end).contains(block));
        done.push(Completion {
            token: request.token,
            result: if bad && !request.write {
                Err(DiskError::Io)
            } else {
                Ok(())
            },
        });
        Ok(())
    }
    fn completed(&self, out: &mut [Completion]) -> usize {
        let mut done = self.done.lock();
        let count = out.len().min(done.len());
        for (place, completion) in out.iter_mut().zip(done.drain(..count)) {
            *place = completion;
        }
        count
    }
}

/// No balloon, and no host.
struct Nothing;

impl BalloonControl for Nothing {
    fn set_target(&self, _: u64) {}
    fn target(&self) -> u64 {
        0
    }
    fn actual(&self) -> u64 {
        0
    }
    fn stepped(&self) {}
}

impl HostClock for Nothing {
    fn nanoseconds(&self) -> u64 {
        0
    }
}

/// Programs that load and store at their addresses, as hardware lets them.
struct Hardware {
    machine: &'static Machine,
    paging: &'static Paging<'static, Machine>,
    faults: AtomicU64,
}

impl Hardware {
    fn access<R>(
        &self,
        (space, page, write): (SpaceId, Page, bool),
        fault: &mut dyn FnMut() -> bool,
        with: impl Fn(Pfn) -> R,
    ) -> Option<R> {
        loop {
            let done = self.paging.access(space, page, write, &with);
            if done.is_some() {
                return done;
            }
            self.faults.fetch_add(1, Ordering::Relaxed);
            if !fault() {
                return None;
            }
        }
    }
}

impl UserMemory for Hardware {
    fn store(
        &self,
        space: SpaceId,
        page: Page,
        value: u64,
        fault: &mut dyn FnMut() -> bool,
    ) -> bool {
        let at = (space, page, true);
        let store = |frame| self.machine.write_word(frame, 0, value);
        self.access(at, fault, store).is_some()
    }
    fn load(
        &self,
        space: SpaceId,
        page: Page,
        lines: &mut [u64; LINES],
        fault: &mut dyn FnMut() -> bool,
    ) -> bool {
        let into = RefCell::new(lines);
        let load = |frame| self.machine.read_lines(frame, &mut into.borrow_mut());
        self.access((space, page, false), fault, load).is_some()
    }
    fn load_line(
        &self,
        space: SpaceId,
        page: Page,
        line: usize,
        fault: &mut dyn FnMut() -> bool,
    ) -> Option<u64> {
        let load = |frame| self.machine.read_word(frame, line * WORDS / LINES);
        self.access((space, page, false), fault, load)
    }
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

type All = Processes<'static, 'static, Machine>;
type One = Process<'static, 'static, 'static, Machine>;

/// A machine with processes. It is leaked, as its parts refer to each other.
struct World {
    machine: &'static Machine,
    frames: &'static FrameAllocator<'static>,
    disk: &'static Disk,
    system: &'static System<'static, Machine>,
    processes: &'static All,
    hardware: Option<&'static Hardware>,
}

/// A machine of `blocks` blocks of 2 MiB; with `by_hardware`, its programs reach their memory at its addresses.
fn world(blocks: usize, by_hardware: bool) -> World {
    let range = Pfn::new(BASE)..Pfn::new(BASE + blocks as u64 * 512);
    let marks = Watermarks {
        min: 32,
        low: 32,
        high: 32,
    };
    let layout = Config {
        zones: &[ZoneConfig {
            name: "test",
            ranges: &[range],
            watermarks: marks,
            reserve_blocks: 0,
        }],
        ..Config::default()
    };
    let metadata = vec![0u8; FrameAllocator::metadata_bytes(&layout).unwrap()].leak();
    let frames = leak(FrameAllocator::new(&layout, metadata).unwrap());
    let words = (0..blocks * 512 * WORDS).map(|_| AtomicU64::new(0));
    let machine = leak(Machine {
        words: words.collect(),
        clock: AtomicU64::new(SECOND),
        planned: Mutex::default(),
    });
    let mobility = leak(Mobility::new(frames, machine, CompactionConfig::default()));
    let generations = leak(Generations::new(frames));
    let reclaim = leak(Reclaimer::new(
        generations,
        machine,
        ReclaimConfig::default(),
    ));
    let memory = leak(SlowPath::new(mobility, reclaim, SlowPathConfig::default()));
    let disk = leak(Disk {
        machine,
        blocks: Mutex::new(vec![[0; WORDS]; SWAP.end as usize]),
        done: Mutex::default(),
        bad: Mutex::default(),
    });
    let parts = CacheParts {
        frames,
        platform: machine,
        owner: FILES,
        disk,
        memory,
        generations,
        swap: SWAP,
    };
    let cache = leak(PageCache::new(parts, CacheConfig::default()));
    let swap = leak(Swap::new(cache));
    let paging = Paging::new(frames, machine, PAGING, SPACES).with_swap(generations, swap);
    let paging = leak(paging);
    mobility.register(PAGING, paging).unwrap();
    mobility.register(FILES, cache).unwrap();
    reclaim.register(FILES, cache).unwrap();
    let store = || StoreParts {
        frames,
        platform: machine,
        source: memory,
        pages: cache,
    };
    FileStore::format(&store(), 64).unwrap();
    let config = StoreConfig {
        inode_chains: 64,
        name_chains: 64,
    };
    let files = leak(FileStore::mount(store(), config).unwrap());
    let stalls = leak(Stalls::new(mobility, SlowPathConfig::default().fallback));
    let hardware = by_hardware.then(|| {
        leak(Hardware {
            machine,
            paging,
            faults: AtomicU64::new(0),
        })
    });
    let parts = Parts {
        platform: machine,
        frames,
        paging,
        memory,
        cache,
        files,
        swap,
        reclaim,
        user: hardware.map(|hardware| hardware as &dyn UserMemory),
        balloon: leak(Nothing),
        contents: leak(ContentLog::new()),
        stalls,
        oracle: None,
        host_clock: leak(Nothing),
    };
    let system = leak(System::new(parts, marks));
    let plan = LoadPlan::new(&Params::new(Profile::Quick));
    let processes = leak(Processes::new(system, leak(Control::new()), plan, 1));
    World {
        machine,
        frames,
        disk,
        system,
        processes,
        hardware,
    }
}

impl World {
    /// Begins a program as a child of `parent`; the test makes its calls.
    fn begin(&self, parent: Option<&One>, pipe: Option<crate::calls::PipeEnd>) -> (Pid, One) {
        let pid = match parent {
            Some(parent) => parent.spawn(&ANY, pipe).unwrap(),
            None => self.processes.begin(&ANY).unwrap(),
        };
        (pid, self.take().unwrap())
    }

    /// Begins what waits to begin.
    fn take(&self) -> Result<One, Failure> {
        let mut table = self.processes.table.lock();
        let place = table.take_ready(0).expect("one waits");
        let (_, pipe) = table.program(place);
        drop(table);
        self.processes.arrivals[0].fetch_sub(1, Ordering::Relaxed);
        Process::new(self.processes, Some(place), pipe)
    }

    /// Ends a program.
    fn end(&self, process: One, ended: Ended) {
        let place = process.place.unwrap();
        drop(process);
        self.processes.table.lock().end(place, ended);
    }

    fn kill(&self, process: &One) {
        self.processes.killed[process.place.unwrap()].store(true, Ordering::Relaxed);
    }

    /// The process is killed in `time` from now.
    fn kill_in(&self, time: u64, process: &One) {
        let (processes, place) = (self.processes, process.place.unwrap());
        let at = self.machine.now() + time;
        self.machine.at(at, move || {
            processes.killed[place].store(true, Ordering::Relaxed);
        });
    }

    /// Puts `pages` of the program into swap and out of memory; gives the block of the first.
    fn swap_out(&self, process: &One, pages: Range<u64>) -> u64 {
        let parts = self.system.parts();
        Evictable::harvest(parts.paging);
        let first = SWAP.start + parts.swap.used();
        let count = pages.clone().count();
        let frames: Vec<Pfn> = pages
            .map(|page| {
                parts
                    .paging
                    .translate(process.space, Page::new(page))
                    .unwrap()
            })
            .collect();
        for &frame in &frames {
            self.frames.try_isolate(frame, PAGING).unwrap();
        }
        assert_eq!(parts.paging.swap_out(&frames), count);
        parts.cache.poll();
        parts.reclaim.reclaim(usize::MAX, Order::BASE);
        assert_eq!(parts.cache.swap_pages(), 0);
        first
    }

    fn free(&self) -> u64 {
        self.frames.drain_cpu_caches();
        self.frames.free_frames()
    }

    fn kills(&self) -> u64 {
        self.frames.events().get(Event::OomKill)
    }

    /// All processes have ended: nothing is left, and no contents were wrong.
    fn check(&self, free: u64) {
        let parts = self.system.parts();
        assert_eq!(self.processes.alive(), 0);
        assert!(parts.contents.first_errors().is_empty());
        let audit = parts.paging.audit().unwrap();
        assert_eq!((audit.frames(), audit.tables, audit.swapped), (0, 0, 0));
        assert_eq!(parts.swap.audit(), Ok(Default::default()));
        self.frames.verify().unwrap();
        parts.files.give_all_back().unwrap();
        parts.cache.forget(0..parts.cache.blocks());
        parts.cache.audit().unwrap();
        assert_eq!(self.free(), free);
    }
}

/// What is free when a machine of `blocks` has no program and no file in memory.
fn all(blocks: u64) -> u64 {
    blocks * 512
}

#[test]
fn parents_hear_of_each_child_once_and_orphans_are_forgotten() {
    let mut table = Table::new(4);
    let add = |table: &mut Table, parent| table.add(parent, &ANY, None, 1);
    let (root, _, _) = add(&mut table, None).unwrap();
    assert_eq!(table.take_ready(0), Some(root));
    assert_eq!(table.ask_any(root), Err(()), "no child");
    let (first, _, first_pid) = add(&mut table, Some(root)).unwrap();
    let (second, _, second_pid) = add(&mut table, Some(root)).unwrap();
    assert_eq!(table.take_ready(0), Some(first), "in the order of spawning");
    assert_eq!(table.take_ready(0), Some(second));
    assert_eq!(table.take_ready(0), None);
    assert_eq!(table.ask(root, second_pid), Ok(None));
    assert_eq!(
        table.ask(first, second_pid),
        Err(()),
        "only its parent may ask"
    );
    table.end(second, Ended::Failed);
    table.end(first, Ended::Done);
    assert_eq!(table.alive(), 1);
    // Both have ended: the one that was begun first comes first, and each comes once.
    assert_eq!(table.ask_any(root), Ok(Some((first_pid, Ended::Done))));
    assert_eq!(table.ask(root, first_pid), Err(()));
    assert_eq!(table.ask(root, second_pid), Ok(Some(Ended::Failed)));
    assert_eq!(table.ask_any(root), Err(()));
    // An orphan that has ended and one that has not: neither keeps its place.
    let (gone, _, _) = add(&mut table, Some(root)).unwrap();
    let (stays, _, stays_pid) = add(&mut table, Some(root)).unwrap();
    table.take_ready(0);
    table.take_ready(0);
    table.end(gone, Ended::Done);
    table.end(root, Ended::Done);
    assert_eq!(table.alive(), 1);
    // Whoever gets the parent's place does not inherit its children.
    let (heir, ..) = add(&mut table, None).unwrap();
    assert_eq!(heir, root);
    assert_eq!(table.ask(heir, stays_pid), Err(()));
    assert_eq!(table.ask_any(heir), Err(()));
    table.end(stays, Ended::Done);
    assert_eq!(table.alive(), 1);
    let left: Vec<_> = core::iter::from_fn(|| add(&mut table, None)).collect();
    assert_eq!(left.len(), 3, "all other places are free");
    let pids: BTreeSet<u32> = left.iter().map(|&(_, _, pid)| pid.0).collect();
    assert!(pids.len() == 3 && pids.iter().all(|&pid| pid > stays_pid.0));
}

#[test]
fn programs_are_spread_over_the_cpus_and_taken_there() {
    let mut table = Table::new(8);
    let cpus: Vec<_> = (0..6)
        .map(|_| table.add(None, &ANY, None, 3).unwrap().1)
        .collect();
    for cpu in 0..3 {
        assert_eq!(cpus.iter().filter(|&&other| other == cpu).count(), 2);
        assert!(table.take_ready(cpu).is_some() && table.take_ready(cpu).is_some());
        assert_eq!(table.take_ready(cpu), None);
    }
}

#[test]
fn there_are_so_many_programs_and_their_places_are_used_again() {
    let world = world(8, false);
    let (_, root) = world.begin(None, None);
    for _ in 0..2 {
        let pids: Vec<_> = (1..MAX_PROGRAMS)
            .map(|_| root.spawn(&ANY, None).unwrap())
            .collect();
        assert_eq!(root.spawn(&ANY, None), Err(Failure::TooMany));
        assert_eq!(world.processes.alive(), MAX_PROGRAMS);
        for &pid in &pids {
            let child = world.take().unwrap();
            world.end(child, Ended::Done);
            assert_eq!(root.wait(pid), Ok(Ended::Done));
        }
        assert_eq!(root.wait(pids[0]), Err(Failure::NotFound));
    }
    world.end(root, Ended::Done);
    world.check(all(8));
}

#[test]
fn a_parent_sleeps_until_its_child_has_ended() {
    let world = world(4, false);
    let (_, root) = world.begin(None, None);
    let (pid, child) = world.begin(Some(&root), None);
    let (_, other) = world.begin(Some(&root), None);
    let began = root.now();
    let place = child.place.unwrap();
    drop(child);
    let processes = world.processes;
    world.machine.at(began + 500 * MS, move || {
        processes.table.lock().end(place, Ended::Done);
    });
    assert_eq!(root.wait_any(), Ok((pid, Ended::Done)));
    let waited = root.now() - began;
    assert!((500 * MS..520 * MS).contains(&waited), "{waited}");
    world.end(root, Ended::Done);
    world.end(other, Ended::Done);
    world.check(all(4));
}

#[test]
fn a_pipe_carries_what_was_written_and_says_when_an_end_is_closed() {
    let world = world(4, false);
    let (_, one) = world.begin(None, None);
    let (reading, writing) = one.pipe().unwrap();
    let (_, two) = world.begin(Some(&one), Some(reading));
    assert_eq!(two.inherited(), Some(reading));
    let mut written = 0;
    let mut read = 0;
    // Around the ring several times, by different amounts.
    for round in 0..40 {
        written += one.write_pipe(writing, 1 + round % 11, 7).unwrap();
        while written - read > 5 {
            read += two.read_pipe(reading, 3, 7).unwrap();
        }
    }
    // The wrong ends.
    assert_eq!(one.write_pipe(reading, 1, 7), Err(Failure::Pipe));
    assert_eq!(two.read_pipe(writing, 1, 7), Err(Failure::Pipe));
    // The writer closes: what is there can still be read, and then it is over.
    assert!(written > read);
    one.close_pipe(writing);
    while read < written {
        read += two.read_pipe(reading, 100, 7).unwrap();
    }
    assert_eq!(two.read_pipe(reading, 1, 7), Ok(0));
    two.close_pipe(reading);
    assert_eq!(two.read_pipe(reading, 1, 7), Err(Failure::Pipe));
    // Wrong contents are found.
    let (reading, writing) = one.pipe().unwrap();
    one.write_pipe(writing, 1, 7).unwrap();
    let errors = || world.system.parts().contents.errors();
    assert_eq!(errors(), 0);
    one.read_pipe(reading, 1, 8).unwrap();
    assert_eq!(errors(), 1);
    world.end(one, Ended::Done);
    world.end(two, Ended::Done);
    assert_eq!(world.processes.alive(), 0);
}

#[test]
fn a_pipe_whose_reader_closes_keeps_no_frame() {
    let world = world(4, false);
    let (_, one) = world.begin(None, None);
    let before = world.free();
    for filled in [0, 1, 16] {
        let (reading, writing) = one.pipe().unwrap();
        let (_, two) = world.begin(Some(&one), Some(reading));
        if filled > 0 {
            assert_eq!(one.write_pipe(writing, 99, 3).unwrap().min(filled), filled);
        }
        // It ends without having read.
        world.end(two, Ended::Failed);
        assert_eq!(one.write_pipe(writing, 1, 3), Err(Failure::Pipe));
        one.close_pipe(writing);
        assert_eq!(world.free(), before);
    }
    // A place is used again: there can be 64 at a time.
    let ends: Vec<_> = core::iter::from_fn(|| one.pipe().ok()).collect();
    assert_eq!((ends.len(), one.pipe()), (64, Err(Failure::TooMany)));
    world.end(one, Ended::Done);
    world.check(all(4));
}

/// It gets the answer when it looks next, and its end gives everything back.
#[test]
fn a_program_is_killed_wherever_it_waits() {
    let world = world(4, false);
    let (_, root) = world.begin(None, None);
    let (reading, writing) = root.pipe().unwrap();
    let (pid, child) = world.begin(Some(&root), None);
    type Waits<'w> = Box<dyn Fn(&One) -> Result<(), Failure> + 'w>;
    let waits: [(&str, Waits<'_>); 5] = [
        ("sleep", Box::new(|one| one.sleep_until(u64::MAX))),
        ("child", Box::new(|one| one.wait(pid).map(drop))),
        ("children", Box::new(|one| one.wait_any().map(drop))),
        (
            "reader",
            Box::new(|one| one.read_pipe(reading, 1, 1).map(drop)),
        ),
        (
            "writer",
            Box::new(|one| one.write_pipe(writing, 16, 1).map(drop)),
        ),
    ];
    for (name, wait) in waits {
        if name == "writer" {
            assert_eq!(root.write_pipe(writing, 16, 1), Ok(16));
        }
        let began = root.now();
        world.kill_in(SECOND, &root);
        assert_eq!(wait(&root), Err(Failure::Killed), "{name}");
        let took = root.now() - began;
        assert!((SECOND..SECOND + 2 * NAP).contains(&took), "{name}: {took}");
        // Every call says so until it ends.
        assert_eq!(root.map(1, false), Err(Failure::Killed));
        assert_eq!(root.create("/file"), Err(Failure::Killed));
        assert_eq!(root.spawn(&ANY, None), Err(Failure::Killed));
        world.processes.killed[root.place.unwrap()].store(false, Ordering::Relaxed);
    }
    world.kill(&child);
    world.end(root, Ended::Failed);
    world.end(child, Ended::Failed);
    world.check(all(4));
}

/// A thread that panics ends the run: programs, which run until they are killed, must let its engines end.
#[test]
fn programs_end_when_the_run_is_over() {
    let world = world(4, false);
    let (_, program) = world.begin(None, None);
    assert_eq!(program.enter(), Ok(()));
    world.processes.control.end();
    assert_eq!(program.enter(), Err(Failure::Killed));
    assert_eq!(program.sleep_until(u64::MAX), Err(Failure::Killed));
    world.end(program, Ended::Failed);
    world.check(all(4));
}

/// What a program is served that was not short of memory says nothing about the others.
#[test]
fn who_is_always_served_does_not_hold_off_the_kill() {
    let world = world(4, false);
    let (_, small) = world.begin(None, None);
    let (_, large) = world.begin(None, None);
    let there = small.map(1, false).unwrap();
    small.touch(there..there + 1).unwrap();
    let first = large.map(300, false).unwrap();
    large.touch(first..first + 300).unwrap();
    take_memory(&large);
    let more = large.map(1, false).unwrap();
    let began = large.now();
    while world.kills() == 0 {
        assert_eq!(large.touch(more..more + 1), Err(Failure::NoMemory));
        // A page that is there is touched again, and again.
        assert_eq!(small.touch(there..there + 1), Ok(()));
        small.sleep_until(small.now() + STALL).unwrap();
        assert!(small.now() < began + 2 * PATIENCE);
    }
    assert_eq!(large.enter(), Err(Failure::Killed));
    world.end(large, Ended::Failed);
    world.end(small, Ended::Done);
    world.check(all(4));
}

#[test]
fn kill_all_ends_every_program_and_none_begins_any_more() {
    let world = world(4, false);
    let (_, root) = world.begin(None, None);
    let (_, child) = world.begin(Some(&root), None);
    let (reading, writing) = root.pipe().unwrap();
    root.write_pipe(writing, 5, 1).unwrap();
    // It has the end of a pipe and has not begun.
    root.spawn(&ANY, Some(reading)).unwrap();
    world.processes.kill_all();
    assert_eq!(root.enter(), Err(Failure::Killed));
    assert_eq!(child.enter(), Err(Failure::Killed));
    assert_eq!(world.processes.begin(&ANY), Err(Failure::Killed));
    assert_eq!(world.processes.alive(), 3);
    world.end(root, Ended::Failed);
    world.end(child, Ended::Failed);
    let mut late = world.processes.arrive(0).unwrap();
    assert!(matches!(late.step(world.machine.now()), Next::Done));
    drop(late);
    assert!(world.processes.arrive(0).is_none());
    world.check(all(4));
}

/// Touches pages until there are no more; gives how many.
fn take_memory(process: &One) -> u64 {
    let mut taken = 0;
    loop {
        let first = process.map(1, false).unwrap();
        match process.touch(first..first + 1) {
            Ok(()) => taken += 1,
            Err(failure) => {
                assert_eq!(failure, Failure::NoMemory);
                return taken;
            }
        }
    }
}

#[test]
fn when_memory_has_ended_the_largest_program_is_killed_and_no_other() {
    let world = world(4, false);
    let (_, small) = world.begin(None, None);
    let (_, large) = world.begin(None, None);
    let (_, middle) = world.begin(None, None);
    for (process, pages) in [(&small, 100), (&large, 600), (&middle, 300)] {
        let first = process.map(pages, false).unwrap();
        process.touch(first..first + pages).unwrap();
    }
    take_memory(&middle);
    let page = small.map(1, false).unwrap();
    let again = || small.touch(page..page + 1);
    // `large` is not the largest any more.
    let usage = |one: &One| {
        let parts = world.system.parts();
        parts.paging.usage(one.space).unwrap().frames()
    };
    assert!(usage(&middle) > usage(&large));
    let began = small.now();
    while small.now() + STALL < began + PATIENCE {
        assert_eq!(again(), Err(Failure::NoMemory));
        small.sleep_until(small.now() + STALL).unwrap();
        assert_eq!(world.kills(), 0);
    }
    // What is served in between means that memory has not ended.
    large.discard(512..513).unwrap();
    assert_eq!(again(), Ok(()));
    let page = small.map(1, false).unwrap();
    let again = || small.touch(page..page + 1);
    let began = small.now();
    while world.kills() == 0 {
        assert_eq!(again(), Err(Failure::NoMemory));
        small.sleep_until(small.now() + STALL).unwrap();
        assert!(small.now() < began + 2 * PATIENCE);
    }
    assert!(small.now() >= began + PATIENCE);
    assert_eq!(middle.enter(), Err(Failure::Killed));
    assert_eq!((small.enter(), large.enter()), (Ok(()), Ok(())));
    // It takes its time to end. Nothing else is killed meanwhile.
    let until = small.now() + 3 * PATIENCE;
    while small.now() < until {
        assert_eq!(again(), Err(Failure::NoMemory));
        small.sleep_until(small.now() + STALL).unwrap();
    }
    assert_eq!(world.kills(), 1);
    assert_eq!((small.enter(), large.enter()), (Ok(()), Ok(())));
    // Not even when it has given its space up and is about to end.
    let place = middle.place.unwrap();
    drop(middle);
    let held = world.system.parts().memory;
    let take = |request| core::iter::from_fn(move || held.alloc(request).ok());
    // Frames of movable blocks that no unmovable request gets would still serve a page.
    let taken: Vec<_> = take(AllocRequest::unmovable())
        .chain(take(AllocRequest::movable()))
        .collect();
    let until = small.now() + 3 * PATIENCE;
    while small.now() < until {
        assert_eq!(again(), Err(Failure::NoMemory));
        small.sleep_until(small.now() + STALL).unwrap();
    }
    assert_eq!(world.kills(), 1);
    world.processes.table.lock().end(place, Ended::Failed);
    // It has ended, and it was not enough.
    let began = small.now();
    while world.kills() == 1 {
        assert_eq!(again(), Err(Failure::NoMemory));
        small.sleep_until(small.now() + STALL).unwrap();
        assert!(small.now() < began + 2 * PATIENCE);
    }
    assert_eq!(large.enter(), Err(Failure::Killed));
    assert_eq!((small.enter(), world.kills()), (Ok(()), 2));
    world.end(large, Ended::Failed);
    assert_eq!(again(), Ok(()));
    taken
        .into_iter()
        .for_each(|frame| held.free(frame, Order::BASE));
    world.end(small, Ended::Done);
    world.check(all(4));
}

#[test]
fn a_program_that_finds_no_memory_to_begin_begins_later() {
    let world = world(4, false);
    let (_, root) = world.begin(None, None);
    let (reading, writing) = root.pipe().unwrap();
    assert_eq!(root.write_pipe(writing, 4, 1), Ok(4));
    let memory = world.system.parts().memory;
    let taken: Vec<_> =
        core::iter::from_fn(|| memory.alloc(AllocRequest::unmovable()).ok()).collect();
    let pid = root.spawn(&ANY, Some(reading)).unwrap();
    let place = world.processes.table.lock().take_ready(0).unwrap();
    let mut begins = Running {
        processes: world.processes,
        place,
        starved: false,
    };
    for _ in 0..5 {
        let now = world.machine.now();
        assert!(matches!(begins.step(now), Next::At(at) if at == now + STALL));
        assert_eq!(root.write_pipe(writing, 0, 1), Ok(0), "its end is open");
        world.machine.pass_to(now + STALL);
    }
    taken
        .into_iter()
        .for_each(|frame| memory.free(frame, Order::BASE));
    // It begins now, and ends at its first call.
    world.processes.killed[place].store(true, Ordering::Relaxed);
    assert!(matches!(begins.step(world.machine.now()), Next::Done));
    assert_eq!(root.wait(pid), Ok(Ended::Failed));
    assert_eq!(root.write_pipe(writing, 1, 1), Err(Failure::Pipe));
    // One that is killed while it waits for memory ends without.
    let taken: Vec<_> =
        core::iter::from_fn(|| memory.alloc(AllocRequest::unmovable()).ok()).collect();
    let pid = root.spawn(&ANY, None).unwrap();
    let place = world.processes.table.lock().take_ready(0).unwrap();
    let mut begins = Running {
        processes: world.processes,
        place,
        starved: false,
    };
    assert!(matches!(begins.step(world.machine.now()), Next::At(_)));
    world.processes.killed[place].store(true, Ordering::Relaxed);
    assert!(matches!(begins.step(world.machine.now()), Next::Done));
    assert_eq!(root.wait(pid), Ok(Ended::Failed));
    taken
        .into_iter()
        .for_each(|frame| memory.free(frame, Order::BASE));
    world.end(root, Ended::Done);
    world.check(all(4));
}

/// Uses memory and files, and gives what can be seen of it from outside.
fn use_memory(world: &World) -> (u64, u64, u64, String) {
    let (_, one) = world.begin(None, None);
    let mut answers = String::new();
    let mut note = |answer: Result<(), Failure>| answers += &std::format!("{answer:?} ");
    let small = one.map(40, false).unwrap();
    let huge = one.map(1024, true).unwrap();
    note(one.touch(small..small + 40));
    note(one.touch(huge..huge + 1024));
    note(one.discard(small + 3..small + 9));
    note(one.check(small..small + 40, Check::Whole));
    note(one.check(huge..huge + 1024, Check::Four(77)));
    note(one.touch(small..small + 40));
    note(one.discard(huge + 5..huge + 6));
    note(one.check(huge..huge + 1024, Check::Whole));
    // A page whose contents are wrong.
    let parts = world.system.parts();
    let frame = parts.paging.translate(one.space, Page::new(small + 20));
    world.machine.write_word(frame.unwrap(), 8 * 5, 1);
    note(one.check(small..small + 40, Check::Whole));
    note(one.unmap(small..small + 40));
    note(one.unmap(huge..huge + 1024));
    world.end(one, Ended::Done);
    let first = parts.contents.first_errors()[0];
    answers += &std::format!("{:?}", first.wrong);
    let contents = parts.contents;
    let free = world.free();
    (contents.errors(), contents.checked_whole(), free, answers)
}

#[test]
fn programs_that_load_and_store_themselves_find_the_same() {
    let (direct, by_hardware) = (world(6, false), world(6, true));
    let [one, other] = [&direct, &by_hardware].map(use_memory);
    assert_eq!(one, other);
    assert_eq!(one.0, 1, "the one wrong page is found");
    // Each page or huge page that was not there, and each that was given back, twice: by a check, and by a store.
    let faults = by_hardware.hardware.unwrap().faults.load(Ordering::Relaxed);
    assert_eq!(faults, 40 + 2 + 6 + 6 + 1);
}

#[test]
fn a_time_that_never_comes_is_slept_for_in_naps() {
    let world = world(4, false);
    let (_, one) = world.begin(None, None);
    let woken = leak(AtomicBool::new(false));
    world.machine.at(one.now() + 10 * NAP, || {
        woken.store(true, Ordering::Relaxed);
    });
    one.sleep_until(one.now() + 11 * NAP).unwrap();
    assert!(woken.load(Ordering::Relaxed));
    assert_eq!(one.sleep_until(0), Ok(()), "it is past");
    world.end(one, Ended::Done);
    world.check(all(4));
}

/// A page that the disk cannot give back ends the program that wants it, as a bus error does, when it wants it. Nobody else
/// ends, not even one whose pages were read in the same request.
#[test]
fn a_page_that_is_lost_ends_its_program_and_no_other() {
    for by_hardware in [false, true] {
        let world = world(4, by_hardware);
        let [(_, one), (_, other)] = [world.begin(None, None), world.begin(None, None)];
        let [mine, theirs] = [&one, &other].map(|program| {
            let first = program.map(20, false).unwrap();
            program.touch(first..first + 20).unwrap();
            first
        });
        // Both have pages in the second group of eight.
        let lost = world.swap_out(&one, mine..mine + 12) + 9;
        world.swap_out(&other, theirs..theirs + 20);
        world.disk.bad.lock().push(lost);
        assert_eq!(other.check(theirs..theirs + 20, Check::Whole), Ok(()));
        assert_eq!(one.check(mine..mine + 9, Check::Whole), Ok(()));
        assert_eq!(one.check(mine + 10..mine + 20, Check::Whole), Ok(()));
        let pages = mine + 9..mine + 10;
        let wanted = match by_hardware {
            true => one.touch(pages),
            false => one.check(pages, Check::Whole),
        };
        assert_eq!(wanted, Err(Failure::Killed), "{by_hardware}");
        assert_eq!((one.enter(), other.enter()), (Err(Failure::Killed), Ok(())));
        assert_eq!(world.kills(), 0, "memory has not ended");
        assert_eq!(world.system.parts().swap.used(), 1);
        world.end(one, Ended::Failed);
        assert_eq!(world.system.parts().swap.used(), 0);
        assert_eq!(other.check(theirs..theirs + 20, Check::Whole), Ok(()));
        world.end(other, Ended::Done);
        world.check(all(4));
    }
}
