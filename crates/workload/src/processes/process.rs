//! One process: the calls of its program.

use alloc::vec::Vec;
use core::{
    cell::{Cell, RefCell},
    ops::Range,
};

use dirigible_frames::{AllocRequest, FrameClass, Order, PageTables, Pfn};
use dirigible_paging::{PageSource, SpaceId};

use super::{NAP, Processes, files::OpenFiles, memory::Areas, pipes::Look};
use crate::{
    calls::{Calls, Check, Ended, Failure, File, Pid, PipeEnd},
    content::{Pattern, When},
    programs::Program,
    system::Unserved,
};
use dirigible::schedule::time;

/// Frames of a process's stack in the kernel: 16 KiB, as in Linux.
const STACK: Order = match Order::new(2) {
    Some(order) => order,
    None => Order::BASE,
};
/// Key of these frames in their patterns.
const STACK_KEY: u64 = 0x7374_6b00_0000_0000;
/// How often a program that waits for a pipe or for a child looks.
const LOOK: u64 = 10 * time::MILLISECOND;

/// The process of one program. It gives back what the program leaves when it is dropped; after a program that has
/// returned `finish` comes first.
pub struct Process<'p, 'e, 'a, P: PageTables> {
    pub(super) processes: &'p Processes<'e, 'a, P>,
    /// In the table; `None`: the operator's own.
    pub(super) place: Option<usize>,
    stack: Pfn,
    pub(super) space: SpaceId,
    pub(super) areas: RefCell<Areas>,
    pub(super) open: RefCell<OpenFiles>,
    inherited: Option<PipeEnd>,
    ends: RefCell<Vec<PipeEnd>>,
    /// Its last request found no memory.
    starved: Cell<bool>,
}

impl<'p, 'e, 'a, P: PageTables> Process<'p, 'e, 'a, P> {
    pub(super) fn new(
        processes: &'p Processes<'e, 'a, P>,
        place: Option<usize>,
        inherited: Option<PipeEnd>,
    ) -> Result<Self, Failure> {
        let parts = processes.system.parts();
        let request = AllocRequest::new(STACK, FrameClass::Unmovable);
        let stack = parts
            .memory
            .alloc(request)
            .map_err(|_| processes.failed())?;
        let space = match parts.paging.create_space(parts.memory) {
            Ok(space) => space,
            Err(_) => {
                parts.memory.free(stack, STACK);
                return Err(processes.failed());
            }
        };
        for frame in stack_frames(stack) {
            Pattern::new(STACK_KEY, frame.get()).write(parts.platform, frame);
        }
        if let Some(place) = place {
            processes.table.lock().set_space(place, Some(space));
        }
        Ok(Self {
            processes,
            place,
            stack,
            space,
            areas: RefCell::default(),
            open: RefCell::default(),
            inherited,
            ends: RefCell::new(inherited.into_iter().collect()),
            starved: Cell::new(false),
        })
    }

    /// The program has returned: closes the files that it left open.
    pub(super) fn finish(self) {
        self.close_all();
    }

    /// The beginning of each call.
    pub(super) fn enter(&self) -> Result<(), Failure> {
        match self.processes.is_killed(self.place) {
            true => Err(Failure::Killed),
            false => Ok(()),
        }
    }

    /// A request has found no memory.
    pub(super) fn starve(&self) -> Failure {
        self.starved.set(true);
        self.processes.failed()
    }

    /// A page of the program was not to be had. If its contents are lost, the program ends.
    pub(super) fn unserved(&self, why: Unserved) -> Failure {
        match why {
            Unserved::NoMemory => self.starve(),
            Unserved::Lost => {
                self.processes.lost_memory(self.place);
                Failure::Killed
            }
        }
    }

    /// A request was served. Only one that had failed before says that memory has not ended.
    pub(super) fn served(&self) {
        if self.starved.replace(false) {
            self.processes.served();
        }
    }

    /// Sleeps a while, unless the program is being killed.
    fn nap(&self, time: u64) -> Result<(), Failure> {
        self.enter()?;
        let platform = self.processes.system.parts().platform;
        platform.sleep_until(platform.now() + time);
        self.enter()
    }
}

fn stack_frames(stack: Pfn) -> impl Iterator<Item = Pfn> {
    (0..STACK.frames() as u64).map(move |offset| stack.plus(offset))
}

impl<P: PageTables> Drop for Process<'_, '_, '_, P> {
    fn drop(&mut self) {
        let system = self.processes.system;
        for end in self.ends.take() {
            self.processes.pipes.close(system, end);
        }
        // After its end nothing is open. What is open was left by a program that panicked: whoever has a file locked may
        // be one of those that are unwound next.
        self.close_at_once();
        if let Some(place) = self.place {
            self.processes.table.lock().set_space(place, None);
        }
        let parts = system.parts();
        parts.paging.destroy_space(self.space);
        for frame in stack_frames(self.stack) {
            let pattern = Pattern::new(STACK_KEY, frame.get());
            let note = (When::Ended, "stack", frame.get());
            system.check_frame(frame, pattern, Check::Whole, note);
        }
        parts.memory.free(self.stack, STACK);
    }
}

