//! One program in one process: the calls that it makes of Linux.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    ops::Range,
    os::{fd::AsFd, unix::fs::FileExt},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use dirigible_workload::{
    calls::{self, Calls, Check, Ended, Failure, Pid, PipeEnd},
    content::{Pattern, Wrong},
    programs::{self, Program},
};
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Signal, WaitOptions, getpid, getppid, set_parent_process_death_signal, wait},
    stdio::{dup2_stdin, stdin},
    time::{ClockId, clock_gettime},
};

use crate::{
    counters::{Count, Counters},
    memory::Memory,
    pages::{PAGE, compare, fill},
    task::{Assignment, Task, begin},
    verdict,
};

/// Pages of the buffer through which files are read and written.
const BUFFER: u64 = 64;
/// The end of a pipe that a program was begun with.
const INHERITED: PipeEnd = PipeEnd(0);

/// Runs a program to its end. Gives the status of the process.
pub fn run_program(assignment: Assignment) -> Result<u8, String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("the program cannot be tied to its parent: {error}"))?;
    // If the parent has died before, there is no signal.
    let parent = getppid().map(|parent| parent.as_raw_nonzero().get() as u32);
    if parent != Some(assignment.parent) {
        return Ok(1);
    }
    let counters = Counters::inherited(assignment.counters)
        .map_err(|error| format!("the counters are not there: {error}"))?;
    let pipe = match assignment.pipe {
        true => Some(take_stdin().map_err(|error| format!("the pipe is not there: {error}"))?),
        false => None,
    };
    let (program, plan) = (assignment.program, assignment.plan);
    let process = Process::new(assignment, counters, pipe);
    match programs::run(&program, &plan, &process) {
        Ok(()) => Ok(0),
        Err(failure) => {
            // A broken pipe follows from somebody else's end. Of the others the first says what is wrong.
            if failure != Failure::Pipe && counters.get(Count::Failed) == 0 {
                eprintln!("dirigible-load: {program:?}: {failure}");
            }
            verdict::count(failure, counters);
            Ok(1)
        }
    }
}

/// Takes the standard input out of its place.
fn take_stdin() -> io::Result<File> {
    let pipe = stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(File::from(pipe))
}

/// The calls of one process.
pub struct Process {
    assignment: Assignment,
    counters: &'static Counters,
    state: RefCell<State>,
}

struct State {
    memory: Memory,
    files: BTreeMap<u32, (File, String)>,
    pipes: BTreeMap<u32, Pipe>,
    children: BTreeMap<u32, Child>,
    /// The next number of a file or of an end of a pipe.
    next: u32,
    buffer: Vec<u8>,
}

/// An end of a pipe, and how many pages have gone through it.
struct Pipe {
    file: File,
    position: u64,
}

impl Process {
    /// A process that does what `assignment` says, with the end of a pipe if it has inherited one.
    pub fn new(assignment: Assignment, counters: &'static Counters, pipe: Option<File>) -> Self {
        let pipe = pipe.map(|file| (INHERITED.0, Pipe { file, position: 0 }));
        let state = State {
            memory: Memory::new(getpid().as_raw_nonzero().get() as u64),
            files: BTreeMap::new(),
            pipes: pipe.into_iter().collect(),
            children: BTreeMap::new(),
            next: INHERITED.0 + 1,
            buffer: vec![0; BUFFER as usize * PAGE],
        };
        Self {
            assignment,
            counters,
            state: RefCell::new(state),
        }
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.assignment.root)
    }

    /// Records a page with wrong contents; the first of all is described.
    fn record(&self, place: &str, page: u64, Wrong { line, found }: Wrong) {
        if self.counters.add(Count::Wrong, 1) == 0 {
            eprintln!(
                "dirigible-load: wrong contents: {place}, page {page}, line {line} reads {found:#x}"
            );
        }
    }

    /// How a child has ended; one that failed is counted.
    fn ended(&self, success: bool) -> Ended {
        if success {
            return Ended::Done;
        }
        self.counters.add(Count::Failed, 1);
        Ended::Failed
    }

    fn count_pages(&self, count: Count, pages: &Range<u64>) {
        self.counters
            .add(count, pages.end.saturating_sub(pages.start));
    }

    fn open_file(&self, path: &str, options: &OpenOptions) -> Result<calls::File, Failure> {
        let file = options.open(self.path(path)).map_err(failure)?;
        let state = &mut *self.state.borrow_mut();
        let number = state.number();
        state.files.insert(number, (file, path.into()));
        Ok(calls::File(number))
    }
}

impl State {
    fn number(&mut self) -> u32 {
        let number = self.next;
        self.next = number.wrapping_add(1).max(INHERITED.0 + 1);
        number
    }
}

