//! Windows: stretches of blocks that could become a contiguous range, and which of them is the cheapest.

use dirigible_frames::{
    BlockId, BlockState, FRAMES_PER_BLOCK, Order, Pfn, Platform, Refusal, ZoneId,
};

use crate::Mobility;
use crate::config::MAX_RANGE_USED;

/// What a block costs beside its frames if it is not wholly free, so that a free stretch is cheaper than any other.
const BEGUN: i64 = 1;
/// The same for a block on probation: windows without one come first, whatever they cost.
const EXPIRED: i64 = 1 << 32;
/// The same for a block that was refused and is to be left alone: the last resort.
const REFUSED: i64 = 1 << 40;

/// A stretch of blocks of one zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Window {
    pub(crate) first: BlockId,
    /// How many, at least one.
    pub(crate) blocks: usize,
}

impl Window {
    /// Its blocks, ascending.
    pub(crate) fn blocks(self) -> impl Iterator<Item = BlockId> {
        self.part(0, self.blocks)
    }

    /// Those of its blocks from the one at `start` on, and before the one at `end`.
    pub(crate) fn part(self, start: usize, end: usize) -> impl Iterator<Item = BlockId> {
        let first = self.first.index();
        (first + start..first + end).map(|index| BlockId::new(index as u32))
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// The blocks that hold `frames` frames from `first` on, if all of them are memory of one zone, with nothing
    /// reserved and no hole in them.
    pub(crate) fn window_at(&self, first: Pfn, frames: usize) -> Option<Window> {
        let last = first.get().checked_add(frames as u64 - 1)?;
        let (begin, end) = (
            self.frames.block_of(first)?,
            self.frames.block_of(Pfn::new(last))?,
        );
        let window = Window {
            first: begin,
            blocks: (end.index() + 1).checked_sub(begin.index())?,
        };
        // Blocks that follow each other in the tables may have a hole between them, or stand the other way round in
        // memory.
        let zone = self.frames.zone_of_block(begin);
        let mut place = self.frames.block_start(begin).get();
        let usable = |block| {
            let here = self.is_memory(zone, block) && self.frames.block_start(block).get() == place;
            place = place.wrapping_add(FRAMES_PER_BLOCK as u64);
            here
        };
        window.blocks().all(usable).then_some(window)
    }

    /// The cheapest window of a zone that `blocks` blocks fit into, beginning at a multiple of `align`, without the
    /// blocks in `avoid`, which are sorted; among equals the lowest.
    ///
    /// A walk over the ledgers, each looked at twice: what a window really costs shows when it is isolated.
    pub(crate) fn cheapest_window(
        &self,
        zone: ZoneId,
        blocks: usize,
        align: Order,
        avoid: &[BlockId],
    ) -> Option<Window> {
        self.stretch(zone, blocks, align, &|block| {
            let cost = self.window_cost(block)?;
            avoid.binary_search(&block).is_err().then_some(cost)
        })
    }

    /// Whether a zone has a place for such a window at all, whoever uses it now.
    pub(crate) fn has_place(&self, zone: ZoneId, blocks: usize, align: Order) -> bool {
        let free = |block| self.is_memory(zone, block).then_some(0);
        self.stretch(zone, blocks, align, &free).is_some()
    }

    /// Whether a block is memory of the zone from end to end.
    fn is_memory(&self, zone: ZoneId, block: BlockId) -> bool {
        self.frames.zone_of_block(block) == zone && self.frames.reserved_in(block) == 0
    }

    /// What a block adds to the cost of a window; `None` if it cannot be emptied now.
    fn window_cost(&self, block: BlockId) -> Option<i64> {
        let ledger = self.frames.ledger(block);
        if ledger.state() == BlockState::Spare {
            // Wholly free; its CPU gives it back when it is isolated.
            return Some(0);
        }
        if ledger.state() != BlockState::Open || ledger.unmovable() > 0 {
            return None;
        }
        if usize::from(ledger.free()) == FRAMES_PER_BLOCK {
            return Some(0);
        }
        let beside = match ledger.refusal() {
            Refusal::None => BEGUN,
            Refusal::Expired => EXPIRED,
            Refusal::Momentary | Refusal::Lasting => REFUSED,
        };
        Some(self.frames.evacuation_cost(block) as i64 + beside)
    }

    fn stretch(
        &self,
        zone: ZoneId,
        blocks: usize,
        align: Order,
        cost: &dyn Fn(BlockId) -> Option<i64>,
    ) -> Option<Window> {
        // Those of the last blocks looked at: how many there are without a gap, and what they cost. A block's cost
        // may be another when the window leaves it behind; the sums are then a little off until the next gap, which
        // only concerns the choice.
        let (mut length, mut sum, mut used) = (0, 0, 0);
        let mut best: Option<(i64, Window)> = None;
        // Where the next block begins, if there is no hole before it.
        let mut next = None;
        for block in self.frames.blocks() {
            let here = self.frames.zone_of_block(block) == zone;
            let start = self.frames.block_start(block);
            if next != Some(start) {
                (length, sum, used) = (0, 0, 0);
            }
            next = start
                .get()
                .checked_add(FRAMES_PER_BLOCK as u64)
                .map(Pfn::new);
            let Some(added) = here.then(|| cost(block)).flatten() else {
                (length, sum, used) = (0, 0, 0);
                continue;
            };
            length += 1;
            sum += added;
            used += i64::from(added > 0);
            if length > blocks {
                let left = BlockId::new((block.index() - blocks) as u32);
                let dropped = cost(left).unwrap_or(0);
                length = blocks;
                sum -= dropped;
                used -= i64::from(dropped > 0);
            }
            if length < blocks || used > MAX_RANGE_USED as i64 {
                continue;
            }
            let first = BlockId::new((block.index() + 1 - blocks) as u32);
            if self.frames.block_start(first).is_aligned(align)
                && best.is_none_or(|(least, _)| sum < least)
            {
                best = Some((sum, Window { first, blocks }));
                if sum <= 0 {
                    // Nothing is cheaper, and nothing lower comes.
                    break;
                }
            }
        }
        best.map(|(_, window)| window)
    }
}
