//! Huge pages from what a CPU keeps: a short stack of whole blocks.
//!
//! A *spare* block is wholly free and counts as that in every sum, but it is in no index: its CPU took it out, with
//! others of the same group at once, and gives it back in the same way. To take one and to give one back then writes
//! only the CPU's own lines and the block's record, and reads the zone's share of the sums, which other CPUs write once
//! for several blocks. Only blocks of the zone that requests try first are kept, and only while whole blocks are plenty
//! and the zone is far above its marks.

use crate::{
    AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, FrameAllocator, FrameClass,
    FreeError, Ledger, Migratetype, Order, Pfn, Watermark, ZoneId,
    cpu::{CpuGuard, SPARES},
    descriptor::Word,
    free::refuse_free,
    huge::{huge, whole},
    index::Place,
    place::{WHOLE_BUCKET, room_place},
    position::FrameIndex,
    sync::Ordering,
};

/// Blocks that a CPU keeps at most, blocks that come and go together, and the part of its share of the whole blocks
/// that a CPU may keep (one in so many). Model checks have few blocks.
const MAX_DEPTH: usize = if cfg!(shuttle) { 2 } else { 14 };
const BATCH: usize = if cfg!(shuttle) { 2 } else { 8 };
const SHARE: i64 = if cfg!(shuttle) { 1 } else { 16 };

