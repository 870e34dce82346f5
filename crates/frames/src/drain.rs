//! Emptying what the CPUs keep: caches of single frames, spare blocks, parts of the sums.

use crate::{
    BlockId, BlockState, CpuId, FrameAllocator, FrameClass, Ledger, Migratetype,
    cache::BATCH,
    cpu::{CpuGuard, residue},
    position::FrameIndex,
    sync::{Ordering, fence},
};

/// The most refused requests of several frames that pass without a drain before the next one.
const MAX_SKIP: u32 = 63;

impl FrameAllocator<'_> {
    /// Empties all CPUs' caches into the blocks, ends what they refill from, and adds up the sums. CPUs that keep
    /// nothing are skipped without their lock.
    pub fn drain_cpu_caches(&self) {
        for slot in self.cpus {
            if slot.is_drained() {
                continue;
            }
            let guard = self.lock_slot(slot);
            for migratetype in Migratetype::ALL {
                while guard.cache(migratetype).len() > 0 {
                    self.flush(&guard, migratetype);
                }
                self.end_refill_block(&guard, migratetype);
            }
            self.flush_spares(&guard, 0);
            self.fold(&guard);
            guard.set_filter(0);
        }
    }

    /// Makes an attempt, which gives whether it succeeded, and if it failed another one after the caches were emptied.
    /// Gives whether one succeeded.
    ///
    /// A `limited` request, one for several frames, does not drain each time when several are refused in a row: then
    /// only the spare blocks come back, if there are any.
    pub(crate) fn with_drain(
        &self,
        cpu: CpuId,
        limited: bool,
        attempt: &mut dyn FnMut() -> bool,
    ) -> bool {
        if attempt() {
            // Relaxed: a hint, this CPU's own.
            if limited && self.cpus[cpu.index()].skipped.load(Ordering::Relaxed) > 0 {
                self.drained_for(cpu, true);
            }
            return true;
        }
        if limited && !self.may_drain(cpu) {
            return self.drain_spares() && attempt();
        }
        self.drain_cpu_caches();
        let done = attempt();
        if limited {
            self.drained_for(cpu, done);
        }
        done
    }

    /// Whether a refused request for several frames on `cpu` may drain; not each of several in a row may.
    fn may_drain(&self, cpu: CpuId) -> bool {
        let guard = self.lock(cpu);
        let skip = guard.slot.skip.load(Ordering::Relaxed);
        guard
            .slot
            .skip
            .store(skip.saturating_sub(1), Ordering::Relaxed);
        skip == 0
    }

    /// After a drain for such a request: while drains do not help, the number of requests that pass before the next one
    /// doubles.
    fn drained_for(&self, cpu: CpuId, helped: bool) {
        let guard = self.lock(cpu);
        let skipped = guard.slot.skipped.load(Ordering::Relaxed);
        let next = if helped {
            0
        } else {
            (2 * skipped + 1).min(MAX_SKIP)
        };
        guard
            .slot
            .skip
            .store(if helped { 0 } else { skipped }, Ordering::Relaxed);
        guard.slot.skipped.store(next, Ordering::Relaxed);
    }

    /// Moves a batch from the cache to the field, oldest first.
    #[inline(never)]
    pub(crate) fn flush(&self, guard: &CpuGuard<'_>, migratetype: Migratetype) {
        let mut batch = [FrameIndex::default(); BATCH];
        let count = guard.cache(migratetype).take_oldest(&mut batch);
        self.uncache(&batch[..count], class_of(migratetype), guard);
    }

    /// Puts frames that were just taken out of a cache, or that never went into one, into their fields.
    #[inline(never)]
    pub(crate) fn uncache(&self, frames: &[FrameIndex], class: FrameClass, guard: &CpuGuard<'_>) {
        for &frame in frames {
            let block = frame.block();
            dirigible_prefetch::for_write(self.field(block));
            dirigible_prefetch::for_write(self.record(block));
        }
        self.put_into_field(frames, class, Some(guard));
    }

    /// Takes the frames of `blocks`, which were just isolated, out of all CPUs' caches, and ends refills from these
    /// blocks. The isolation must have been published by a sequentially consistent step.
    #[inline(never)]
    pub(crate) fn uncache_blocks(&self, blocks: &[BlockId]) {
        // After the blocks' ledgers were changed, and before the locks are read.
        fence(Ordering::SeqCst);
        let residues = blocks.iter().fold(0, |all, &block| all | residue(block));
        let ours = |frame: FrameIndex| blocks.contains(&frame.block());
        for slot in self.cpus {
            if slot.is_clear_of(residues) {
                continue;
            }
            let guard = self.lock_slot(slot);
            let mut filter = 0;
            for migratetype in Migratetype::ALL {
                let cache = guard.cache(migratetype);
                let refilled_from = cache.refill_block();
                if refilled_from.is_some_and(|block| blocks.contains(&block)) {
                    self.end_refill_block(&guard, migratetype);
                }
                let mut batch = [FrameIndex::default(); BATCH];
                loop {
                    let count = cache.extract(&mut batch, &ours);
                    if count == 0 {
                        break;
                    }
                    self.uncache(&batch[..count], class_of(migratetype), &guard);
                }
                cache.for_each(&mut |frame| filter |= residue(frame.block()));
                if let Some(block) = cache.refill_block() {
                    filter |= residue(block);
                }
            }
            guard.set_filter(filter);
        }
    }

    /// Whether the frame must not be cached. Called with the CPU's lock held.
    ///
    /// An isolator counts the block first, changes the ledger, then looks at each CPU. The cache of a CPU that has the
    /// lock before that is emptied; a CPU that gets it afterwards sees the count, see
    /// [`CpuSlot::is_clear_of`](crate::cpu::CpuSlot::is_clear_of).
    #[inline]
    pub(crate) fn in_isolated_block(&self, frame: FrameIndex) -> bool {
        let block = frame.block();
        // SeqCst, both: the other half of Dekker's argument there. The ledger was changed before the isolator's fence.
        self.isolated[block.index() % 64].load(Ordering::SeqCst) > 0
            && Ledger::from_bits(self.ledger_word(block).load(Ordering::SeqCst)).state()
                == BlockState::Isolated
    }
}

/// The class of the frames in the cache of `migratetype`.
pub(crate) fn class_of(migratetype: Migratetype) -> FrameClass {
    match migratetype {
        Migratetype::Unmovable => FrameClass::Unmovable,
        Migratetype::Movable => FrameClass::Movable,
        Migratetype::Reclaimable => FrameClass::Reclaimable,
    }
}
