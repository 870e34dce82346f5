//! Which blocks compaction tries, cheapest first.

use arrayvec::ArrayVec;
use dirigible_frames::{BlockId, Cost, FRAMES_PER_BLOCK, Platform, Refusal, Watermark, ZoneId};

use crate::Mobility;
use crate::config::{MAX_BATCH_BLOCKS, MAX_LOOK};
use crate::defer::Prospect;

/// Candidates of one look at the index.
pub(crate) type Candidates = ArrayVec<BlockId, MAX_LOOK>;

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// The cheapest blocks of a zone.
    pub(crate) fn cheapest(&self, zone: ZoneId) -> Candidates {
        self.candidates(&|out| self.frames.cheapest_blocks(Some(zone), out))
    }

    /// What the cheapest candidate of a zone costs, in copied frames; the most there is where it has none.
    #[inline(never)]
    pub(crate) fn cheapest_cost(&self, zone: ZoneId) -> usize {
        let mut cheapest = [BlockId::new(0)];
        match self.frames.cheapest_blocks(Some(zone), &mut cheapest) {
            0 => usize::MAX,
            _ => self.frames.evacuation_cost(cheapest[0]),
        }
    }

    /// The cheapest blocks of a zone, and then those that need the fewest targets: a balloon's full blocks are cheap to
    /// move, and still a batch takes on few of them.
    pub(crate) fn cheapest_and_emptiest(&self, zone: ZoneId) -> Candidates {
        self.candidates(&|out| {
            let (cheap, few) = out.split_at_mut(out.len().div_ceil(2));
            let found = self.frames.cheapest_blocks(Some(zone), cheap);
            let more = self.frames.emptiest_blocks(Some(zone), few);
            let begin = cheap.len();
            let mut count = found;
            for index in begin..begin + more {
                if !out[..found].contains(&out[index]) {
                    out[count] = out[index];
                    count += 1;
                }
            }
            count
        })
    }

    #[inline(never)]
    fn candidates(&self, look: &dyn Fn(&mut [BlockId]) -> usize) -> Candidates {
        let mut found = [BlockId::new(0); MAX_LOOK];
        let count = look(&mut found[..self.config.look]);
        found[..count].iter().copied().collect()
    }

    /// Looks at a candidate: how many frames would have to move.
    pub(crate) fn examine(&self, block: BlockId) -> usize {
        self.platform.charge(Cost::ExamineBlock);
        self.used(block) as usize
    }

    /// Frames of a block that would have to move.
    fn used(&self, block: BlockId) -> u32 {
        u32::from(self.frames.ledger(block).used())
    }

    /// How many blocks of a zone could be emptied together, at most `most`: for each there must be 512 targets,
    /// whatever is in the blocks, and the 512 frames that are set aside meanwhile must leave `watermark`. `drops` of
    /// them can be spared.
    #[inline(never)]
    pub(crate) fn blocks_with_room(
        &self,
        zone: ZoneId,
        watermark: Watermark,
        most: usize,
        drops: u64,
    ) -> usize {
        let above = self.zone_spare(zone, watermark).saturating_add(drops);
        let by_mark = usize::try_from(above).unwrap_or(usize::MAX) / FRAMES_PER_BLOCK;
        let most = most.min(MAX_BATCH_BLOCKS).min(by_mark);
        let targets = self.frames.target_frames(most * FRAMES_PER_BLOCK);
        most.min((targets + drops as usize) / FRAMES_PER_BLOCK)
    }

    /// What the next attempt in a zone would find that leaves `watermark`.
    pub(crate) fn prospect(&self, zone: ZoneId, watermark: Watermark) -> Prospect {
        let mut cheapest = [BlockId::new(0)];
        let block = match self.frames.cheapest_blocks(Some(zone), &mut cheapest) {
            0 => self
                .frames
                .refused_blocks(zone, Refusal::Expired, BlockId::new(0))
                .next(),
            _ => Some(cheapest[0]),
        };
        Prospect {
            free: self.frames.zone_free_frames(zone),
            targets: self.blocks_with_room(zone, watermark, 1, 0) > 0,
            used: block.map_or(u32::MAX, |block| self.used(block)),
        }
    }
}
