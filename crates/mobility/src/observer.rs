//! Watching which blocks compaction empties, and what the best choice would have been.

use dirigible_frames::{
    BlockId, BlockState, FrameClass, FrameState, Migratetype, OwnerId, Platform, Refusal, ZoneId,
};

use crate::Mobility;
use crate::evacuate::Attempt;
use crate::plan::{Fate, Plan, Purpose};
use crate::registry::Use;

/// Hears of the blocks that are emptied for a huge page: for a request that takes one, or for the reserve of whole blocks.
/// It compares the blocks that compaction chose with those that it might have chosen.
///
/// Called with the zone's compaction locked: it may look ([`Mobility::moves`]), and neither allocates frames nor
/// compacts.
pub trait EmptyingObserver: Sync {
    /// Blocks of `zone` have been chosen and are about to be isolated. Writes into `least` how many frames have to be
    /// moved in the best block, in the second best, and so on. No more than `most_dropped` frames of a block would be
    /// dropped.
    fn chosen(&self, zone: ZoneId, most_dropped: u32, least: &mut [u16]);

    /// One of them was emptied: `moved` of its frames were moved, where `least` would have had to be.
    fn emptied(&self, moved: u16, least: u16);
}

impl<'a, P: Platform + ?Sized> Mobility<'a, P> {
    /// Lets `observer` hear of blocks that are emptied for huge pages from now on, in place of the one before.
    pub fn observe(&self, observer: Option<&'a dyn EmptyingObserver>) {
        *self.observer.lock() = observer;
    }

    fn observer(&self) -> Option<&'a dyn EmptyingObserver> {
        *self.observer.lock()
    }

    /// Attempts at blocks of the zone of `first` are about to begin.
    #[inline(never)]
    pub(crate) fn tell_chosen(&self, first: BlockId, attempts: &mut [Attempt], plan: &Plan) {
        let wanted = matches!(plan.purpose, Purpose::HugePage | Purpose::Reserve);
        let Some(observer) = self.observer().filter(|_| wanted) else {
            return;
        };
        let zone = self.frames.zone_of_block(first);
        let most_dropped = self.may_drop(zone, plan.purpose) as u32;
        let mut least = [0; crate::config::MAX_BATCH_BLOCKS];
        let least = &mut least[..attempts.len()];
        observer.chosen(zone, most_dropped, least);
        for (attempt, &mut least) in attempts.iter_mut().zip(least) {
            attempt.least = Some(least);
        }
    }

    /// These attempts are over.
    #[inline(never)]
    pub(crate) fn tell_emptied(&self, attempts: &[Attempt]) {
        let Some(observer) = self.observer() else {
            return;
        };
        // The best blocks count, as many as were emptied.
        let mut best = attempts.iter().filter_map(|attempt| attempt.least);
        for emptied in attempts.iter().filter(|attempt| attempt.is_alive()) {
            if let Some(least) = best.next() {
                observer.emptied(emptied.moves, least);
            }
        }
    }

    /// How many frames of `block` have to be moved to empty it: those that are used, but up to `most_dropped` that their
    /// owners would rather drop. `None`: it cannot be emptied, or not now, as far as can be seen without touching it.
    ///
    /// For observers; looks at each used frame.
    pub fn moves(&self, block: BlockId, most_dropped: u32) -> Option<u32> {
        if !self.could_be_emptied(block) {
            return None;
        }
        let cold = match most_dropped {
            0 => 0,
            most => self.cold_frames(block)?.min(most),
        };
        Some(u32::from(self.frames.ledger(block).used()).saturating_sub(cold))
    }

    /// How many frames of `block` their owners would rather drop, or write first and then drop. `None`: one cannot be
    /// moved now, as far as can be seen without touching it.
    pub(crate) fn cold_frames(&self, block: BlockId) -> Option<u32> {
        let mut owner: (OwnerId, Option<Use<'_, 'a>>) = (OwnerId::NONE, None);
        let mut cold = 0;
        for frame in self.frames.used_frames(block) {
            if self.obvious_refusal(frame).is_some() {
                return None;
            }
            let Some(info) = self.frames.frame(frame) else {
                continue;
            };
            if info.class != FrameClass::Movable || info.state != FrameState::Listed {
                continue;
            }
            if owner.0 != info.owner {
                owner = (info.owner, self.registry.enter(info.owner));
            }
            let fate = owner.1.as_ref().map(|owner| owner.plan(frame));
            cold += u32::from(fate.is_some_and(|fate| fate != Fate::Move));
        }
        Some(cold)
    }

    /// Whether `block` is one that compaction may empty: open, of movable type, in use, with nothing that cannot move,
    /// and not left alone because of an earlier refusal.
    pub fn could_be_emptied(&self, block: BlockId) -> bool {
        let ledger = self.frames.ledger(block);
        ledger.state() == BlockState::Open
            && ledger.migratetype() == Migratetype::Movable
            && ledger.unmovable() == 0
            && ledger.used() > 0
            && matches!(ledger.refusal(), Refusal::None | Refusal::Expired)
    }
}
