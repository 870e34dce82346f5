//! Which blocks compaction tries, cheapest first.

use arrayvec::ArrayVec;
use dirigible_frames::{BlockId, Cost, CpuId, Event, FRAMES_PER_BLOCK, Platform, ZoneId};

use crate::Mobility;
use crate::config::MAX_LOOK;
use crate::defer::Prospect;
use crate::refusal::Refusals;

/// Candidates of one look at the index.
pub(crate) type Candidates = ArrayVec<BlockId, MAX_LOOK>;

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// The cheapest blocks of a zone, or of all, that have no remembered refusal. Counts those that have.
    pub(crate) fn candidates(
        &self,
        cpu: CpuId,
        zone: Option<ZoneId>,
        refusals: &mut Refusals,
    ) -> Candidates {
        let (candidates, remembered) = self.look(zone, refusals);
        if remembered > 0 {
            self.frames
                .events()
                .add(cpu, Event::CompactRefusalRemembered, remembered);
        }
        candidates
    }

    fn look(&self, zone: Option<ZoneId>, refusals: &mut Refusals) -> (Candidates, u64) {
        let mut found = [BlockId::new(0); MAX_LOOK];
        let count = self
            .frames
            .cheapest_blocks(zone, &mut found[..self.config.look]);
        let now = self.platform.now();
        let mut candidates = Candidates::new();
        let mut remembered = 0;
        for &block in &found[..count] {
            self.platform.charge(Cost::ExamineBlock);
            if refusals.holds(block, self.frames.block_changes(block), now) {
                remembered += 1;
            } else {
                candidates.push(block);
            }
        }
        (candidates, remembered)
    }

    /// Frames of a block that would have to move.
    pub(crate) fn used(&self, block: BlockId) -> u32 {
        FRAMES_PER_BLOCK as u32 - u32::from(self.frames.ledger(block).free())
    }

    /// What the next attempt would find.
    pub(crate) fn prospect(&self, refusals: &mut Refusals) -> Prospect {
        let (candidates, _) = self.look(None, refusals);
        Prospect {
            free: self.frames.free_frames(),
            used: candidates
                .iter()
                .map(|&block| self.used(block))
                .min()
                .unwrap_or(u32::MAX),
        }
    }
}