impl FrameAllocator<'_> {
    /// A huge page out of what the CPU keeps; its first frame. `None` if it keeps nothing, and near the watermark.
    #[inline]
    pub(crate) fn alloc_spare(&self, cpu: CpuId, request: AllocRequest) -> Option<FrameIndex> {
        let guard = self.lock_inline(cpu);
        let zone = self.first_choice();
        if guard.slot.spare_count.load(Ordering::Relaxed) == 0 {
            self.refill_spares(&guard, zone)?;
        }
        if !self.book_far(zone, &guard, FRAMES_PER_BLOCK, request.watermark) {
            // Near the mark nothing is kept.
            self.flush_spares(&guard, 0);
            return None;
        }
        let Some(block) = guard.pop_spare() else {
            // Not reached: without one the refill would have given up.
            self.pay_in(zone, Some(&guard), FRAMES_PER_BLOCK as i64);
            return None;
        };
        // Nobody else changes the ledger of a spare block: its lock is ours.
        self.set_ledger(block, |ledger| huge(ledger, FrameClass::Movable));
        self.count_whole(zone, Some(&guard), -1);
        // The field's bits stay set, as in `claim`.
        self.own_blocks(block, Word::owned(FrameClass::Movable, Order::HUGE));
        guard.count(Event::PgAlloc, FRAMES_PER_BLOCK as u64);
        Some(block.first_frame())
    }

    /// Gives a huge page back.
    #[inline(never)]
    pub(crate) fn free_huge(
        &self,
        cpu: CpuId,
        pfn: Pfn,
        head: FrameIndex,
    ) -> Result<(), FreeError> {
        let descriptor = self.descriptor_at(head);
        dirigible_prefetch::for_write(descriptor.word);
        let guard = self.lock_inline(cpu);
        let word = descriptor.load();
        if !word.is_freeable(Order::HUGE) {
            return Err(refuse_free(pfn, word));
        }
        let block = head.block();
        if self.ledger(block).state() != BlockState::Huge {
            // Another CPU is freeing it at this moment: what follows must not count it twice.
            return Err(FreeError::NotAllocated(pfn));
        }
        // A plain store, as for single frames.
        descriptor.store(Word::new());
        let zone = self.zone_of_block(block);
        let kept = zone == self.first_choice() && word.class() == FrameClass::Movable;
        let depth = if kept {
            self.spare_depth(&guard, zone)
        } else {
            0
        };
        if depth > 0 {
            if guard.slot.spare_count.load(Ordering::Relaxed) as usize >= depth {
                self.flush_spares(&guard, depth.saturating_sub(BATCH));
            }
            self.set_ledger(block, |ledger| {
                whole(ledger, FrameClass::Movable).with_state(BlockState::Spare)
            });
            self.count_whole(zone, Some(&guard), 1);
            self.pay_in(zone, Some(&guard), FRAMES_PER_BLOCK as i64);
            guard.push_spare(block);
        } else {
            let freed = self.release(block, Some(&guard), word.class());
            self.pay_in(zone, Some(&guard), freed);
        }
        guard.count(Event::PgFree, FRAMES_PER_BLOCK as u64);
        Ok(())
    }

    /// How many blocks the CPU may keep now.
    #[inline]
    fn spare_depth(&self, guard: &CpuGuard<'_>, id: ZoneId) -> usize {
        let zone = self.zone(id);
        let kept = (MAX_DEPTH * FRAMES_PER_BLOCK) as i64;
        if self.far(id, guard) - kept < zone.mark(Watermark::High) {
            return 0;
        }
        // Relaxed: a hint. Other CPUs' parts are small.
        let whole = zone.share.whole.load(Ordering::Relaxed) as i64 + guard.slot.whole(id);
        let each = (whole - i64::from(zone.reserve)) / (SHARE * self.cpus.len() as i64);
        each.clamp(0, MAX_DEPTH as i64) as usize
    }

    /// Takes up to a batch of blocks out of one group of the index; `None` if it got none.
    #[inline(never)]
    fn refill_spares(&self, guard: &CpuGuard<'_>, id: ZoneId) -> Option<()> {
        let want = self.spare_depth(guard, id).min(BATCH);
        if want == 0 {
            return None;
        }
        let zone = self.zone(id);
        let index = &zone.by_room;
        // The home is the first block of a group, so all that is found is at or above it, or else anywhere in the zone.
        let home = guard.slot.home(id);
        let (first, mut bits) = index
            .group(WHOLE_BUCKET, home)
            .or_else(|| index.group(WHOLE_BUCKET, zone.first))?;
        let (mut blocks, mut count, mut mask) = ([BlockId::new(0); BATCH], 0, 0u64);
        while bits != 0 && count < want {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            let block = first.plus(bit);
            let spare = |ledger: Ledger| ledger.is_whole().then(|| spare_of(ledger));
            if self.exchange(block, &spare).is_ok() {
                blocks[count] = block;
                count += 1;
                mask |= 1 << bit;
            }
        }
        if count == 0 {
            return None;
        }
        index.write_group(Place::bucket(WHOLE_BUCKET), first, mask, false);
        // Highest first, so that the lowest goes out first.
        for &block in blocks[..count].iter().rev() {
            self.check_whole(block, Some(guard));
            guard.push_spare(block);
        }
        Some(())
    }

    /// Gives the oldest of the CPU's spare blocks back until `keep` are left.
    #[inline(never)]
    pub(crate) fn flush_spares(&self, guard: &CpuGuard<'_>, keep: usize) {
        let mut blocks = [BlockId::new(0); SPARES];
        let count = guard.take_spares(keep, &mut blocks);
        let blocks = &blocks[..count];
        let Some(&first) = blocks.first() else {
            return;
        };
        let zone = self.zone_of_block(first);
        let index = &self.zone(zone).by_room;
        self.begin_move(zone, Some(guard));
        for &block in blocks {
            self.set_ledger(block, |ledger| ledger.with_state(BlockState::Open));
        }
        let group = |block: BlockId| index.position(block).0;
        for (number, &block) in blocks.iter().enumerate() {
            // One step for all of a group, at the first of them.
            if blocks[..number].iter().any(|&b| group(b) == group(block)) {
                continue;
            }
            let same = blocks[number..]
                .iter()
                .filter(|&&b| group(b) == group(block));
            let mask = same.fold(0, |mask, &b| mask | index.position(b).1);
            index.write_group(Place::bucket(WHOLE_BUCKET), block, mask, true);
        }
        for &block in blocks {
            self.check_whole(block, Some(guard));
        }
        self.end_move(zone, Some(guard));
    }

    /// After a write of the index for many blocks: moves a block whose ledger wants it elsewhere by now.
    fn check_whole(&self, block: BlockId, guard: Option<&CpuGuard<'_>>) {
        let whole = Place::bucket(WHOLE_BUCKET);
        let place = room_place(self.ledger(block));
        let filed = self.zone_at(block).by_room.holds(block, whole);
        if filed != (place == whole) {
            let (from, to) = if filed {
                (whole, Place::NONE)
            } else {
                (Place::NONE, whole)
            };
            self.move_by_room(block, guard, from, to);
        }
    }

    /// Changes the ledger of a block that is this CPU's alone: a spare one, or one that its holder is giving back.
    #[inline]
    fn set_ledger(&self, block: BlockId, change: impl Fn(Ledger) -> Ledger) {
        let word = self.ledger_word(block);
        let new = change(Ledger::from_bits(word.load(Ordering::Acquire))).bumped();
        // Release: as in `change`. A store suffices: others change only ledgers that are open or isolated, or of
        // allocations that they hold.
        word.store(new.into_bits(), Ordering::Release);
    }

    /// Makes all CPUs give back their spare blocks; gives whether there may have been any.
    #[inline(never)]
    pub(crate) fn drain_spares(&self) -> bool {
        let mut any = false;
        for slot in self.cpus {
            // A holder of the lock may be about to keep some, or to give some back: the lock is read before the count
            // and after it.
            let kept = || slot.spare_count.load(Ordering::Acquire) > 0;
            if slot.is_locked() || kept() || slot.is_locked() {
                let guard = self.lock_slot(slot);
                self.flush_spares(&guard, 0);
                any = true;
            }
        }
        any
    }
}

