//! What the experiment needs of a balloon, and the actor that works for it.

use dirigible::{
    balloon_worker::BalloonWorker,
    schedule::{Actor, Next},
};
use spin::Mutex;

use crate::control::{Control, Stage};

/// A balloon, with the host's end of it: the machine's own.
pub trait BalloonControl: Sync {
    /// The host sets the target, in frames.
    fn set_target(&self, frames: u64);
    /// The target, in frames.
    fn target(&self) -> u64;
    /// What the balloon holds, in frames.
    fn actual(&self) -> u64;
    /// The balloon's worker has done a step: for what the machine measures.
    fn stepped(&self);
}

/// Size and target of the balloon over the time under load, each weighted by how long it lasted.
#[derive(Debug, Default)]
pub struct BalloonMeans(Mutex<Sums>);

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    until: u64,
    actual: u128,
    target: u128,
}

impl BalloonMeans {
    fn add(&self, now: u64, actual: u64, target: u64) {
        let mut sums = self.0.lock();
        let time = u128::from(now.saturating_sub(sums.until));
        sums.until = now;
        sums.actual += u128::from(actual) * time;
        sums.target += u128::from(target) * time;
    }

    /// Mean size and mean target so far, in frames.
    pub fn means(&self) -> (u64, u64) {
        let sums = *self.0.lock();
        let mean = |sum: u128| (sum / u128::from(sums.until.max(1))) as u64;
        (mean(sums.actual), mean(sums.target))
    }
}

/// The balloon's worker, measured.
pub struct MeasuredWorker<'a> {
    worker: BalloonWorker<'a>,
    balloon: &'a dyn BalloonControl,
    control: &'a Control,
    means: &'a BalloonMeans,
}

impl<'a> MeasuredWorker<'a> {
    /// `worker`, the worker of `balloon`. It keeps the means until `control` ends the load.
    pub fn new(
        worker: BalloonWorker<'a>,
        balloon: &'a dyn BalloonControl,
        control: &'a Control,
        means: &'a BalloonMeans,
    ) -> Self {
        Self {
            worker,
            balloon,
            control,
            means,
        }
    }
}

impl Actor for MeasuredWorker<'_> {
    fn step(&mut self, now: u64) -> Next {
        if self.control.stage() == Stage::Loaded {
            self.means
                .add(now, self.balloon.actual(), self.balloon.target());
        }
        let next = self.worker.step(now);
        self.balloon.stepped();
        next
    }
}
