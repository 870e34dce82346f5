//! Frames of one zone by the ladder: single ones, and runs. The block that a CPU refills from.

use crate::{
    BlockId, FrameAllocator, Migratetype, Order,
    allocator::info_word::IN_USE,
    change::{Source, Taken, Want},
    cpu::CpuGuard,
    ladder::{Ladder, ORDINARY, SPREAD},
    position::FrameIndex,
    sync::Ordering,
};

impl Ladder<'_, '_> {
    /// Up to `max` single frames out of one block, from the block of the last refill if possible.
    pub fn base(&self, max: usize, taken: &mut Taken) -> bool {
        if self.take_from_refill_block(max, taken) {
            return true;
        }
        let mine = self.mine();
        let spread = self.guard.is_some() && mine == Migratetype::Movable && self.is_roomy();
        let steps = if spread { SPREAD } else { ORDINARY };
        let mut ours = false;
        let found = self.climb(steps, &mut |offer| {
            ours = offer.becomes(mine);
            let want = offer.want(&self.request, max);
            self.allocator
                .take_from(offer.block, self.guard, want, taken)
        });
        // Not a block of another type: the next refill looks among its own blocks first.
        if found
            && ours
            && let Some(guard) = self.guard
        {
            self.allocator.set_refill_block(guard, mine, taken.block);
        }
        found
    }

    /// From the block that the last refill was from.
    fn take_from_refill_block(&self, max: usize, taken: &mut Taken) -> bool {
        let (Some(guard), mine) = (self.guard, self.mine()) else {
            return false;
        };
        let Some(block) = guard.cache(mine).refill_block() else {
            return false;
        };
        let want = Want {
            class: self.request.class,
            max,
            source: Source::Partly(mine),
            retype: None,
        };
        if self.allocator.zone_of_block(block) == self.zone
            && self.allocator.take_from(block, Some(guard), want, taken)
        {
            return true;
        }
        self.allocator.end_refill_block(guard, mine);
        false
    }

    /// Whether whole blocks are so many that claiming one more does not matter.
    fn is_roomy(&self) -> bool {
        let zone = self.allocator.zone(self.zone);
        // Relaxed: a hint.
        let whole = zone.share.whole.load(Ordering::Relaxed) as i64;
        whole - i64::from(zone.reserve) > 16 * self.allocator.cpus.len() as i64
    }

    /// Frames in a row inside one block, the first a multiple of 2^`align` frames; the first.
    pub fn run(mut self, frames: usize, align: Order) -> Option<FrameIndex> {
        (self.frames, self.align) = (frames, align);
        let mut found = None;
        self.climb(ORDINARY, &mut |offer| {
            let want = offer.want(&self.request, frames);
            found = self.allocator.take_run_from(offer.block, want, align);
            found.is_some()
        });
        found
    }
}

impl FrameAllocator<'_> {
    /// Makes `block` the one that the CPU refills the cache of `migratetype` from.
    fn set_refill_block(&self, guard: &CpuGuard<'_>, migratetype: Migratetype, block: BlockId) {
        self.end_refill_block(guard, migratetype);
        guard.cache(migratetype).set_refill_block(Some(block));
        guard.add_to_filter(block);
        // Relaxed, here and below: a hint to other CPUs.
        self.record(block).info.fetch_or(IN_USE, Ordering::Relaxed);
    }

    /// Ends that.
    pub(crate) fn end_refill_block(&self, guard: &CpuGuard<'_>, migratetype: Migratetype) {
        let cache = guard.cache(migratetype);
        if let Some(block) = cache.refill_block() {
            cache.set_refill_block(None);
            self.record(block)
                .info
                .fetch_and(!IN_USE, Ordering::Relaxed);
        }
    }
}
