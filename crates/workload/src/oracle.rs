//! An oracle beside compaction: at each choice of a block, which one would have been the best.

use alloc::{collections::BinaryHeap, vec::Vec};
use core::{
    cmp::Reverse,
    sync::atomic::{AtomicU64, Ordering},
};

use dirigible_frames::{BlockId, Platform, ZoneId};
use dirigible_mobility::{EmptyingObserver, Mobility};
use dirigible_reclaim::Tally;
use spin::Mutex;

use crate::report::OracleReport;

/// Compares the frames that compaction moves to empty blocks with what the best choice would have moved.
///
/// At each choice it looks at all blocks of the zone, as they are at that moment, and does nothing: it takes the one with
/// the fewest frames that have to be moved, a balloon's among them. Not counted are cold pages as far as compaction drops
/// such, or writes and then drops them. It counts choices that led to an empty block for a huge page; several blocks that
/// are emptied together are compared with as many best ones.
pub struct Oracle<'a, P: Platform> {
    mobility: &'a Mobility<'a, P>,
    // Relaxed, all of them: sums for the report.
    blocks: AtomicU64,
    moved: AtomicU64,
    least: AtomicU64,
    /// Room for a choice: blocks by the fewest frames that they can come to. Whoever compacts waits for another zone's.
    room: Mutex<Vec<Reverse<(u32, BlockId)>>>,
}

impl<'a, P: Platform> Oracle<'a, P> {
    /// An oracle beside `mobility`, which has seen nothing: hand it to [`Mobility::observe`].
    pub fn new(mobility: &'a Mobility<'a, P>) -> Self {
        Self {
            mobility,
            blocks: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            least: AtomicU64::new(0),
            room: Mutex::new(Vec::with_capacity(mobility.frames().block_capacity())),
        }
    }

    /// All figures so far.
    pub fn report(&self) -> OracleReport {
        let of = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        OracleReport::new(of(&self.blocks), of(&self.moved), of(&self.least))
    }

    /// No fewer frames of `block` have to be moved, by its ledger and its tally.
    fn at_least(&self, block: BlockId, most_dropped: u32) -> u32 {
        let frames = self.mobility.frames();
        let used = u32::from(frames.ledger(block).used());
        if most_dropped == 0 {
            return used;
        }
        let tally = Tally::from_bits(frames.block_tally(block));
        let clean = tally.all().saturating_sub(tally.dirty());
        let dropped = tally.old(frames.tally_epoch()).min(clean);
        used.saturating_sub(dropped.min(most_dropped))
    }
}

impl<P: Platform> EmptyingObserver for Oracle<'_, P> {
    fn chosen(&self, zone: ZoneId, most_dropped: u32, least: &mut [u16]) {
        let (mobility, frames) = (self.mobility, self.mobility.frames());
        let mut room = self.room.lock();
        let mut blocks = core::mem::take(&mut *room);
        blocks.clear();
        let candidates = frames
            .blocks()
            .filter(|&block| frames.zone_of_block(block) == zone)
            .filter(|&block| mobility.could_be_emptied(block));
        blocks.extend(candidates.map(|block| Reverse((self.at_least(block, most_dropped), block))));
        let mut blocks = BinaryHeap::from(blocks);
        least.fill(u16::MAX);
        // From the most promising one on, until no other can be better.
        while let Some(Reverse((bound, block))) = blocks.pop()
            && let Some(worst) = least.last_mut()
            && bound < u32::from(*worst)
        {
            let moves = mobility.moves(block, most_dropped);
            if let Some(moves) = moves.filter(|&moves| moves < u32::from(*worst)) {
                *worst = moves as u16;
                least.sort_unstable();
            }
        }
        *room = blocks.into_vec();
    }

    fn emptied(&self, moved: u16, least: u16) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.moved.fetch_add(u64::from(moved), Ordering::Relaxed);
        // The block that was emptied was a candidate: there is none only where another CPU changed it meanwhile.
        let least = if least == u16::MAX { moved } else { least };
        self.least.fetch_add(u64::from(least), Ordering::Relaxed);
    }
}