/// What an error means to a program.
fn failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::NotFound,
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => Failure::Exists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::NoSpace,
        io::ErrorKind::OutOfMemory => Failure::NoMemory,
        io::ErrorKind::BrokenPipe => Failure::Pipe,
        _ => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::AGAIN) => Failure::TooMany,
            _ => Failure::Io,
        },
    }
}

impl Calls for Process {
    fn now(&self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    fn sleep_until(&self, time: u64) -> Result<(), Failure> {
        while let Some(left) = time.checked_sub(self.now()).filter(|&left| left > 0) {
            thread::sleep(Duration::from_nanos(left));
        }
        Ok(())
    }

    fn spawn(&self, program: &Program, pipe: Option<PipeEnd>) -> Result<Pid, Failure> {
        let state = &mut *self.state.borrow_mut();
        let stdin = match pipe {
            Some(end) => {
                let pipe = state.pipes.get(&end.0).ok_or(Failure::Pipe)?;
                Stdio::from(pipe.file.try_clone().map_err(failure)?)
            }
            None => Stdio::null(),
        };
        let task = Task::Program(Assignment {
            program: *program,
            parent: getpid().as_raw_nonzero().get() as u32,
            pipe: pipe.is_some(),
            ..self.assignment.clone()
        });
        let child = begin(&task, stdin, |command| {
            command.stdout(Stdio::null());
        });
        let child = child.map_err(failure)?;
        if let Some(end) = pipe {
            state.pipes.remove(&end.0);
        }
        let pid = child.id();
        state.children.insert(pid, child);
        self.counters.add(Count::Programs, 1);
        Ok(Pid(pid))
    }

    fn wait(&self, child: Pid) -> Result<Ended, Failure> {
        let taken = self.state.borrow_mut().children.remove(&child.0);
        let status = taken.ok_or(Failure::NotFound)?.wait();
        status
            .map(|status| self.ended(status.success()))
            .map_err(failure)
    }

    fn wait_any(&self) -> Result<(Pid, Ended), Failure> {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get() as u32;
                    self.state.borrow_mut().children.remove(&pid);
                    return Ok((Pid(pid), self.ended(status.exit_status() == Some(0))));
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => return Err(Failure::NotFound),
            }
        }
    }

    fn inherited(&self) -> Option<PipeEnd> {
        self.assignment.pipe.then_some(INHERITED)
    }

    fn map(&self, pages: u64, huge: bool) -> Result<u64, Failure> {
        // Whatever the reason is, there is no memory of this size.
        let mapped = self.state.borrow_mut().memory.map(pages, huge);
        mapped.map_err(|_| Failure::NoMemory)
    }

    fn touch(&self, pages: Range<u64>) -> Result<(), Failure> {
        self.count_pages(Count::Touched, &pages);
        let touched = self.state.borrow_mut().memory.touch(pages);
        touched.map_err(|_| Failure::NotFound)
    }

    fn check(&self, pages: Range<u64>, check: Check) -> Result<(), Failure> {
        self.count_pages(Count::Checked, &pages);
        let wrong = |page, wrong| self.record("memory", page, wrong);
        let checked = self.state.borrow().memory.check(pages, check, wrong);
        checked.map_err(|_| Failure::NotFound)
    }

    fn discard(&self, pages: Range<u64>) -> Result<(), Failure> {
        let discarded = self.state.borrow_mut().memory.discard(pages);
        discarded.map_err(failure)
    }

    fn unmap(&self, pages: Range<u64>) -> Result<(), Failure> {
        let unmapped = self.state.borrow_mut().memory.unmap(pages);
        unmapped.map_err(failure)
    }

    fn create(&self, path: &str) -> Result<calls::File, Failure> {
        let mut options = OpenOptions::new();
        self.open_file(path, options.read(true).write(true).create_new(true))
    }

    fn open(&self, path: &str) -> Result<calls::File, Failure> {
        let mut options = OpenOptions::new();
        self.open_file(path, options.read(true).write(true))
    }

    fn pages(&self, file: calls::File) -> Result<u64, Failure> {
        let state = self.state.borrow();
        let (file, _) = state.files.get(&file.0).ok_or(Failure::NotFound)?;
        let length = file.metadata().map_err(failure)?.len();
        Ok(length.div_ceil(PAGE as u64))
    }

    fn write(&self, file: calls::File, pages: Range<u64>, key: u64) -> Result<(), Failure> {
        let State { files, buffer, .. } = &mut *self.state.borrow_mut();
        let (file, _) = files.get(&file.0).ok_or(Failure::NotFound)?;
        for part in parts(pages) {
            self.count_pages(Count::Written, &part);
            let first = part.start;
            let mut end = 0;
            for (page, bytes) in part.zip(buffer.chunks_exact_mut(PAGE)) {
                fill(bytes, Pattern::new(key, page));
                end += PAGE;
            }
            file.write_all_at(&buffer[..end], first * PAGE as u64)
                .map_err(failure)?;
        }
        Ok(())
    }

    fn read(
        &self,
        file: calls::File,
        pages: Range<u64>,
        key: u64,
        check: Check,
    ) -> Result<(), Failure> {
        let State { files, buffer, .. } = &mut *self.state.borrow_mut();
        let (file, path) = files.get(&file.0).ok_or(Failure::NotFound)?;
        for part in parts(pages) {
            self.count_pages(Count::Read, &part);
            let wanted = (part.end - part.start) as usize * PAGE;
            let read = read_at(file, &mut buffer[..wanted], part.start * PAGE as u64);
            let read = read.map_err(failure)?;
            // What is missing of a file that is too short is wrong too.
            buffer[read..wanted].fill(0);
            for (page, bytes) in part.zip(buffer.chunks_exact(PAGE)) {
                if let Some(wrong) = compare(bytes, Pattern::new(key, page), check) {
                    self.record(path, page, wrong);
                }
            }
        }
        Ok(())
    }

    fn sync(&self, file: calls::File) -> Result<(), Failure> {
        let state = self.state.borrow();
        let (file, _) = state.files.get(&file.0).ok_or(Failure::NotFound)?;
        file.sync_data().map_err(failure)
    }

    fn close(&self, file: calls::File) {
        self.state.borrow_mut().files.remove(&file.0);
    }

    fn delete(&self, path: &str) -> Result<(), Failure> {
        fs::remove_file(self.path(path)).map_err(failure)
    }

    fn make_directory(&self, path: &str) -> Result<(), Failure> {
        fs::create_dir(self.path(path)).map_err(failure)
    }

    fn remove_directory(&self, path: &str) -> Result<(), Failure> {
        fs::remove_dir(self.path(path)).map_err(failure)
    }

    fn list(&self, path: &str, with: &mut dyn FnMut(&str, bool)) -> Result<(), Failure> {
        for entry in fs::read_dir(self.path(path)).map_err(failure)? {
            let entry = entry.map_err(failure)?;
            let is_directory = match entry.file_type() {
                Ok(kind) => kind.is_dir(),
                // Deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failure(error)),
            };
            with(&entry.file_name().to_string_lossy(), is_directory);
        }
        Ok(())
    }

    fn pipe(&self) -> Result<(PipeEnd, PipeEnd), Failure> {
        let ends = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failure(error.into()))?;
        let state = &mut *self.state.borrow_mut();
        let [reading, writing] = [ends.0, ends.1].map(|end| {
            let number = state.number();
            let (file, position) = (File::from(end), 0);
            state.pipes.insert(number, Pipe { file, position });
            PipeEnd(number)
        });
        Ok((reading, writing))
    }

    fn write_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure> {
        let State { pipes, buffer, .. } = &mut *self.state.borrow_mut();
        let pipe = pipes.get_mut(&end.0).ok_or(Failure::Pipe)?;
        let pages = pages.min(BUFFER);
        let part = pipe.position..pipe.position + pages;
        for (page, bytes) in part.zip(buffer.chunks_exact_mut(PAGE)) {
            fill(bytes, Pattern::new(key, page));
        }
        let bytes = pages as usize * PAGE;
        pipe.file.write_all(&buffer[..bytes]).map_err(failure)?;
        pipe.position += pages;
        self.counters.add(Count::Piped, pages);
        Ok(pages)
    }

    fn read_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure> {
        let State { pipes, buffer, .. } = &mut *self.state.borrow_mut();
        let pipe = pipes.get_mut(&end.0).ok_or(Failure::Pipe)?;
        let wanted = pages.min(BUFFER) as usize * PAGE;
        let read = read_pages(&mut pipe.file, &mut buffer[..wanted]).map_err(failure)?;
        let part = pipe.position..pipe.position + (read / PAGE) as u64;
        for (page, bytes) in part.zip(buffer.chunks_exact(PAGE)) {
            if let Some(wrong) = compare(bytes, Pattern::new(key, page), Check::Whole) {
                self.record("pipe", page, wrong);
            }
        }
        let pages = (read / PAGE) as u64;
        pipe.position += pages;
        Ok(pages)
    }

    fn close_pipe(&self, end: PipeEnd) {
        self.state.borrow_mut().pipes.remove(&end.0);
    }

    fn count_compiled(&self, files: u64) {
        self.counters.add(Count::Compiled, files);
    }

    fn count_wait(&self, _: u64) {
        self.counters.add(Count::Waits, 1);
    }
}

/// Pieces of a range that the buffer holds.
fn parts(pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = pages.end;
    pages
        .step_by(BUFFER as usize)
        .map(move |first| first..end.min(first + BUFFER))
}

/// Reads as much as there is.
fn read_at(file: &File, buffer: &mut [u8], from: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], from + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads whole pages, one at least, unless it is the end. What is cut off by the end is dropped.
fn read_pages(pipe: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done == 0 || done % PAGE != 0 {
        match pipe.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done - done % PAGE)
}
