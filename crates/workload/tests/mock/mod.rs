//! A kernel in miniature: processes on an engine with virtual time, and files that are nothing but a size and a key.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, MutexGuard, atomic::AtomicBool},
};

use dirigible::schedule::{Actor, Clock, Current, Engine, FreeClock, Next};
use dirigible_workload::{
    calls::{Calls, Check, Ended, Failure, File, Pid, PipeEnd},
    programs::{LoadPlan, Program, run},
    rng::{Rng, Source},
};

thread_local! {
    static CURRENT: Current = const { Current::new() };
}

/// Pages that a pipe holds.
const PIPE: u64 = 16;

/// What goes wrong, and when it ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// One call in this many finds no memory.
    pub no_memory: Option<u64>,
    /// One call in this many of a compile or an assembler is its last: the process is killed.
    pub kills: Option<u64>,
    /// All are killed at this call.
    pub kill_all_at: Option<u64>,
    /// All are killed at this time.
    pub until: Option<u64>,
}

/// Sums over all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub calls: u64,
    pub touched: u64,
    pub checked: u64,
    pub read: u64,
    pub written: u64,
    pub compiled: u64,
    pub stalls: u64,
    pub most_mapped: u64,
    pub most_processes: u64,
    /// Bytes of a stack.
    pub deepest_stack: usize,
    /// Pages with contents that nobody had written there.
    pub wrong: u64,
    /// Calls that a process made after it had been told that it was killed.
    pub after_kill: u64,
    /// Calls with arguments that no program should use.
    pub bad: u64,
    /// Processes that ended and had something left: memory, a file, a pipe. Not those that were killed.
    pub leaks: u64,
}

/// What a process that has ended had done: its requests, without those that found no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub program: Program,
    pub ended: Ended,
    pub requests: Vec<String>,
    /// Pages through its pipe.
    pub piped: u64,
}

#[derive(Default)]
struct Process {
    program: Option<Program>,
    parent: u32,
    killed: bool,
    told: bool,
    ended: Option<Ended>,
    inherited: Option<PipeEnd>,
    next_page: u64,
    mapped: BTreeMap<u64, u64>,
    open: BTreeMap<u32, String>,
    ends: Vec<PipeEnd>,
    requests: Vec<String>,
    piped: u64,
}

#[derive(Default)]
struct Pipe {
    filled: u64,
    written: u64,
    readers: u32,
    writers: u32,
    key: Option<u64>,
}

enum Node {
    Directory,
    /// Pages with their keys.
    File(Vec<u64>),
}

#[derive(Default)]
struct State {
    processes: BTreeMap<u32, Process>,
    births: Vec<u32>,
    next_pid: u32,
    next_file: u32,
    nodes: BTreeMap<String, Node>,
    pipes: Vec<Pipe>,
    sums: Sums,
    mapped: u64,
    traces: Vec<Trace>,
    killed_at: Option<u64>,
}

/// The kernel.
pub struct Kernel {
    clock: FreeClock,
    plan: LoadPlan,
    faults: Faults,
    rng: Mutex<Rng>,
    state: Mutex<State>,
}

