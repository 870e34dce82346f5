//! What the experiment needs of a balloon, and the actor that works for it.

use dirigible_balloon::FrameSource;
use spin::Mutex;

use crate::{
    control::{Control, Stage},
    tuning::{BALLOON_MESSAGES, BALLOON_TICK},
};
use dirigible::schedule::{Actor, Next};

/// A balloon, with the host's end of it: the machine's own.
pub trait BalloonControl: Sync {
    /// The host sets the target, in frames.
    fn set_target(&self, frames: u64);
    /// The target, in frames.
    fn target(&self) -> u64;
    /// What the balloon holds, in frames.
    fn actual(&self) -> u64;
    /// Works toward the target, with at most `messages` requests to the device.
    fn step(&self, source: &dyn FrameSource, messages: usize);
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

/// The worker of the balloon: looks at a steady pace and sends a bounded number of messages each time.
pub struct BalloonWorker<'a> {
    balloon: &'a dyn BalloonControl,
    source: &'a dyn FrameSource,
    control: &'a Control,
    means: &'a BalloonMeans,
}

impl<'a> BalloonWorker<'a> {
    /// The worker of `balloon`, which takes its frames from `source`. It keeps the means until `control` ends the load.
    pub fn new(
        balloon: &'a dyn BalloonControl,
        source: &'a dyn FrameSource,
        control: &'a Control,
        means: &'a BalloonMeans,
    ) -> Self {
        Self {
            balloon,
            source,
            control,
            means,
        }
    }
}

impl Actor for BalloonWorker<'_> {
    fn step(&mut self, now: u64) -> Next {
        if self.control.stage() == Stage::Loaded {
            self.means
                .add(now, self.balloon.actual(), self.balloon.target());
        }
        self.balloon.step(self.source, BALLOON_MESSAGES);
        Next::At(now + BALLOON_TICK)
    }
}
