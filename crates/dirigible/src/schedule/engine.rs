//! The queue of actors.

use alloc::{boxed::Box, collections::BinaryHeap, vec::Vec};
use core::{
    cmp::Reverse,
    sync::atomic::{AtomicBool, Ordering},
};

use dirigible_stacks::{Calls, NoStack, Stack, scope};

use super::{Actor, Clock, Next};

/// Bytes of a program's stack. The deepest use that was measured ([`Engine::deepest_stack`]) in runs of the experiment
/// is 3.4 KiB on the hosted machine; with checks on, both machines demand at the end of a run that it is no more than a
/// quarter. A panic that prints a backtrace takes most of the rest.
pub const PROGRAM_STACK: usize = 64 << 10;

/// Whose turn it is: its time, and its number.
type Turn = Reverse<(u64, usize)>;
/// What a program's step gives: the actor itself, which the call owned, and when it goes on.
type Stepped<'a> = (Box<dyn Actor + 'a>, Next);

/// An actor of the queue.
enum Slot<'a> {
    /// Runs on the engine's stack.
    Plain(Box<dyn Actor + 'a>),
    /// Runs on its own; without actor and stack while a step is under way.
    Program {
        resting: Option<(Box<dyn Actor + 'a>, Stack)>,
        /// When the step under way began.
        began: u64,
    },
}

/// A queue of actors.
#[derive(Default)]
pub struct Engine<'a> {
    actors: Vec<Slot<'a>>,
    queue: BinaryHeap<Turn>,
    /// Programs that wait in the middle of a step, in the order of their numbers.
    waiting: Vec<Waiting>,
    /// A round of looks has begun, and none has looked yet.
    round_begins: bool,
}

/// A program that waits.
struct Waiting {
    number: usize,
    /// It has looked since somebody else did something, or time passed.
    has_looked: bool,
}

impl<'a> Engine<'a> {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an actor that acts first at `time`. Among equals the one added first comes first.
    pub fn add(&mut self, time: u64, actor: impl Actor + 'a) {
        self.add_boxed(time, Box::new(actor));
    }

    /// The same for an actor in a box.
    pub fn add_boxed(&mut self, time: u64, actor: Box<dyn Actor + 'a>) {
        self.push(time, Slot::Plain(actor));
    }

    /// The same for an actor that may wait in the middle of a step while others run.
    ///
    /// # Errors
    ///
    /// There is no memory for its stack.
    pub fn add_program(&mut self, time: u64, actor: Box<dyn Actor + 'a>) -> Result<(), NoStack> {
        let stack = Stack::new(PROGRAM_STACK)?;
        let program = Slot::Program {
            resting: Some((actor, stack)),
            began: 0,
        };
        self.push(time, program);
        Ok(())
    }

    fn push(&mut self, time: u64, slot: Slot<'a>) {
        self.queue.push(Reverse((time, self.actors.len())));
        self.actors.push(slot);
    }