impl Kernel {
    pub fn new(plan: LoadPlan, faults: Faults) -> Self {
        Self {
            clock: FreeClock::default(),
            plan,
            faults,
            rng: Mutex::new(Rng::stream(99, Source::Program(1))),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Runs `program` and all that it begins to the end.
    pub fn run(&self, program: Program) {
        self.state().spawn(program, 0, None);
        let mut engine = Engine::new();
        engine.accept_from(|| {
            let pid = self.state().births.pop()?;
            Some(Box::new(Body(self, pid)) as Box<dyn Actor>)
        });
        // A plain actor that keeps the engine going until the first program is there, and kills at a time.
        engine.add(self.faults.until.unwrap_or(0), Killer(self));
        engine.run(self, &AtomicBool::new(false), |_, _| {});
        let deepest = engine.deepest_stack();
        drop(engine);
        self.state().sums.deepest_stack = deepest;
    }

    /// Nobody is killed any more.
    pub fn go_on(&mut self) {
        self.faults.until = None;
    }

    pub fn sums(&self) -> Sums {
        self.state().sums
    }

    pub fn traces(&self) -> Vec<Trace> {
        self.state().traces.clone()
    }

    /// Paths of all files and directories, with the pages of files.
    pub fn files(&self) -> Vec<(String, Option<u64>)> {
        let state = self.state();
        let nodes = state.nodes.iter().map(|(path, node)| {
            let pages = match node {
                Node::Directory => None,
                Node::File(pages) => Some(pages.len() as u64),
            };
            (path.clone(), pages)
        });
        nodes.collect()
    }

    /// Pages that are mapped, and ends of pipes that are open.
    pub fn held(&self) -> (u64, u32) {
        let state = self.state();
        let ends = state.pipes.iter().map(|pipe| pipe.readers + pipe.writers);
        (state.mapped, ends.sum())
    }

    /// Processes that have not ended.
    pub fn alive(&self) -> usize {
        let state = self.state();
        let alive = state.processes.values();
        alive.filter(|process| process.ended.is_none()).count()
    }
}

struct Killer<'a>(&'a Kernel);

impl Actor for Killer<'_> {
    fn step(&mut self, now: u64) -> Next {
        if self.0.faults.until.is_some() {
            self.0.state().kill_all(now);
        }
        Next::Done
    }
}

struct Body<'a>(&'a Kernel, u32);

impl Actor for Body<'_> {
    fn step(&mut self, _: u64) -> Next {
        let Self(kernel, pid) = self;
        let program = kernel.state().processes[pid].program.unwrap();
        let calls = Caller { kernel, pid: *pid };
        let result = run(&program, &kernel.plan, &calls);
        kernel.state().end(*pid, result);
        Next::Done
    }
}

impl Clock for Kernel {
    fn now(&self) -> u64 {
        self.clock.now()
    }
    fn wait_until(&self, time: u64, ended: &AtomicBool) {
        self.clock.wait_until(time, ended);
    }
    fn pass(&self, next: Option<u64>) {
        self.clock.pass(next);
    }
    fn with_current(&self, run: &mut dyn FnMut(&Current)) {
        CURRENT.with(|current| run(current));
    }
}

impl State {
    fn spawn(&mut self, program: Program, parent: u32, inherited: Option<PipeEnd>) -> u32 {
        self.next_pid += 1;
        let pid = self.next_pid;
        let process = Process {
            program: Some(program),
            parent,
            inherited,
            ends: inherited.into_iter().collect(),
            next_page: 512,
            ..Process::default()
        };
        self.processes.insert(pid, process);
        self.births.insert(0, pid);
        let alive = self.processes.values().filter(|p| p.ended.is_none());
        self.sums.most_processes = self.sums.most_processes.max(alive.count() as u64);
        pid
    }

    fn kill_all(&mut self, _: u64) {
        for process in self.processes.values_mut() {
            process.killed = true;
        }
        self.killed_at = Some(self.sums.calls);
    }

    fn end(&mut self, pid: u32, result: Result<(), Failure>) {
        let process = self.processes.get_mut(&pid).unwrap();
        let held = process.mapped.values().sum::<u64>();
        let clean = held == 0 && process.open.is_empty() && process.ends.is_empty();
        if !process.killed && result.is_ok() && !clean {
            self.sums.leaks += 1;
        }
        assert!(
            process.killed || result != Err(Failure::Killed),
            "killed by nobody"
        );
        let ended = match result {
            Ok(()) => Ended::Done,
            Err(_) => Ended::Failed,
        };
        process.ended = Some(ended);
        process.mapped.clear();
        process.open.clear();
        let trace = Trace {
            program: process.program.unwrap(),
            ended,
            requests: std::mem::take(&mut process.requests),
            piped: process.piped,
        };
        let ends = std::mem::take(&mut process.ends);
        self.mapped -= held;
        self.traces.push(trace);
        for end in ends {
            self.close_end(end);
        }
    }

    fn close_end(&mut self, end: PipeEnd) {
        let pipe = &mut self.pipes[end.0 as usize / 2];
        match end.0 % 2 {
            0 => pipe.readers -= 1,
            _ => pipe.writers -= 1,
        }
    }

    fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || matches!(self.nodes.get(path), Some(Node::Directory))
    }

    fn file(&mut self, path: &str) -> Option<&mut Vec<u64>> {
        match self.nodes.get_mut(path) {
            Some(Node::File(pages)) => Some(pages),
            _ => None,
        }
    }

    fn process(&mut self, pid: u32) -> &mut Process {
        self.processes.get_mut(&pid).unwrap()
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

struct Caller<'a> {
    kernel: &'a Kernel,
    pid: u32,
}

impl Caller<'_> {
    /// Begins a call: kills and failures.
    fn begin(&self, may_fail: bool) -> Result<MutexGuard<'_, State>, Failure> {
        let kernel = self.kernel;
        let mut state = kernel.state();
        state.sums.calls += 1;
        let calls = state.sums.calls;
        if kernel.faults.kill_all_at == Some(calls) {
            state.kill_all(0);
        }
        let mut rng = kernel.rng.lock().unwrap();
        let process = state.process(self.pid);
        let may_die = matches!(
            process.program,
            Some(Program::Compile { .. } | Program::Assemble { .. } | Program::Copy { .. })
        );
        if let Some(kills) = kernel.faults.kills {
            process.killed |= may_die && rng.below(kills) == 0;
        }
        if process.killed {
            if std::mem::replace(&mut process.told, true) {
                state.sums.after_kill += 1;
            }
            return Err(Failure::Killed);
        }
        if may_fail && kernel.faults.no_memory.is_some_and(|of| rng.below(of) == 0) {
            return Err(Failure::NoMemory);
        }
        drop(rng);
        Ok(state)
    }

    fn log(&self, state: &mut State, request: String) {
        state.process(self.pid).requests.push(request);
    }

    /// Waits until `look` finds something, or the process is killed.
    fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> Result<T, Failure> {
        loop {
            {
                let mut state = self.kernel.state();
                let process = state.process(self.pid);
                if process.killed {
                    process.told = true;
                    return Err(Failure::Killed);
                }
                if let Some(found) = look(&mut state) {
                    return Ok(found);
                }
            }
            assert!(CURRENT.with(Current::wait));
        }
    }

    fn path(&self, state: &mut State, file: File) -> Result<String, Failure> {
        let process = state.process(self.pid);
        process.open.get(&file.0).cloned().ok_or(Failure::NotFound)
    }

    fn open_path(&self, state: &mut State, path: &str) -> File {
        state.next_file += 1;
        let file = state.next_file;
        state.process(self.pid).open.insert(file, path.into());
        File(file)
    }

    fn mapped(&self, state: &mut State, pages: &Range<u64>) {
        let process = state.process(self.pid);
        let (first, count) = process.mapped.range(..=pages.start).next_back().unwrap();
        if pages.is_empty() || pages.end > first + count {
            state.sums.bad += 1;
        }
    }
}