impl<P: PageTables> Calls for Process<'_, '_, '_, P> {
    fn now(&self) -> u64 {
        self.processes.system.parts().platform.now()
    }

    fn sleep_until(&self, until: u64) -> Result<(), Failure> {
        let platform = self.processes.system.parts().platform;
        loop {
            self.enter()?;
            let now = platform.now();
            if now >= until {
                return Ok(());
            }
            platform.sleep_until(until.min(now + NAP));
        }
    }

    fn spawn(&self, program: &Program, pipe: Option<PipeEnd>) -> Result<Pid, Failure> {
        self.enter()?;
        let pid = self.processes.spawn(self.place, program, pipe)?;
        if let Some(end) = pipe {
            self.ends.borrow_mut().retain(|&mine| mine != end);
        }
        Ok(pid)
    }

    fn wait(&self, child: Pid) -> Result<Ended, Failure> {
        let parent = self.place.ok_or(Failure::NotFound)?;
        loop {
            let ended = self.processes.table.lock().ask(parent, child);
            match ended.map_err(|()| Failure::NotFound)? {
                Some(ended) => return Ok(ended),
                None => self.nap(LOOK)?,
            }
        }
    }

    fn wait_any(&self) -> Result<(Pid, Ended), Failure> {
        let parent = self.place.ok_or(Failure::NotFound)?;
        loop {
            let ended = self.processes.table.lock().ask_any(parent);
            match ended.map_err(|()| Failure::NotFound)? {
                Some(ended) => return Ok(ended),
                None => self.nap(LOOK)?,
            }
        }
    }

    fn inherited(&self) -> Option<PipeEnd> {
        self.inherited
    }

    fn map(&self, pages: u64, huge: bool) -> Result<u64, Failure> {
        self.enter()?;
        Ok(self.areas.borrow_mut().map(pages, huge))
    }

    fn touch(&self, pages: Range<u64>) -> Result<(), Failure> {
        self.touch_pages(pages)
    }

    fn check(&self, pages: Range<u64>, check: Check) -> Result<(), Failure> {
        self.enter()?;
        let checked = self.processes.system.check(self.space, pages, check);
        checked.map_err(|why| self.unserved(why))
    }

    fn discard(&self, pages: Range<u64>) -> Result<(), Failure> {
        self.enter()?;
        self.processes.system.give_back(self.space, pages);
        Ok(())
    }

    fn unmap(&self, pages: Range<u64>) -> Result<(), Failure> {
        self.enter()?;
        self.areas.borrow_mut().unmap(&pages);
        self.processes.system.give_back(self.space, pages);
        Ok(())
    }

    fn create(&self, path: &str) -> Result<File, Failure> {
        self.create_file(path)
    }

    fn open(&self, path: &str) -> Result<File, Failure> {
        self.open_file(path)
    }

    fn pages(&self, file: File) -> Result<u64, Failure> {
        self.file_pages(file)
    }

    fn write(&self, file: File, pages: Range<u64>, key: u64) -> Result<(), Failure> {
        self.write_file(file, pages, key)
    }

    fn read(&self, file: File, pages: Range<u64>, key: u64, check: Check) -> Result<(), Failure> {
        self.read_file(file, pages, key, check)
    }

    fn sync(&self, file: File) -> Result<(), Failure> {
        self.sync_file(file)
    }

    fn close(&self, file: File) {
        self.close_file(file);
    }

    fn delete(&self, path: &str) -> Result<(), Failure> {
        self.delete_file(path)
    }

    fn make_directory(&self, path: &str) -> Result<(), Failure> {
        self.make_folder(path)
    }

    fn remove_directory(&self, path: &str) -> Result<(), Failure> {
        self.remove_folder(path)
    }

    fn list(&self, path: &str, with: &mut dyn FnMut(&str, bool)) -> Result<(), Failure> {
        self.list_folder(path, with)
    }

    fn pipe(&self) -> Result<(PipeEnd, PipeEnd), Failure> {
        self.enter()?;
        let (reader, writer) = self.processes.pipes.make()?;
        self.ends.borrow_mut().extend([reader, writer]);
        Ok((reader, writer))
    }

    fn write_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure> {
        let pipes = &self.processes.pipes;
        loop {
            self.enter()?;
            match pipes.room(end)? {
                Look::Closed => return Err(Failure::Pipe),
                Look::Wait => self.nap(LOOK)?,
                Look::Some(room) => {
                    let mut written = 0;
                    while written < room.min(pages) {
                        match pipes.write(self.processes.system, end, key) {
                            Ok(()) => written += 1,
                            Err(_) if written > 0 => break,
                            Err(Failure::NoMemory) => return Err(self.starve()),
                            Err(failure) => return Err(failure),
                        }
                    }
                    self.served();
                    return Ok(written);
                }
            }
        }
    }

    fn read_pipe(&self, end: PipeEnd, pages: u64, key: u64) -> Result<u64, Failure> {
        let pipes = &self.processes.pipes;
        loop {
            self.enter()?;
            match pipes.filled(end)? {
                Look::Closed => return Ok(0),
                Look::Wait => self.nap(LOOK)?,
                Look::Some(filled) => {
                    let count = filled.min(pages);
                    for _ in 0..count {
                        pipes.read(self.processes.system, end, key)?;
                    }
                    return Ok(count);
                }
            }
        }
    }

    fn close_pipe(&self, end: PipeEnd) {
        let mut ends = self.ends.borrow_mut();
        if let Some(place) = ends.iter().position(|&mine| mine == end) {
            ends.swap_remove(place);
            drop(ends);
            self.processes.pipes.close(self.processes.system, end);
        }
    }

    fn count_compiled(&self, files: u64) {
        self.processes.control.count_compiled(files);
    }

    fn count_wait(&self, time: u64) {
        self.processes.control.count_wait(time);
    }
}
