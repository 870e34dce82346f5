//! Emptying what the CPUs keep: caches of single frames, spare blocks, parts of the sums.

use crate::{
    BlockId, BlockState, CpuId, FrameAllocator, FrameClass, Ledger, Migratetype,
    cache::BATCH,
    cpu::{CpuGuard, NO_BLOCK, residue},
    sync::{Ordering, fence},
};

/// The most refused requests of several frames that pass without a drain before the next one.
const MAX_SKIP: u32 = 63;

impl FrameAllocator<'_> {
    /// Empties all CPUs' caches and reservations into the blocks, and adds up the sums. CPUs that keep nothing are passed by
    /// without their lock.
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
                self.unreserve(&guard, migratetype);
            }
            self.flush_spares(&guard, 0);
            self.fold(&guard);
            guard.set_filter(0);
        }
    }

    /// Makes an attempt, which says whether it did, and if need be another one with nothing left in caches.
    ///
    /// A request that is `limited`, one for several frames, does not drain each time that it is refused in a row: then only the spare
    /// blocks come back, if there are any.
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

    /// Whether a refused request for several frames on `cpu` may drain: not each of a row of them.
    fn may_drain(&self, cpu: CpuId) -> bool {
        let guard = self.lock(cpu);
        let skip = guard.slot.skip.load(Ordering::Relaxed);
        guard
            .slot
            .skip
            .store(skip.saturating_sub(1), Ordering::Relaxed);
        skip == 0
    }

    /// After a drain for such a request: how many may pass before the next one doubles while it does not help.
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
        let mut batch = [0u32; BATCH];
        let count = guard.cache(migratetype).take_oldest(&mut batch);
        self.uncache(&batch[..count], class_of(migratetype), guard);
    }

    /// Puts frames that were just taken out of a cache, or that never went into one, into their fields.
    pub(crate) fn uncache(&self, frames: &[u32], class: FrameClass, guard: &CpuGuard<'_>) {
        for &frame in frames {
            let block = Self::block_of_index(frame);
            dirigible_prefetch::for_write(&self.fields[block.index()]);
            dirigible_prefetch::for_write(self.record(block));
        }
        self.put_into_field(frames, class, Some(guard));
    }

    /// Takes the frames of `blocks`, which were just isolated, out of all CPUs' caches and reservations. The isolation must have
    /// been told by a sequentially consistent step.
    pub(crate) fn uncache_blocks(&self, blocks: &[BlockId]) {
        // After the blocks' ledgers, and before the locks are looked at.
        fence(Ordering::SeqCst);
        let residues = blocks.iter().fold(0, |all, &block| all | residue(block));
        let ours = |frame: u32| blocks.contains(&Self::block_of_index(frame));
        for slot in self.cpus {
            if slot.is_clear_of(residues) {
                continue;
            }
            let guard = self.lock_slot(slot);
            let mut filter = 0;
            for migratetype in Migratetype::ALL {
                let cache = guard.cache(migratetype);
                let reserved = cache.reserved();
                if reserved != NO_BLOCK && blocks.contains(&BlockId::new(reserved - 1)) {
                    self.unreserve(&guard, migratetype);
                }
                let mut batch = [0u32; BATCH];
                loop {
                    let count = cache.extract(&mut batch, &ours);
                    if count == 0 {
                        break;
                    }
                    self.uncache(&batch[..count], class_of(migratetype), &guard);
                }
                cache.for_each(&mut |frame| filter |= residue(Self::block_of_index(frame)));
                if let Some(block) = cache.reserved().checked_sub(1) {
                    filter |= residue(BlockId::new(block));
                }
            }
            guard.set_filter(filter);
        }
    }

    /// Whether the frame must not be cached. Called with the CPU's lock held.
    ///
    /// An isolator counts the block first, changes the ledger, then looks at each CPU. Who has the lock before that will be
    /// emptied; who gets it after sees the count, see [`CpuSlot::is_clear_of`](crate::cpu::CpuSlot::is_clear_of).
    #[inline]
    pub(crate) fn in_isolated_block(&self, frame: u32) -> bool {
        let block = Self::block_of_index(frame);
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