impl Calls for Caller<'_> {
    fn now(&self) -> u64 {
        self.kernel.now()
    }

    fn sleep_until(&self, time: u64) -> Result<(), Failure> {
        drop(self.begin(false)?);
        // A process that sleeps is woken to be killed: it looks now and then.
        while self.kernel.now() < time {
            let nap = (self.kernel.now() + 1_000_000_000).min(time);
            CURRENT.with(|current| current.wait_until(nap));
            let mut state = self.kernel.state();
            let process = state.process(self.pid);
            if process.killed {
                process.told = true;
                return Err(Failure::Killed);
            }
        }
        Ok(())
    }

    fn spawn(&self, program: &Program, pipe: Option<PipeEnd>) -> Result<Pid, Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("spawn {program:?}"));
        if let Some(pipe) = pipe {
            state.process(self.pid).ends.retain(|&end| end != pipe);
        }
        let pid = state.spawn(*program, self.pid, pipe);
        Ok(Pid(pid))
    }

    fn wait(&self, child: Pid) -> Result<Ended, Failure> {
        drop(self.begin(false)?);
        self.wait_for(|state| {
            let child = &state.processes[&child.0];
            assert_eq!(child.parent, self.pid);
            child.ended
        })
    }

    fn wait_any(&self) -> Result<(Pid, Ended), Failure> {
        drop(self.begin(false)?);
        self.wait_for(|state| {
            let of = |process: &Process| process.parent == self.pid;
            let mut children = state.processes.iter_mut();
            let (pid, child) = children.find(|(_, child)| of(child) && child.ended.is_some())?;
            child.parent = 0;
            Some((Pid(*pid), child.ended?))
        })
    }

    fn inherited(&self) -> Option<PipeEnd> {
        self.kernel.state().process(self.pid).inherited
    }

    fn map(&self, pages: u64, huge: bool) -> Result<u64, Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("map {pages} {huge}"));
        state.sums.bad += u64::from(pages == 0 || huge && !pages.is_multiple_of(512));
        let process = state.process(self.pid);
        let align = if huge { 512 } else { 1 };
        let first = process.next_page.next_multiple_of(align);
        process.next_page = first + pages;
        process.mapped.insert(first, pages);
        state.mapped += pages;
        state.sums.most_mapped = state.sums.most_mapped.max(state.mapped);
        Ok(first)
    }

    fn touch(&self, pages: Range<u64>) -> Result<(), Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("touch {pages:?}"));
        self.mapped(&mut state, &pages);
        state.sums.touched += pages.end - pages.start;
        Ok(())
    }

    fn check(&self, pages: Range<u64>, check: Check) -> Result<(), Failure> {
        let mut state = self.begin(false)?;
        self.log(&mut state, format!("check {pages:?} {check:?}"));
        self.mapped(&mut state, &pages);
        state.sums.checked += pages.end - pages.start;
        Ok(())
    }

    fn discard(&self, pages: Range<u64>) -> Result<(), Failure> {
        let mut state = self.begin(false)?;
        self.log(&mut state, format!("discard {pages:?}"));
        self.mapped(&mut state, &pages);
        Ok(())
    }

    fn unmap(&self, pages: Range<u64>) -> Result<(), Failure> {
        let mut state = self.begin(false)?;
        self.log(&mut state, format!("unmap {pages:?}"));
        let count = state.process(self.pid).mapped.remove(&pages.start);
        if count != Some(pages.end - pages.start) {
            state.sums.bad += 1;
        }
        state.mapped -= count.unwrap_or(0);
        Ok(())
    }

    fn create(&self, path: &str) -> Result<File, Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("create {path}"));
        if !state.is_directory(parent(path)) {
            return Err(Failure::NotFound);
        }
        if state.nodes.contains_key(path) {
            return Err(Failure::Exists);
        }
        state.nodes.insert(path.into(), Node::File(Vec::new()));
        Ok(self.open_path(&mut state, path))
    }

    fn open(&self, path: &str) -> Result<File, Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("open {path}"));
        state.file(path).ok_or(Failure::NotFound)?;
        Ok(self.open_path(&mut state, path))
    }

    fn pages(&self, file: File) -> Result<u64, Failure> {
        let mut state = self.begin(false)?;
        let path = self.path(&mut state, file)?;
        Ok(state.file(&path).map_or(0, |pages| pages.len() as u64))
    }

    fn write(&self, file: File, pages: Range<u64>, key: u64) -> Result<(), Failure> {
        let mut state = self.begin(true)?;
        let path = self.path(&mut state, file)?;
        self.log(&mut state, format!("write {path} {pages:?} {key:x}"));
        state.sums.written += pages.end - pages.start;
        if let Some(there) = state.file(&path) {
            let length = there.len().max(pages.end as usize);
            there.resize(length, 0);
            there[pages.start as usize..pages.end as usize].fill(key);
        }
        Ok(())
    }

    fn read(&self, file: File, pages: Range<u64>, key: u64, check: Check) -> Result<(), Failure> {
        let mut state = self.begin(true)?;
        let path = self.path(&mut state, file)?;
        self.log(&mut state, format!("read {path} {pages:?} {check:?}"));
        let found = match state.file(&path) {
            Some(there) => there.get(pages.start as usize..pages.end as usize),
            None => return Ok(()),
        };
        let wrong = found.is_none_or(|found| found.iter().any(|&found| found != key));
        state.sums.wrong += u64::from(wrong);
        state.sums.read += pages.end - pages.start;
        Ok(())
    }

    fn sync(&self, file: File) -> Result<(), Failure> {
        let mut state = self.begin(false)?;
        let path = self.path(&mut state, file)?;
        self.log(&mut state, format!("sync {path}"));
        Ok(())
    }

    fn close(&self, file: File) {
        let mut state = self.kernel.state();
        let closed = state.process(self.pid).open.remove(&file.0);
        state.sums.bad += u64::from(closed.is_none());
    }

    fn delete(&self, path: &str) -> Result<(), Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("delete {path}"));
        state.file(path).ok_or(Failure::NotFound)?;
        state.nodes.remove(path);
        Ok(())
    }

    fn make_directory(&self, path: &str) -> Result<(), Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("mkdir {path}"));
        if !state.is_directory(parent(path)) {
            return Err(Failure::NotFound);
        }
        if state.nodes.contains_key(path) {
            return Err(Failure::Exists);
        }
        state.nodes.insert(path.into(), Node::Directory);
        Ok(())
    }

    fn remove_directory(&self, path: &str) -> Result<(), Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("rmdir {path}"));
        if !state.is_directory(path) {
            return Err(Failure::NotFound);
        }
        if state.nodes.keys().any(|other| parent(other) == path) {
            return Err(Failure::Exists);
        }
        state.nodes.remove(path);
        Ok(())
    }

    fn list(&self, path: &str, with: &mut dyn FnMut(&str, bool)) -> Result<(), Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, format!("list {path}"));
        let path = path.trim_end_matches('/');
        if !state.is_directory(path) {
            return Err(Failure::NotFound);
        }
        let prefix = format!("{path}/");
        for (other, node) in state.nodes.range(prefix.clone()..) {
            let Some(name) = other.strip_prefix(&prefix) else {
                break;
            };
            if !name.contains('/') {
                with(name, matches!(node, Node::Directory));
            }
        }
        Ok(())
    }

    fn pipe(&self) -> Result<(PipeEnd, PipeEnd), Failure> {
        let mut state = self.begin(true)?;
        self.log(&mut state, "pipe".into());
        let number = 2 * state.pipes.len() as u32;
        state.pipes.push(Pipe {
            readers: 1,
            writers: 1,
            ..Pipe::default()
        });
        let ends = (PipeEnd(number), PipeEnd(number + 1));
        state.process(self.pid).ends.extend([ends.0, ends.1]);
        Ok(ends)
    }

    fn write_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure> {
        drop(self.begin(true)?);
        let wrote = self.wait_for(|state| {
            let pipe = &mut state.pipes[end.0 as usize / 2];
            if pipe.readers == 0 {
                return Some(Err(Failure::Pipe));
            }
            let wrote = pages.min(PIPE - pipe.filled);
            pipe.key = Some(key);
            pipe.filled += wrote;
            pipe.written += wrote;
            (wrote > 0).then_some(Ok(wrote))
        })??;
        let mut state = self.kernel.state();
        state.process(self.pid).piped += wrote;
        Ok(wrote)
    }

    fn read_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure> {
        drop(self.begin(false)?);
        let read = self.wait_for(|state| {
            let pipe = &mut state.pipes[end.0 as usize / 2];
            let read = pages.min(pipe.filled);
            pipe.filled -= read;
            let wrong = read > 0 && pipe.key != Some(key);
            let over = pipe.writers == 0;
            state.sums.wrong += u64::from(wrong);
            (read > 0 || over).then_some(read)
        })?;
        let mut state = self.kernel.state();
        state.process(self.pid).piped += read;
        Ok(read)
    }

    fn close_pipe(&self, end: PipeEnd) {
        let mut state = self.kernel.state();
        let ends = &mut state.process(self.pid).ends;
        let before = ends.len();
        ends.retain(|&other| other != end);
        let closed = ends.len() < before;
        state.sums.bad += u64::from(!closed);
        if closed {
            state.close_end(end);
        }
    }

    fn count_compiled(&self, files: u64) {
        self.kernel.state().sums.compiled += files;
    }

    fn count_wait(&self, time: u64) {
        assert_eq!(time, self.kernel.plan.stall);
        self.kernel.state().sums.stalls += 1;
    }
}
