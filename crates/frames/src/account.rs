//! The sums of a zone, split between the zone and the CPUs: a word that every CPU changes would cost more than all the rest.
//!
//! Free frames of a zone = its own count + the *credit* of each CPU. A CPU draws credit when the zone is well above its
//! marks, pays what it takes from blocks out of it, and pays in what it gives back; so the zone's own count changes once in
//! eight huge pages. Whole free blocks = the zone's own count + what each CPU added.

use crate::{
    BlockId, FRAMES_PER_BLOCK, FrameAllocator, Migratetype, Watermark, cpu::CpuGuard,
    cpu::NO_BLOCK, sync::Ordering, zone::Zone,
};

/// Frames that a CPU draws ahead.
const CREDIT: u32 = 8 * FRAMES_PER_BLOCK as u32;

/// In a block's info: some CPU fills its cache from this block.
const IN_USE: u32 = 1 << 31;

impl FrameAllocator<'_> {
    /// Books up to `want` frames that are about to be taken, leaving `watermark`. What is not taken then goes back by
    /// [`pay_in`](Self::pay_in).
    pub(crate) fn book(
        &self,
        zone_number: usize,
        guard: Option<&CpuGuard<'_>>,
        want: usize,
        watermark: Watermark,
    ) -> usize {
        let zone = &self.zones[zone_number];
        let mark = mark(zone, watermark);
        // Credit was drawn above `min`; who must leave more asks the zone.
        let Some(guard) = guard.filter(|_| matches!(watermark, Watermark::None | Watermark::Min))
        else {
            return zone.book(want, mark);
        };
        let wanted = want as u32;
        let mut credit = guard.credit(zone_number);
        if credit < wanted {
            let ahead = (wanted - credit + CREDIT) as usize;
            credit += if zone.book_all(ahead, zone.marks().high) {
                ahead as u32
            } else {
                zone.book((wanted - credit) as usize, mark) as u32
            };
        }
        // Others may have taken what was left below the mark, or the mark was raised, after the credit was drawn.
        let spare = (zone.free() + i64::from(credit) - mark as i64).max(0);
        let granted = i64::from(credit.min(wanted)).min(spare) as u32;
        guard.set_credit(zone_number, credit - granted);
        granted as usize
    }

    /// Adds frames that came free, or that were booked and not taken.
    pub(crate) fn pay_in(&self, zone_number: usize, guard: Option<&CpuGuard<'_>>, frames: i64) {
        let zone = &self.zones[zone_number];
        let Some(guard) = guard.filter(|_| frames > 0) else {
            zone.add_free(frames);
            return;
        };
        let credit = i64::from(guard.credit(zone_number)) + frames;
        let kept = if credit > 2 * i64::from(CREDIT) {
            i64::from(CREDIT)
        } else {
            credit
        };
        zone.add_free(credit - kept);
        guard.set_credit(zone_number, kept as u32);
    }

    /// Counts a block that became whole or ceased to be.
    #[inline]
    pub(crate) fn count_whole(&self, block: BlockId, guard: Option<&CpuGuard<'_>>, blocks: i64) {
        if blocks != 0 {
            let zone = self.zone_of_block(block).index();
            match guard {
                Some(guard) => guard.add_whole(zone, blocks),
                None => self.zones[zone].add_whole(blocks),
            }
        }
    }

    /// Gives the CPU's credit and counts back to the zones.
    pub(crate) fn settle_account(&self, guard: &CpuGuard<'_>) {
        for (number, zone) in self.zones.iter().enumerate() {
            zone.add_free(i64::from(guard.credit(number)));
            guard.set_credit(number, 0);
            zone.add_whole(guard.take_whole(number));
        }
    }

    /// Frames that can be taken in a zone. Exact while nothing is under way.
    pub(crate) fn free_in(&self, zone: usize) -> i64 {
        let credit = |cpu: &crate::cpu::CpuSlot| i64::from(cpu.credit(zone));
        self.zones[zone].free() + self.cpus.iter().map(credit).sum::<i64>()
    }

    /// Wholly free open blocks of a zone. Exact while nothing is under way.
    pub(crate) fn whole_in(&self, zone: usize) -> i64 {
        self.zones[zone].whole() + self.cpus.iter().map(|cpu| cpu.whole(zone)).sum::<i64>()
    }

    /// Before the bitmaps of the room index change. Relaxed: who sees a change of them, by its acquire, sees this.
    #[inline]
    pub(crate) fn begin_move(&self, zone: usize, guard: Option<&CpuGuard<'_>>) {
        if let Some(guard) = guard {
            let begun = guard.slot.moves().0;
            let count = begun.load(Ordering::Relaxed).wrapping_add(1);
            begun.store(count, Ordering::Relaxed);
        } else {
            self.zones[zone].moves().0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// After the bitmaps changed. Release: pairs with [`moves_ended`](Self::moves_ended).
    #[inline]
    pub(crate) fn end_move(&self, zone: usize, guard: Option<&CpuGuard<'_>>) {
        if let Some(guard) = guard {
            let ended = guard.slot.moves().1;
            let count = ended.load(Ordering::Relaxed).wrapping_add(1);
            ended.store(count, Ordering::Release);
        } else {
            self.zones[zone].moves().1.fetch_add(1, Ordering::Release);
        }
    }

    pub(crate) fn moves_begun(&self, zone: usize) -> u32 {
        let own = self.zones[zone].moves().0.load(Ordering::Relaxed) as u32;
        self.cpus.iter().fold(own, |sum, cpu| {
            sum.wrapping_add(cpu.moves().0.load(Ordering::Relaxed))
        })
    }

    /// Acquire: all moves counted are in the bitmaps that the caller looks at next.
    pub(crate) fn moves_ended(&self, zone: usize) -> u32 {
        let own = self.zones[zone].moves().1.load(Ordering::Acquire) as u32;
        self.cpus.iter().fold(own, |sum, cpu| {
            sum.wrapping_add(cpu.moves().1.load(Ordering::Acquire))
        })
    }

    /// Makes `block` the one that the CPU refills the cache of `migratetype` from; others look elsewhere while they can.
    pub(crate) fn reserve(&self, guard: &CpuGuard<'_>, migratetype: Migratetype, block: BlockId) {
        self.unreserve(guard, migratetype);
        guard.set_reserved(migratetype, block.index() as u32 + 1);
        // Relaxed, here and below: a hint to other CPUs.
        self.info[block.index()].fetch_or(IN_USE, Ordering::Relaxed);
    }

    /// Ends that.
    pub(crate) fn unreserve(&self, guard: &CpuGuard<'_>, migratetype: Migratetype) {
        let reserved = guard.reserved(migratetype);
        if reserved != NO_BLOCK {
            guard.set_reserved(migratetype, NO_BLOCK);
            self.info[reserved as usize - 1].fetch_and(!IN_USE, Ordering::Relaxed);
        }
    }

    /// Whether some CPU refills from `block`.
    pub(crate) fn is_in_use(&self, block: BlockId) -> bool {
        self.info[block.index()].load(Ordering::Relaxed) & IN_USE != 0
    }
}

pub(crate) fn mark(zone: &Zone, watermark: Watermark) -> u64 {
    let marks = zone.marks();
    match watermark {
        Watermark::None => 0,
        Watermark::Min => marks.min,
        Watermark::Low => marks.low,
        Watermark::High => marks.high,
    }
}