    /// The most bytes of its stack that any program has used; of those whose step is under way it is not known. It
    /// reads all stacks: for tests and reports.
    pub fn deepest_stack(&self) -> usize {
        let depth = |slot: &Slot<'_>| match slot {
            Slot::Program {
                resting: Some((_, stack)),
                ..
            } => stack.deepest(),
            _ => 0,
        };
        self.actors.iter().map(depth).max().unwrap_or(0)
    }

    /// Runs until `ended` is set (by an actor, here or in another thread) or no actor wants to go on. A program that
    /// waits when the run ends goes on to the end of its step; after `ended` only such programs run. What they wait for
    /// must come from devices, from time or from each other: no plain actor and no new step helps them. Calls `observe`
    /// after each step with the time at which it began and the number of the actor.
    ///
    /// # Panics
    ///
    /// When an actor panics. That actor is gone then, and so are the programs that were waiting: their stacks are
    /// unwound, and a later run goes on without them.
    pub fn run(
        &mut self,
        clock: &dyn Clock,
        ended: &AtomicBool,
        mut observe: impl FnMut(u64, usize),
    ) {
        // Only after a panic is somebody left; the calls are gone.
        self.waiting.clear();
        clock.with_current(&mut |current| {
            scope(current, |calls| {
                self.run_calls(calls, clock, ended, &mut observe);
            });
        });
    }

    fn run_calls<'f>(
        &mut self,
        calls: &mut Calls<'f, Stepped<'a>>,
        clock: &dyn Clock,
        ended: &AtomicBool,
        observe: &mut dyn FnMut(u64, usize),
    ) where
        'a: 'f,
    {
        // Acquire: pairs with the release of whoever ends the run, so that its last writes are seen after the run.
        let is_over = || ended.load(Ordering::Acquire);
        loop {
            if core::mem::take(&mut self.round_begins) && !self.waiting.is_empty() {
                clock.catch_up();
            }
            let number = if let Some(number) = self.next_look() {
                number
            } else {
                let next = self.queue.peek().map(|&Reverse((time, _))| time);
                let next = next.filter(|_| !is_over());
                match next {
                    None if self.waiting.is_empty() => return,
                    Some(time) if self.waiting.is_empty() || time <= clock.now() => {
                        clock.wait_until(time, ended);
                    }
                    _ => {
                        clock.pass(next);
                        self.all_look();
                        continue;
                    }
                }
                if is_over() {
                    continue;
                }
                match self.queue.pop() {
                    Some(Reverse((_, number))) => number,
                    None => continue,
                }
            };
            if let Some((began, next)) = self.go_on(calls, number, clock.now()) {
                if let Next::At(next) | Next::Event { latest: next } = next {
                    self.queue.push(Reverse((next, number)));
                }
                observe(began, number);
            }
        }
    }

    /// The first program that waits and has not looked since something changed.
    fn next_look(&self) -> Option<usize> {
        let mut waiting = self.waiting.iter();
        let first = waiting.find(|waiting| !waiting.has_looked)?;
        Some(first.number)
    }

    /// Something has changed: all that wait look.
    fn all_look(&mut self) {
        for waiting in &mut self.waiting {
            waiting.has_looked = false;
        }
        self.round_begins = true;
    }

    /// Begins a step of an actor at `now`, or lets its step go on. Gives when the step began, and when the actor goes
    /// on; `None` when it waits.
    fn go_on<'f>(
        &mut self,
        calls: &mut Calls<'f, Stepped<'a>>,
        number: usize,
        now: u64,
    ) -> Option<(u64, Next)>
    where
        'a: 'f,
    {
        let (resting, began) = match &mut self.actors[number] {
            Slot::Plain(actor) => {
                let next = actor.step(now);
                self.all_look();
                return Some((now, next));
            }
            Slot::Program { resting, began } => (resting, began),
        };
        let call = number as u32;
        let begins = resting.take();
        let is_new = begins.is_some();
        if let Some((mut actor, stack)) = begins {
            *began = now;
            calls.start(call, stack, move || {
                let next = actor.step(now);
                (actor, next)
            });
        }
        let stepped = calls.resume(call);
        let place = self
            .waiting
            .binary_search_by_key(&number, |waiting| waiting.number);
        match (stepped, place) {
            (Some((actor, next)), place) => {
                let began = *began;
                *resting = calls.take_stack(call).map(|stack| (actor, stack));
                if let Ok(place) = place {
                    self.waiting.remove(place);
                }
                self.all_look();
                Some((began, next))
            }
            (None, place) => {
                // What it did until it waited may concern the others. A look that came to nothing does not.
                if is_new {
                    self.all_look();
                }
                let has_looked = true;
                match place {
                    Ok(place) => self.waiting[place].has_looked = has_looked,
                    Err(place) => self.waiting.insert(place, Waiting { number, has_looked }),
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