fn spare_of(ledger: Ledger) -> Ledger {
    ledger
        .with_state(BlockState::Spare)
        .with_type(Migratetype::Movable)
}

/// For the lock's holder. Relaxed unless another ordering is named: the lock orders it.
impl CpuGuard<'_> {
    fn spare(&self, at: usize) -> BlockId {
        BlockId::new(self.slot.spares[at].load(Ordering::Relaxed))
    }

    #[inline]
    fn pop_spare(&self) -> Option<BlockId> {
        let last = self
            .slot
            .spare_count
            .load(Ordering::Relaxed)
            .checked_sub(1)?;
        self.slot.spare_count.store(last, Ordering::Relaxed);
        Some(self.spare(last as usize))
    }

    /// There must be room.
    #[inline]
    fn push_spare(&self, block: BlockId) {
        let count = self.slot.spare_count.load(Ordering::Relaxed);
        self.slot.spares[count as usize].store(block.get(), Ordering::Relaxed);
        self.slot.spare_count.store(count + 1, Ordering::Release);
    }

    /// Takes the oldest until `keep` are left; gives how many.
    fn take_spares(&self, keep: usize, out: &mut [BlockId; SPARES]) -> usize {
        let all = self.slot.spare_count.load(Ordering::Relaxed) as usize;
        let count = all.saturating_sub(keep);
        for (place, at) in out[..count].iter_mut().zip(0..) {
            *place = self.spare(at);
        }
        for at in count..all {
            self.slot.spares[at - count].store(self.spare(at).get(), Ordering::Relaxed);
        }
        self.slot
            .spare_count
            .store((all - count) as u32, Ordering::Relaxed);
        count
    }

    /// Calls `each` with every spare block.
    pub fn for_each_spare(&self, each: &mut dyn FnMut(BlockId)) {
        for at in 0..self.slot.spare_count.load(Ordering::Relaxed) as usize {
            each(self.spare(at));
        }
    }
}
