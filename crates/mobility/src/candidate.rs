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
        // Half of them by cost, the others by how few targets they need: a balloon's full blocks are cheap to move, and still
        // nothing can be done with them while targets are short.
        let (cheap, few) = found[..self.config.look].split_at_mut(self.config.look.div_ceil(2));
        let cheap = self.frames.cheapest_blocks(zone, cheap);
        let few = self.frames.emptiest_blocks(zone, few);
        found.copy_within(
            self.config.look.div_ceil(2)..self.config.look.div_ceil(2) + few,
            cheap,
        );
        let mut count = cheap;
        for index in cheap..cheap + few {
            if !found[..count].contains(&found[index]) {
                found[count] = found[index];
                count += 1;
            }
        }
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

    /// Whether all used frames of a block would find a place elsewhere: without, it is not begun.
    pub(crate) fn has_targets(&self, block: BlockId) -> bool {
        self.frames.has_targets(block, self.used(block) as usize)
    }

    /// What the next attempt would find.
    pub(crate) fn prospect(&self, refusals: &mut Refusals) -> Prospect {
        let (candidates, _) = self.look(None, refusals);
        Prospect {
            free: self.frames.free_frames(),
            targets: candidates.iter().any(|&block| self.has_targets(block)),
            used: candidates
                .iter()
                .map(|&block| self.used(block))
                .min()
                .unwrap_or(u32::MAX),
        }
    }
}
