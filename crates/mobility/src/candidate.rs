//! Which blocks compaction tries, cheapest first.

use arrayvec::ArrayVec;
use dirigible_frames::{BlockId, Cost, FRAMES_PER_BLOCK, Platform, Refusal, Watermark, ZoneId};

use crate::Mobility;
use crate::config::{MAX_BATCH_BLOCKS, MAX_LOOK};
use crate::defer::Prospect;

/// How many candidates are looked at frame by frame before one is chosen, at most.
const CLOSE_LOOKS: usize = 8;

/// Candidates of one look at the index.
pub(crate) type Candidates = ArrayVec<Candidate, MAX_LOOK>;

/// A block that may be emptied.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    block: BlockId,
    /// Whether its frames were looked at.
    looked_at: bool,
    /// What emptying it costs if all that is cold is dropped, and what that saves: by its books, or by its frames.
    cost: u16,
    saved: u16,
}

impl Candidate {
    const fn unpriced(block: BlockId) -> Self {
        Self {
            block,
            looked_at: false,
            cost: 0,
            saved: 0,
        }
    }

    pub(crate) const fn block(&self) -> BlockId {
        self.block
    }

    /// It costs `cost` where `all` is what it costs without drops. What is above 65,535 counts as that.
    fn set(&mut self, all: usize, cost: usize) {
        self.cost = cost.min(u16::MAX.into()) as u16;
        self.saved = all.saturating_sub(cost).min(u16::MAX.into()) as u16;
    }

    /// How many of its frames are dropped then, roughly.
    pub(crate) fn saved(&self, owed: u64) -> u64 {
        u64::from(self.saved).min(owed)
    }

    /// What emptying it costs if no more than `owed` of its frames are dropped.
    pub(crate) fn cost(&self, owed: u64) -> u64 {
        u64::from(self.cost) + u64::from(self.saved).saturating_sub(owed)
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Blocks of a zone of which one should be emptied: the cheapest. Where compaction drops cold frames these are cheap by
    /// what could be dropped, whether that is owed or not: so those that are cheap in any case come along.
    pub(crate) fn cheapest(&self, zone: ZoneId) -> Candidates {
        match self.config.drops_cold {
            true => self.cheapest_and_emptiest(zone),
            false => self.candidates(&|out| self.frames.cheapest_blocks(Some(zone), out)),
        }
    }

    /// Takes the best candidate out, the cheapest if no more than `owed` frames are dropped. Without drops they are in
    /// order.
    ///
    /// With drops a block's books are an estimate, and the least of many estimates is most likely one of those that are too
    /// low. So the frames of the best few are looked at, until one that was is the best.
    #[inline(never)]
    pub(crate) fn take_best(&self, candidates: &mut Candidates, owed: u64) -> Option<Candidate> {
        if !self.config.drops_cold {
            let first = candidates.pop_at(0)?;
            return Some(self.candidate(first.block));
        }
        let mut looks = 0;
        loop {
            let costs = candidates.iter().map(|candidate| candidate.cost(owed));
            let (at, _) = costs.enumerate().min_by_key(|&(_, cost)| cost)?;
            if candidates[at].looked_at || looks == CLOSE_LOOKS {
                return candidates.pop_at(at);
            }
            looks += 1;
            self.look_closely(&mut candidates[at]);
        }
    }

    fn look_closely(&self, candidate: &mut Candidate) {
        candidate.looked_at = true;
        let block = candidate.block;
        self.platform.charge(Cost::Scan(self.used(block)));
        // One that cannot be emptied stays what it was: the attempt refuses it for a time.
        if let Some(cold) = self.cold_frames(block) {
            let all = self.frames.cost_without_tally(block);
            candidate.set(all, all.saturating_sub(cold as usize));
        }
    }

    /// A candidate by its books: what emptying `block` costs if all that is cold is dropped, and what that saves.
    pub(crate) fn candidate(&self, block: BlockId) -> Candidate {
        let mut candidate = Candidate::unpriced(block);
        let all = self.frames.cost_without_tally(block);
        candidate.set(all, self.frames.evacuation_cost(block));
        candidate
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
    /// move, and still a batch takes on few of them. Where cold frames are dropped, also those with the fewest frames beside
    /// a balloon's.
    pub(crate) fn cheapest_and_emptiest(&self, zone: ZoneId) -> Candidates {
        self.candidates(&|out| {
            let (cheap, few) = out.split_at_mut(out.len().div_ceil(2));
            let found = self.frames.cheapest_blocks(Some(zone), cheap);
            let few_at = cheap.len();
            let (few, beside) = match self.config.drops_cold {
                true => few.split_at_mut(few.len().div_ceil(2)),
                false => few.split_at_mut(few.len()),
            };
            let more = self.frames.emptiest_blocks(Some(zone), few);
            let beside_at = few_at + few.len();
            let others = match beside {
                [] => 0,
                _ => self.frames.healing_blocks(beside),
            };
            let mut count = found;
            for index in (few_at..few_at + more).chain(beside_at..beside_at + others) {
                let block = out[index];
                let fits = index < beside_at || self.is_fresh(block, zone);
                if fits && !out[..count].contains(&block) {
                    out[count] = block;
                    count += 1;
                }
            }
            count
        })
    }

    /// Whether a block is a candidate in `zone`, and no owner has refused it.
    fn is_fresh(&self, block: BlockId, zone: ZoneId) -> bool {
        self.frames.zone_of_block(block) == zone
            && self.could_be_emptied(block)
            && self.frames.ledger(block).refusal() == Refusal::None
    }

    #[inline(never)]
    fn candidates(&self, look: &dyn Fn(&mut [BlockId]) -> usize) -> Candidates {
        let mut found = [BlockId::new(0); MAX_LOOK];
        let count = look(&mut found[..self.config.look]);
        found[..count]
            .iter()
            .map(|&block| match self.config.drops_cold {
                true => self.candidate(block),
                // They are in order; what the first costs is asked when it is taken.
                false => Candidate::unpriced(block),
            })
            .collect()
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
