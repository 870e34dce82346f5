//! The director: runs the phases and makes the attempts of the passes.

use alloc::vec::Vec;

use spin::Mutex;

use crate::{
    control::{Control, Stage},
    operator::{NoMemory, Operator},
    timeline::{PassPlan, PassResult, TargetsHash, Test, Timeline, What},
    tuning::{
        QUICK_PAUSE_FULL, QUICK_PAUSE_SHORT, QUICK_THP_GROUP, QUICK_WRITE_BLOCKS,
        QUICK_WRITES_WITHOUT_GAIN,
    },
};
use dirigible::schedule::{Actor, Next, time::MILLISECOND};

/// Interval at which it checks whether all programs have ended.
const LOOK: u64 = 10 * MILLISECOND;

/// Runs the phases of a [`Timeline`].
pub struct Director<'a, M: Operator> {
    machine: &'a M,
    control: &'a Control,
    timeline: &'a Timeline,
    next: usize,
    doing: Doing<M::Block>,
}

enum Doing<B> {
    /// Waits for the next phase.
    Waiting,
    Passing(Pass<B>),
    /// Waits for the load to end.
    EndingLoad,
    /// The load's files are deleted.
    Cleaned,
}

/// A pass under way.
struct Pass<B> {
    plan: PassPlan,
    start: u64,
    /// The time up to which the averages are computed.
    weighed: u64,
    result: PassResult,
    held: Vec<B>,
    without_gain: u64,
}

impl<'a, M: Operator> Director<'a, M> {
    /// The director of a run on `machine`.
    pub fn new(machine: &'a M, control: &'a Control, timeline: &'a Timeline) -> Self {
        Self {
            machine,
            control,
            timeline,
            next: 0,
            doing: Doing::Waiting,
        }
    }

    fn begin_phase(&mut self, now: u64) -> Next {
        let Some(phase) = self.timeline.phases.get(self.next) else {
            self.control.end();
            return Next::Done;
        };
        if now < phase.at {
            return Next::At(phase.at);
        }
        self.next += 1;
        self.control.log_phase(phase.name, now);
        match phase.what {
            What::Wait => {}
            What::Pass(plan) => {
                self.machine.begin_pass(&plan, now);
                let held = Vec::with_capacity(plan.test.asked() as usize);
                let result = PassResult::default();
                self.doing = Doing::Passing(Pass {
                    plan,
                    start: now,
                    weighed: now,
                    result,
                    held,
                    without_gain: 0,
                });
            }
            What::Kill => {
                self.control.enter(Stage::Rested);
                self.doing = Doing::EndingLoad;
            }
            What::End => {
                self.control.enter(Stage::Over);
                self.control.end();
                return Next::Done;
            }
        }
        Next::At(now)
    }
}

impl<B> Pass<B> {
    /// Adds the time since the last call to the averages.
    fn weigh<M: Operator<Block = B>>(&mut self, machine: &M, now: u64) {
        let time = now.saturating_sub(self.weighed) as u128;
        self.result.balloon_time += machine.balloon_actual() as u128 * time;
        self.result.target_time += machine.balloon_target() as u128 * time;
        self.weighed = now;
    }

    /// One piece of the pass. Returns when the next one is due, or `None` when the pass is over.
    fn go_on<M: Operator<Block = B>>(&mut self, machine: &M, now: u64) -> Option<u64> {
        self.weigh(machine, now);
        machine.sample_pass(now);
        match self.plan.test {
            Test::Probe { count, period } => {
                if self.result.attempts < count {
                    self.attempt(machine);
                    // From start to start: the next attempt is due one period after this one, however long this one
                    // took.
                    return Some(self.start + self.result.attempts * period);
                }
                None
            }
            Test::Pool { goal, limit } => {
                let got = self.result.allocated;
                let over = now >= self.start + limit
                    || got >= goal
                    || self.without_gain >= QUICK_WRITES_WITHOUT_GAIN;
                if over {
                    return None;
                }
                let ask = (got + QUICK_WRITE_BLOCKS).min(goal);
                // One write ends at its first failure.
                while self.result.allocated < ask && self.attempt(machine) {}
                if self.result.allocated > got {
                    self.without_gain = 0;
                } else {
                    self.without_gain += 1;
                }
                let full = self.result.allocated == ask;
                Some(
                    now + if full {
                        QUICK_PAUSE_FULL
                    } else {
                        QUICK_PAUSE_SHORT
                    },
                )
            }
            Test::Thp { goal, limit } => {
                if now >= self.start + limit || self.result.attempts >= goal {
                    return None;
                }
                for _ in 0..QUICK_THP_GROUP.min(goal - self.result.attempts) {
                    self.result.attempts += 1;
                    let got = machine.huge_fault(self.result.attempts);
                    machine.faulted(now, got);
                    self.result.allocated += u64::from(got);
                }
                Some(now + QUICK_PAUSE_FULL)
            }
        }
    }

    fn attempt<M: Operator<Block = B>>(&mut self, machine: &M) -> bool {
        self.result.attempts += 1;
        match machine.attempt() {
            Ok(block) => {
                self.held.push(block);
                self.result.allocated += 1;
                debug_assert_eq!(self.held.len() as u64, self.result.allocated);
                true
            }
            Err(NoMemory) => false,
        }
    }

    fn finish<M: Operator<Block = B>>(mut self, machine: &M, now: u64) {
        self.result.length = now - self.start;
        machine.end_pass(&self.plan, &self.result);
        for block in self.held.drain(..) {
            machine.release(block);
        }
        machine.end_faults();
    }
}

impl<M: Operator> Actor for Director<'_, M> {
    fn step(&mut self, now: u64) -> Next {
        match core::mem::replace(&mut self.doing, Doing::Waiting) {
            Doing::Waiting => self.begin_phase(now),
            Doing::Passing(mut pass) => match pass.go_on(self.machine, now) {
                Some(next) => {
                    self.doing = Doing::Passing(pass);
                    Next::At(next)
                }
                None => {
                    pass.finish(self.machine, now);
                    Next::At(now)
                }
            },
            Doing::EndingLoad if self.machine.kill_load() => {
                self.machine.clean_up();
                self.doing = Doing::Cleaned;
                Next::At(now)
            }
            Doing::Cleaned => {
                self.control.log_phase("cleaned", now);
                Next::At(now)
            }
            unfinished => {
                self.doing = unfinished;
                Next::At(now + LOOK)
            }
        }
    }
}

/// Sets the balloon's targets at their times.
pub struct Targets<'a, M: Operator> {
    machine: &'a M,
    timeline: &'a Timeline,
    next: usize,
    hash: &'a Mutex<TargetsHash>,
}

impl<'a, M: Operator> Targets<'a, M> {
    /// Sets the targets of `timeline` and adds each to `hash`.
    pub fn new(machine: &'a M, timeline: &'a Timeline, hash: &'a Mutex<TargetsHash>) -> Self {
        Self {
            machine,
            timeline,
            next: 0,
            hash,
        }
    }
}

impl<M: Operator> Actor for Targets<'_, M> {
    fn step(&mut self, now: u64) -> Next {
        while let Some(&(time, frames)) = self.timeline.targets.get(self.next) {
            if time > now {
                return Next::At(time);
            }
            self.next += 1;
            self.hash.lock().add(time, frames);
            self.machine.set_balloon_target(frames);
        }
        Next::Done
    }
}
