//! What compaction keeps for each zone, behind one lock a zone.
//!
//! The lock is held while a block is chosen, isolated and given its targets, so that two CPUs do not take each
//! other's. It is released before anything moves: nobody waits for the host with it.

use arrayvec::ArrayVec;
use dirigible_frames::sync::{Mutex, MutexGuard};
use dirigible_frames::{BlockId, MAX_ZONES, Platform, ZoneId};

use crate::Mobility;
use crate::defer::Defer;

/// What is kept for one zone.
pub(crate) struct ZoneState {
    pub(crate) direct: Defer,
    pub(crate) background: Defer,
    /// Where the next look at blocks with a momentary refusal goes on …
    pub(crate) momentary: BlockId,
    /// … and at those with a lasting one.
    pub(crate) lasting: BlockId,
    /// Where the next retry of a block looks whose refusal is over.
    pub(crate) retry: BlockId,
    /// Where the next look at what blocks cost goes on.
    pub(crate) priced: BlockId,
}

impl ZoneState {
    pub(crate) const fn new() -> Self {
        Self {
            direct: Defer::new(),
            background: Defer::new(),
            momentary: BlockId::new(0),
            lasting: BlockId::new(0),
            retry: BlockId::new(0),
            priced: BlockId::new(0),
        }
    }
}

pub(crate) type ZoneGuard<'z> = MutexGuard<'z, ZoneState>;

pub(crate) fn zone_states() -> [Mutex<ZoneState>; MAX_ZONES] {
    core::array::from_fn(|_| Mutex::new(ZoneState::new()))
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// The state of a zone, after a bounded wait.
    pub(crate) fn zone_state(&self, zone: ZoneId) -> Option<ZoneGuard<'_>> {
        self.patiently(|| self.zones[zone.index()].try_lock())
    }

    /// The same without a wait.
    pub(crate) fn try_zone_state(&self, zone: ZoneId) -> Option<ZoneGuard<'_>> {
        self.zones[zone.index()].try_lock()
    }

    /// The states of all zones that hold one of `blocks`. They are taken in ascending order, here and nowhere else more
    /// than one.
    pub(crate) fn zones_of(
        &self,
        blocks: &[BlockId],
    ) -> Option<ArrayVec<ZoneGuard<'_>, MAX_ZONES>> {
        let known = |block: &&BlockId| self.frames.has_block(**block);
        let mut guards = ArrayVec::new();
        for zone in self.frames.zones() {
            let mut known = blocks.iter().filter(known);
            if known.any(|&block| self.frames.zone_of_block(block) == zone) {
                guards.push(self.zone_state(zone)?);
            }
        }
        Some(guards)
    }
}
