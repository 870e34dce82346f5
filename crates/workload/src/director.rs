//! The director: takes a run through its phases and makes the passes' attempts.

use alloc::vec::Vec;

use dirigible_frames::FRAMES_PER_BLOCK;
use spin::Mutex;

use crate::{
    control::{self, Control},
    machine::{NoMemory, Space, Stage},
    timeline::{PassPlan, PassResult, TargetsHash, Test, Timeline, What},
    tuning::{
        QUICK_PAUSE_FULL, QUICK_PAUSE_SHORT, QUICK_THP_GROUP, QUICK_WRITE_BLOCKS,
        QUICK_WRITES_WITHOUT_GAIN, STALL,
    },
};
use dirigible::schedule::{Actor, Next, time::MILLISECOND};

/// Time between two looks whether others have done their part.
const LOOK: u64 = 10 * MILLISECOND;

/// Takes a run through its [`Timeline`].
pub struct Director<'a, S: Stage> {
    stage: &'a S,
    control: &'a Control,
    timeline: &'a Timeline,
    /// Actors that must answer when the load ends.
    audience: u64,
    next: usize,
    doing: Doing<S::Block>,
}

enum Doing<B> {
    /// Until the next phase.
    Waiting,
    Passing(Pass<B>),
    /// The load is told to end.
    Killing,
    /// Everything is given back.
    Ending,
}

/// A pass under way.
struct Pass<B> {
    plan: PassPlan,
    start: u64,
    /// What the averages have taken in so far.
    weighed: u64,
    result: PassResult,
    held: Vec<B>,
    space: Option<Space>,
    without_gain: u64,
}

impl<'a, S: Stage> Director<'a, S> {
    /// The director of a run whose load has `audience` actors.
    pub fn new(stage: &'a S, control: &'a Control, timeline: &'a Timeline, audience: u64) -> Self {
        Self {
            stage,
            control,
            timeline,
            audience,
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
                self.stage.begin_pass(&plan);
                let held = Vec::with_capacity(plan.test.asked() as usize);
                let result = PassResult::default();
                self.doing = Doing::Passing(Pass {
                    plan,
                    start: now,
                    weighed: now,
                    result,
                    held,
                    space: None,
                    without_gain: 0,
                });
            }
            What::Kill => {
                self.control.enter(control::Stage::Rested);
                self.doing = Doing::Killing;
            }
            What::End => {
                self.control.enter(control::Stage::Over);
                self.doing = Doing::Ending;
            }
        }
        Next::At(now)
    }

    fn everybody_answered(&self) -> bool {
        self.control.answers() >= self.audience
    }
}

impl<B> Pass<B> {
    /// Takes the time since the last look into the averages.
    fn weigh<S: Stage<Block = B>>(&mut self, stage: &S, now: u64) {
        let time = now.saturating_sub(self.weighed) as u128;
        self.result.balloon_time += stage.balloon_actual() as u128 * time;
        self.result.target_time += stage.balloon_target() as u128 * time;
        self.weighed = now;
    }

    /// One piece of the pass; `None` when it is over.
    fn go_on<S: Stage<Block = B>>(&mut self, stage: &S, now: u64) -> Option<u64> {
        self.weigh(stage, now);
        match self.plan.test {
            Test::Probe { count, period } => {
                if self.result.attempts < count {
                    self.attempt(stage);
                    // From start to start: the next one is due a period after this one was, however long this one took.
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
                // One write goes on to its first failure.
                while self.result.allocated < ask && self.attempt(stage) {}
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
                let space = match self.space {
                    Some(space) => space,
                    None => {
                        let Ok(space) = stage.create_space() else {
                            return Some(now + STALL);
                        };
                        *self.space.insert(space)
                    }
                };
                for _ in 0..QUICK_THP_GROUP.min(goal - self.result.attempts) {
                    self.result.attempts += 1;
                    let page = self.result.attempts * FRAMES_PER_BLOCK as u64;
                    if let Ok(pages) = stage.fault(space, page, true)
                        && pages > 1
                    {
                        self.result.allocated += 1;
                    }
                }
                Some(now + QUICK_PAUSE_FULL)
            }
        }
    }

    fn attempt<S: Stage<Block = B>>(&mut self, stage: &S) -> bool {
        self.result.attempts += 1;
        match stage.attempt() {
            Ok(block) => {
                self.held.push(block);
                self.result.allocated += 1;
                debug_assert_eq!(self.held.len() as u64, self.result.allocated);
                true
            }
            Err(NoMemory) => false,
        }
    }

    fn finish<S: Stage<Block = B>>(mut self, stage: &S, now: u64) {
        self.result.length = now - self.start;
        stage.end_pass(&self.plan, &self.result);
        for block in self.held.drain(..) {
            stage.release(block);
        }
        if let Some(space) = self.space.take() {
            stage.exit(space);
        }
    }
}

impl<S: Stage> Actor for Director<'_, S> {
    fn step(&mut self, now: u64) -> Next {
        match core::mem::replace(&mut self.doing, Doing::Waiting) {
            Doing::Waiting => self.begin_phase(now),
            Doing::Passing(mut pass) => match pass.go_on(self.stage, now) {
                Some(next) => {
                    self.doing = Doing::Passing(pass);
                    Next::At(next)
                }
                None => {
                    pass.finish(self.stage, now);
                    Next::At(now)
                }
            },
            Doing::Killing if self.everybody_answered() => {
                self.stage.drop_filler();
                self.stage.rest_watermarks();
                self.control.log_phase("filler-dropped", now);
                Next::At(now)
            }
            Doing::Ending if self.everybody_answered() => {
                self.control.end();
                Next::Done
            }
            unfinished => {
                self.doing = unfinished;
                Next::At(now + LOOK)
            }
        }
    }
}

/// Sets the balloon's targets at their times.
pub struct Targets<'a, S: Stage> {
    stage: &'a S,
    timeline: &'a Timeline,
    next: usize,
    hash: &'a Mutex<TargetsHash>,
}

impl<'a, S: Stage> Targets<'a, S> {
    /// The setter of `timeline`'s targets; each is taken into `hash` as it is set.
    pub fn new(stage: &'a S, timeline: &'a Timeline, hash: &'a Mutex<TargetsHash>) -> Self {
        Self {
            stage,
            timeline,
            next: 0,
            hash,
        }
    }
}

impl<S: Stage> Actor for Targets<'_, S> {
    fn step(&mut self, now: u64) -> Next {
        while let Some(&(time, frames)) = self.timeline.targets.get(self.next) {
            if time > now {
                return Next::At(time);
            }
            self.next += 1;
            self.hash.lock().add(time, frames);
            self.stage.set_balloon_target(frames);
        }
        Next::Done
    }
}
