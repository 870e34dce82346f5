//! What all programs do: wait for memory and repeat, keep a pace, make and read files.

use super::{
    LoadPlan, Program,
    tree::{Planned, key},
};
use crate::{
    calls::{Calls, Check, Ended, Failure, File, Pid, PipeEnd},
    rng::{Rng, Source, mix},
};

/// How often a file is deleted that stands where one is to be made: whoever makes it too is at its end.
const MAKES: usize = 4;

/// A program at work.
pub(super) struct Work<'a> {
    pub(super) plan: &'a LoadPlan,
    pub(super) calls: &'a dyn Calls,
    pub(super) rng: Rng,
    /// When the next thing is to be done. Waits for memory move it on: nothing is made up for in a burst.
    due: u64,
}

impl<'a> Work<'a> {
    pub(super) fn new(plan: &'a LoadPlan, calls: &'a dyn Calls, program: &Program) -> Self {
        Self {
            plan,
            calls,
            rng: Rng::stream(plan.seed, Source::Program(stream_of(program))),
            due: calls.now(),
        }
    }

    /// Draws a number from `low` to `high`.
    pub(super) fn draw(&mut self, (low, high): (u64, u64)) -> u64 {
        self.rng.range(low, high)
    }

    /// Draws the lines of a check.
    pub(super) fn four(&mut self) -> Check {
        Check::Four(self.rng.bits() as u32)
    }

    /// Sleeps until `time` after what was due before.
    pub(super) fn pace(&mut self, time: u64) -> Result<(), Failure> {
        self.due = self.due.saturating_add(time);
        self.calls.sleep_until(self.due)
    }

    /// Begins to count from now: after a wait that has nothing to do with the pace.
    pub(super) fn pace_from_now(&mut self) {
        self.due = self.calls.now();
    }

    /// Makes a call, again and again as long as there is no memory for it.
    pub(super) fn again<T>(
        &mut self,
        mut call: impl FnMut(&dyn Calls) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        loop {
            match call(self.calls) {
                Err(Failure::NoMemory) => self.stall()?,
                answer => return answer,
            }
        }
    }

    /// Waits for memory.
    pub(super) fn stall(&mut self) -> Result<(), Failure> {
        let stall = self.plan.stall;
        self.calls.count_wait(stall);
        self.due = self.due.saturating_add(stall);
        self.calls
            .sleep_until(self.calls.now().saturating_add(stall))
    }

    /// Begins a program. One that may not begin, because there are too many, waits too.
    pub(super) fn spawn(
        &mut self,
        program: Program,
        pipe: Option<PipeEnd>,
    ) -> Result<Pid, Failure> {
        loop {
            match self.calls.spawn(&program, pipe) {
                Err(Failure::NoMemory | Failure::TooMany) => self.stall()?,
                answer => return answer,
            }
        }
    }

    /// Runs a program to its end, anew as often as it fails.
    pub(super) fn run_until_done(&mut self, program: Program) -> Result<(), Failure> {
        loop {
            let child = self.spawn(program, None)?;
            match self.calls.wait(child)? {
                Ended::Done => return Ok(()),
                Ended::Failed => self.stall()?,
            }
        }
    }

    /// Makes a file with its planned contents. One that is there already goes first.
    pub(super) fn write(&mut self, planned: &Planned) -> Result<(), Failure> {
        let file = self.create(&planned.path)?;
        let written = self.again(|calls| calls.write(file, 0..planned.pages, planned.key));
        self.calls.close(file);
        written
    }

    /// Makes an empty file. One that is there already goes first.
    pub(super) fn create(&mut self, path: &str) -> Result<File, Failure> {
        for _ in 0..MAKES {
            match self.again(|calls| calls.create(path)) {
                Err(Failure::Exists) => self.delete(path)?,
                answer => return answer,
            }
        }
        Err(Failure::Exists)
    }

    /// Deletes a file, if it is there.
    pub(super) fn delete(&mut self, path: &str) -> Result<(), Failure> {
        match self.again(|calls| calls.delete(path)) {
            Err(Failure::NotFound) => Ok(()),
            answer => answer,
        }
    }

    /// Makes a directory, unless it is there.
    pub(super) fn make_directory(&mut self, path: &str) -> Result<(), Failure> {
        match self.again(|calls| calls.make_directory(path)) {
            Err(Failure::Exists) => Ok(()),
            answer => answer,
        }
    }

    /// Reads a whole file and compares it.
    pub(super) fn read(&mut self, planned: &Planned) -> Result<(), Failure> {
        let check = self.four();
        let file = self.again(|calls| calls.open(&planned.path))?;
        let read = self.again(|calls| calls.read(file, 0..planned.pages, planned.key, check));
        self.calls.close(file);
        read
    }
}

/// The key of a program's stream.
fn stream_of(program: &Program) -> u64 {
    let (kind, tree, unit, round) = match *program {
        Program::Main => (1, 0, 0, 0),
        Program::Copy { tree } => (2, tree, 0, 0),
        Program::Make { tree } => (3, tree, 0, 0),
        Program::Compile { tree, unit, round } => (4, tree, unit, round),
        Program::Assemble { tree, unit, round } => (5, tree, unit, round),
        Program::Link { tree, part, round } => (6, tree, part, round),
        Program::Walk => (7, 0, 0, 0),
        Program::Delete { tree } => (8, tree, 0, 0),
    };
    let numbers = [tree, unit, round].into_iter();
    let key = numbers.fold(mix(kind), |key, number| mix(key ^ u64::from(number)));
    // Beyond the numbers of all other sources.
    key | 1 << 63
}

/// What goes from a compile of a directory to its assembler.
pub(super) struct Feed {
    /// The key of its contents.
    pub(super) key: u64,
    /// Pages for each page of an object.
    pub(super) ratio: u64,
}

/// See [`Feed`].
pub(super) fn feed(plan: &LoadPlan, directory: &str, round: u32) -> Feed {
    Feed {
        key: key(!plan.seed, directory, round),
        ratio: 2,
    }
}
