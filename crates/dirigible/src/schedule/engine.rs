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
/// Where new programs come from while the engine runs.
type Source<'a> = Box<dyn FnMut() -> Option<Box<dyn Actor + 'a>> + Send + 'a>;

/// An actor of the queue.
enum Slot<'a> {
    /// Runs on the engine's stack.
    Plain(Box<dyn Actor + 'a>),
    /// Runs on its own; without actor and stack while a step is under way.
    Program {
        resting: Option<(Box<dyn Actor + 'a>, Stack)>,
        /// When the step under way began.
        began: u64,
        /// It waits in the middle of a step for its turn in the queue.
        sleeps: bool,
    },
    /// A program was here that is done; the next new one takes the place.
    Free,
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
    /// Where new programs come from.
    source: Option<Source<'a>>,
    /// Places of programs that are done, the lowest first.
    free: BinaryHeap<Reverse<usize>>,
    /// Programs that sleep.
    asleep: usize,
    /// Stacks for the next programs.
    spare: Vec<Stack>,
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
        let stack = self.next_stack()?;
        self.push_program(time, actor, stack);
        Ok(())
    }

    /// Asks `source`, in each turn of a run, for programs to add; they begin at once. It is asked until it gives none,
    /// so then the question should cost no more than a load. After the end of a run it is not asked. If there is no
    /// memory for a stack, it is asked later.
    ///
    /// Among equals in time the lower number comes first, as ever; a new program gets the lowest number that is free.
    ///
    /// Where others than this engine's actors feed the source, the machine's clock says how long the engine may sleep
    /// between two questions ([`Clock::longest_wait`]); with such a clock the run goes on without actors until it is
    /// ended.
    pub fn accept_from(&mut self, source: impl FnMut() -> Option<Box<dyn Actor + 'a>> + Send + 'a) {
        self.source = Some(Box::new(source));
    }

    fn next_stack(&mut self) -> Result<Stack, NoStack> {
        match self.spare.pop() {
            Some(stack) => Ok(stack),
            None => Stack::new(PROGRAM_STACK),
        }
    }

    fn push_program(&mut self, time: u64, actor: Box<dyn Actor + 'a>, stack: Stack) {
        let program = Slot::Program {
            resting: Some((actor, stack)),
            began: 0,
            sleeps: false,
        };
        self.push(time, program);
    }

    fn push(&mut self, time: u64, slot: Slot<'a>) {
        let number = match self.free.pop() {
            Some(Reverse(number)) => {
                self.actors[number] = slot;
                number
            }
            None => {
                self.actors.push(slot);
                self.actors.len() - 1
            }
        };
        self.queue.push(Reverse((time, number)));
    }

    /// Adds the programs that the source has.
    fn accept(&mut self, clock: &dyn Clock) {
        let Some(mut source) = self.source.take() else {
            return;
        };
        // The stack is there before the program is: none is lost.
        while let Ok(stack) = self.next_stack() {
            let Some(actor) = source() else {
                self.spare.push(stack);
                break;
            };
            self.push_program(clock.now(), actor, stack);
        }
        self.source = Some(source);
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
        let used = self.actors.iter().map(depth);
        used.chain(self.spare.iter().map(Stack::deepest))
            .max()
            .unwrap_or(0)
    }

    /// Runs until `ended` is set (by an actor, here or in another thread) or no actor wants to go on. A program that
    /// waits when the run ends goes on to the end of its step, one that sleeps is woken; after `ended` only such
    /// programs run, and a sleep is a moment. What they wait for
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
        self.take_sleepers(|_| {});
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
            let over = is_over();
            match over {
                true => self.wake_sleepers(),
                false => self.accept(clock),
            }
            if core::mem::take(&mut self.round_begins) && !self.waiting.is_empty() {
                clock.catch_up();
            }
            let number = if let Some(number) = self.next_look() {
                number
            } else {
                let next = self.queue.peek().map(|&Reverse((time, _))| time);
                let next = next.filter(|_| !over);
                // The source is asked again in time, even if nobody else has anything to do.
                if let (Some(longest), Some(_)) = (clock.longest_wait(), &self.source)
                    && self.waiting.is_empty()
                    && !over
                {
                    let latest = clock.now().saturating_add(longest);
                    if next.is_none_or(|next| next > latest) {
                        clock.wait_until(latest, ended);
                        continue;
                    }
                }
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
            if let Some((began, next)) = self.go_on(calls, number, clock.now(), over) {
                if let Next::At(next) | Next::Event { latest: next } = next {
                    self.queue.push(Reverse((next, number)));
                }
                observe(began, number);
            }
        }
    }

    /// Takes the programs that sleep out of the queue.
    fn take_sleepers(&mut self, mut with: impl FnMut(usize)) {
        let Self { actors, queue, .. } = self;
        self.asleep = 0;
        queue.retain(|&Reverse((_, number))| {
            let Slot::Program { sleeps, .. } = &mut actors[number] else {
                return true;
            };
            if core::mem::take(sleeps) {
                with(number);
                return false;
            }
            true
        });
    }

    /// The run is over: who sleeps waits like the others now, and so finishes its step.
    fn wake_sleepers(&mut self) {
        if self.asleep == 0 {
            return;
        }
        let mut woken = core::mem::take(&mut self.waiting);
        self.take_sleepers(|number| {
            woken.push(Waiting {
                number,
                has_looked: false,
            });
        });
        woken.sort_unstable_by_key(|waiting| waiting.number);
        self.waiting = woken;
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
        over: bool,
    ) -> Option<(u64, Next)>
    where
        'a: 'f,
    {
        let (resting, began, sleeps) = match &mut self.actors[number] {
            Slot::Plain(actor) => {
                let next = actor.step(now);
                self.all_look();
                return Some((now, next));
            }
            Slot::Program {
                resting,
                began,
                sleeps,
            } => (resting, began, sleeps),
            Slot::Free => return None,
        };
        let call = number as u32;
        if let Some((mut actor, stack)) = resting.take() {
            *began = now;
            calls.start(call, stack, move || {
                let next = actor.step(now);
                (actor, next)
            });
        }
        self.asleep -= usize::from(core::mem::take(sleeps));
        let stepped = calls.resume(call);
        let place = self
            .waiting
            .binary_search_by_key(&number, |waiting| waiting.number);
        if let Some((actor, next)) = stepped {
            let began = *began;
            let stack = calls.take_stack(call);
            if next == Next::Done {
                self.spare.extend(stack);
                self.actors[number] = Slot::Free;
                self.free.push(Reverse(number));
            } else {
                *resting = stack.map(|stack| (actor, stack));
            }
            if let Ok(place) = place {
                self.waiting.remove(place);
            }
            self.all_look();
            return Some((began, next));
        }
        let until = calls.sleeps_until(call).filter(|_| !over);
        if let Some(until) = until {
            *sleeps = true;
            self.asleep += 1;
            self.queue.push(Reverse((until, number)));
        }
        // What it did until it waited may concern the others. A look that came to nothing does not.
        if place.is_err() || until.is_some() {
            self.all_look();
        }
        match (place, until) {
            (Ok(place), None) => self.waiting[place].has_looked = true,
            (Err(place), None) => {
                let has_looked = true;
                self.waiting.insert(place, Waiting { number, has_looked });
            }
            (Ok(place), Some(_)) => {
                self.waiting.remove(place);
            }
            (Err(_), Some(_)) => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;
