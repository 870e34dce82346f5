//! [`Reclaimer`]: who has frames that can be reclaimed, and one pass over them.

use dirigible_frames::{
    OwnerId, Platform,
    sync::{AtomicBool, AtomicU64, Mutex, Ordering},
};

use crate::{
    Evictable, Generations, ReclaimConfig, Shrinker,
    callers::{Callers, Inside, TurnedAway},
    hand::{Effort, Hand, Pass},
    slabs::Slabs,
};

/// Owner numbers, 0 among them.
const OWNERS: usize = OwnerId::MAX as usize + 1;

/// How often all objects are offered at the operator's wish.
const SHRINK_TURNS: u32 = 8;

/// Why an owner or a shrinker was not registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegisterError {
    /// The number has an owner already.
    #[error("the number has an owner already")]
    Busy,
    /// The number is nobody's.
    #[error("0 is no owner")]
    Nobody,
    /// There is no room for more shrinkers.
    #[error("no room for more shrinkers")]
    Full,
}

/// Reclaims frames of the owners that are registered with it, and objects of the shrinkers.
///
/// For requests that found no memory it is a [`Reclaim`](dirigible_frames::Reclaim); [`Kswapd`](crate::Kswapd) uses it in
/// the background. Several CPUs may reclaim at once. Its locks are leaves: each is held for the copy of one reference.
pub struct Reclaimer<'a, P> {
    pub(crate) generations: &'a Generations<'a>,
    pub(crate) platform: &'a P,
    pub(crate) config: ReclaimConfig,
    owners: [Mutex<Option<&'a dyn Evictable>>; OWNERS],
    pub(crate) slabs: Slabs<'a>,
    pub(crate) hand: Hand,
    pub(crate) callers: Callers,
    /// Background reclaim should begin.
    pub(crate) wanted: AtomicBool,
    /// Requests that reclaimed something.
    pub(crate) successes: AtomicU64,
    /// When owners may be asked again what was used.
    pub(crate) harvest_at: AtomicU64,
}

impl<'a, P: Platform> Reclaimer<'a, P> {
    /// A reclaimer of frames that are in `generations`, with no owner yet.
    pub fn new(generations: &'a Generations<'a>, platform: &'a P, config: ReclaimConfig) -> Self {
        Self {
            generations,
            platform,
            config,
            owners: core::array::from_fn(|_| Mutex::new(None)),
            slabs: Slabs::new(),
            hand: Hand::default(),
            callers: Callers::new(),
            wanted: AtomicBool::new(false),
            successes: AtomicU64::new(0),
            harvest_at: AtomicU64::new(0),
        }
    }

    /// Makes `owner` the owner of all frames that carry `id`. Frames of a number that has none are kept.
    ///
    /// # Errors
    ///
    /// The number has an owner, or is nobody's.
    pub fn register(&self, id: OwnerId, owner: &'a dyn Evictable) -> Result<(), RegisterError> {
        if id == OwnerId::NONE {
            return Err(RegisterError::Nobody);
        }
        let mut place = self.owners[id.get() as usize].lock();
        if place.is_some() {
            return Err(RegisterError::Busy);
        }
        *place = Some(owner);
        Ok(())
    }

    /// Takes out the owner with the number `id`, whose frames have left all generations. A pass that has begun may still
    /// ask it.
    pub fn unregister(&self, id: OwnerId) {
        *self.owners[id.get() as usize].lock() = None;
    }

    /// Adds a cache of objects, which is put under pressure as files are.
    ///
    /// # Errors
    ///
    /// There is no room.
    pub fn add_shrinker(&self, shrinker: &'a dyn Shrinker) -> Result<(), RegisterError> {
        self.slabs.add(shrinker)
    }

    /// The generations.
    pub fn generations(&self) -> &'a Generations<'a> {
        self.generations
    }

    /// The machine below.
    pub fn platform(&self) -> &'a P {
        self.platform
    }

    /// Gives up all objects that nobody uses, at the operator's wish (drop caches). Gives how many frames became free.
    /// An object that was used since the last look is given up at the second one. Ends after eight turns at most: others
    /// may make objects as fast as they are given up.
    pub fn shrink_all(&self) -> u64 {
        let mut frames = 0;
        let mut vain = 0;
        for _ in 0..SHRINK_TURNS {
            let (freed, more) = self.shrink_everything();
            frames += more;
            vain = if freed == 0 { vain + 1 } else { 0 };
            if vain == 2 {
                break;
            }
        }
        frames
    }

    pub(crate) fn owner(&self, id: OwnerId) -> Option<&'a dyn Evictable> {
        *self.owners[id.get() as usize].lock()
    }

    pub(crate) fn each_owner(&self, mut each: impl FnMut(&'a dyn Evictable)) {
        for place in &self.owners {
            let owner = *place.lock();
            if let Some(owner) = owner {
                each(owner);
            }
        }
    }

    /// Frames that are dirty, and frames that are being written.
    pub(crate) fn unwritten(&self) -> (u64, u64) {
        let mut sums = (0, 0);
        self.each_owner(|owner| {
            let (dirty, writeback) = owner.dirty_and_writeback();
            sums = (sums.0 + dirty, sums.1 + writeback);
        });
        sums
    }

    /// How many frames a pass at `priority` looks at. The last pass of a request looks at each generation once, however
    /// many frames it meets again.
    pub(crate) fn share(&self, priority: u8) -> u64 {
        let size = self.generations.size();
        match priority {
            0 => 4 * size,
            _ => (size >> priority).max(self.config.cluster.min(size)),
        }
    }

    /// Looks at up to `budget` frames, until enough is free.
    pub(crate) fn look(&self, effort: Effort, budget: u64, pass: &mut Pass) {
        let end = pass.scanned + budget;
        // What was given to swap becomes free without another look.
        let wants = |pass: &Pass| pass.freed.saturating_add(pass.swapped) < effort.goal;
        while pass.scanned < end && wants(pass) && !self.has_room(effort.order) {
            let cluster = self.config.cluster.max(1).min(end - pass.scanned);
            if self.walk(effort, cluster, pass) == 0 {
                break;
            }
        }
    }

    /// Lets the flushers begin if dirty frames were met.
    pub(crate) fn write_what_was_met(&self, pass: &Pass) {
        if pass.immediate + pass.unwritten > 0 {
            self.each_owner(|owner| owner.wake_flusher());
        }
    }

    /// Background reclaim should begin.
    pub(crate) fn want_background(&self) {
        // Relaxed, as where it is read: a hint. Mostly it is set already.
        if !self.wanted.load(Ordering::Relaxed) {
            self.wanted.store(true, Ordering::Relaxed);
        }
    }

    /// One pass for `who`: frames, and objects in proportion to the frames that were looked at. The second number is how
    /// many frames became free with the objects.
    pub(crate) fn pass(&self, effort: Effort) -> (Pass, u64) {
        let mut pass = Pass::default();
        let size = self.generations.size();
        self.look(effort, self.share(effort.priority), &mut pass);
        self.write_what_was_met(&pass);
        let frames = self.shrink_slabs(effort.who, effort.priority, pass.scanned, size);
        (pass, frames)
    }

    /// Whether `who` is let into reclaim at this moment; see [`Callers`].
    pub(crate) fn enter(&self) -> Result<Inside<'_>, TurnedAway> {
        let cpu = self.platform.cpu();
        self.callers.enter(self.platform.caller(cpu))
    }
}
