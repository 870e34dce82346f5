//! The sums of a zone, split between the zone and the CPUs.
//!
//! Free frames of a zone = the zone's share + each CPU's signed *delta*, bounded by the zone's *drift*. A CPU that holds its own
//! lock changes its delta by a plain store; what grows beyond the drift is *folded* into the zone's share.
//!
//! A request books its frames before it looks for them:
//!
//! - *Far* from the mark, by more than all deltas together could be, a CPU books from its delta after a look at the zone's share.
//! - *Near* it everybody books at the zone's share by compare-and-exchange, with the deltas added: the share is read before the
//!   deltas, so that a fold between the two makes the exchange fail, unless a booking of as much makes up for it.
//!
//! A fold of a positive delta takes it from the CPU before it adds it to the zone, one of a negative delta the other way round, so
//! that whoever reads in between sees too little and not too much; before a request is refused, the drain folds everything. While
//! CPUs book at once, the mark can be overshot by a request of each; at rest it is exact.
//!
//! Wholly free blocks are counted in the same way.

use crate::{
    FrameAllocator, Watermark,
    cpu::{CpuGuard, CpuSlot},
    sync::{AtomicU64, Ordering, spin_hint},
    zone::Zone,
};

/// Wholly free blocks that a CPU counts at most before it folds them into the zone's share.
const WHOLE_DRIFT: i64 = 16;

/// How much of a booking will do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    /// As many as there are above the mark.
    Any,
}

impl FrameAllocator<'_> {
    /// Books `want` frames that are about to be taken, leaving `watermark`; gives how many were booked. What is not taken then
    /// goes back by [`pay_in`](Self::pay_in).
    #[inline(never)]
    pub(crate) fn book(
        &self,
        zone_number: usize,
        guard: Option<&CpuGuard<'_>>,
        want: usize,
        part: Part,
        watermark: Watermark,
    ) -> usize {
        if let Some(guard) = guard
            && self.book_far(zone_number, guard, want, watermark)
        {
            return want;
        }
        let zone = &self.zones[zone_number];
        let Ok(want) = i64::try_from(want) else {
            return 0;
        };
        let mark = zone.mark(watermark);
        // A fold may hide what it has taken from a CPU and not yet added: what is missing is looked for once more.
        let mut again = true;
        loop {
            // Before the deltas; Acquire pairs with the folds.
            let share = zone.share.free.load(Ordering::Acquire);
            let free = share as i64 + self.deltas(zone_number);
            let above = (free - mark).clamp(0, want);
            let booked = if part == Part::All && above < want {
                0
            } else {
                above
            };
            if booked == 0 {
                if !core::mem::take(&mut again) {
                    return 0;
                }
                spin_hint();
                continue;
            }
            let left = share.wrapping_sub(booked as u64);
            // Acquire and release as the folds, with which it competes.
            let done = zone.share.free.compare_exchange_weak(
                share,
                left,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if done.is_ok() {
                return booked as usize;
            }
        }
    }

    /// Books `want` frames if the zone is far above its mark.
    #[inline]
    pub(crate) fn book_far(
        &self,
        zone_number: usize,
        guard: &CpuGuard<'_>,
        want: usize,
        watermark: Watermark,
    ) -> bool {
        let zone = &self.zones[zone_number];
        // Requests by the CPU's own lock are of a block at most.
        let want = want as i64;
        let far = self.far(zone_number, guard) - want >= zone.mark(watermark);
        if far {
            self.pay_in(zone_number, Some(guard), -want);
        }
        far
    }

    /// The free frames of a zone as far as this CPU can tell without a look at the others: at least so many there are.
    #[inline]
    pub(crate) fn far(&self, zone_number: usize, guard: &CpuGuard<'_>) -> i64 {
        let zone = &self.zones[zone_number];
        // Relaxed: a booking by plain stores is a hint by nature; see the module's head for what it may cost.
        let share = zone.share.free.load(Ordering::Relaxed) as i64;
        share + guard.slot.delta(zone_number) - zone.slack()
    }

    fn deltas(&self, zone: usize) -> i64 {
        self.cpus.iter().map(|cpu| cpu.delta(zone)).sum()
    }

    /// Adds frames that came free, or that were booked and not taken.
    #[inline]
    pub(crate) fn pay_in(&self, zone_number: usize, guard: Option<&CpuGuard<'_>>, frames: i64) {
        let zone = &self.zones[zone_number];
        let Some(guard) = guard else {
            if frames != 0 {
                add(&zone.share.free, frames);
            }
            return;
        };
        let delta = guard.slot.delta(zone_number) + frames;
        if delta.abs() <= zone.drift() {
            guard.slot.set_delta(zone_number, delta);
        } else {
            fold_free(zone, guard.slot, zone_number, delta);
        }
    }

    /// Counts blocks that became whole, or ceased to be.
    #[inline]
    pub(crate) fn count_whole(
        &self,
        zone_number: usize,
        guard: Option<&CpuGuard<'_>>,
        blocks: i64,
    ) {
        let zone = &self.zones[zone_number];
        let Some(guard) = guard else {
            add(&zone.share.whole, blocks);
            return;
        };
        let whole = guard.slot.whole(zone_number) + blocks;
        if whole.abs() <= WHOLE_DRIFT {
            guard.slot.set_whole(zone_number, whole);
        } else {
            fold_whole(zone, guard.slot, zone_number, whole);
        }
    }

    /// Gives the CPU's deltas back to the zones.
    pub(crate) fn fold(&self, guard: &CpuGuard<'_>) {
        for number in 0..self.zone_count {
            let (zone, slot) = (&self.zones[number], guard.slot);
            fold_free(zone, slot, number, slot.delta(number));
            fold_whole(zone, slot, number, slot.whole(number));
        }
    }

    /// Frames that can be taken in a zone. Exact while nothing is under way.
    pub(crate) fn free_in(&self, zone: usize) -> i64 {
        self.zones[zone].share.free.load(Ordering::Acquire) as i64 + self.deltas(zone)
    }

    /// Wholly free blocks of a zone. Exact while nothing is under way.
    pub(crate) fn whole_in(&self, zone: usize) -> i64 {
        let own = self.zones[zone].share.whole.load(Ordering::Acquire) as i64;
        own + self.cpus.iter().map(|cpu| cpu.whole(zone)).sum::<i64>()
    }

    /// Runs `claim`, which takes a whole block and gives whether it did, unless that would leave fewer than the zone's reserve. The
    /// block is booked meanwhile, so that two CPUs do not both take the last one to spare.
    ///
    /// `guard` is that by which `claim` counts what it takes.
    pub(crate) fn sparing(
        &self,
        zone_number: usize,
        guard: Option<&CpuGuard<'_>>,
        claim: &mut dyn FnMut() -> bool,
    ) -> bool {
        let zone = &self.zones[zone_number];
        if zone.reserve == 0 {
            // The sum follows the ledgers late; where nothing is kept the search alone decides.
            return claim();
        }
        loop {
            // As in `book`.
            let share = zone.share.whole.load(Ordering::Acquire);
            let others: i64 = self.cpus.iter().map(|cpu| cpu.whole(zone_number)).sum();
            if share as i64 + others <= i64::from(zone.reserve) {
                return false;
            }
            let left = share.wrapping_sub(1);
            let done = zone.share.whole.compare_exchange_weak(
                share,
                left,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if done.is_ok() {
                break;
            }
        }
        let claimed = claim();
        if claimed {
            // The change of the block's ledger has counted it, where it counts: there, not in the share, which must not be again
            // what others may have read before.
            self.count_whole(zone_number, guard, 1);
        } else {
            add(&zone.share.whole, 1);
        }
        claimed
    }

    /// Before the bitmaps of the room index change. Relaxed: who sees a change of them, by its acquire, sees this.
    #[inline]
    pub(crate) fn begin_move(&self, zone: usize, guard: Option<&CpuGuard<'_>>) {
        match guard {
            Some(guard) => guard.slot.begin_move(),
            None => {
                let begun = &self.zones[zone].share.begun;
                begun.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// After the bitmaps changed. Release: pairs with [`moves_ended`](Self::moves_ended).
    #[inline]
    pub(crate) fn end_move(&self, zone: usize, guard: Option<&CpuGuard<'_>>) {
        match guard {
            Some(guard) => guard.slot.end_move(),
            None => {
                let ended = &self.zones[zone].share.ended;
                ended.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Moves of blocks in the room index that were begun, of the zone and by those who hold a CPU's lock.
    pub(crate) fn moves_begun(&self, zone: usize) -> u32 {
        let own = self.zones[zone].share.begun.load(Ordering::Relaxed) as u32;
        self.cpus
            .iter()
            .fold(own, |sum, cpu| sum.wrapping_add(cpu.moves_begun()))
    }

    /// Acquire: all moves counted are in the bitmaps that the caller looks at next.
    pub(crate) fn moves_ended(&self, zone: usize) -> u32 {
        let own = self.zones[zone].share.ended.load(Ordering::Acquire) as u32;
        self.cpus
            .iter()
            .fold(own, |sum, cpu| sum.wrapping_add(cpu.moves_ended()))
    }
}

fn add(sum: &AtomicU64, amount: i64) {
    // AcqRel: orders the folds' two steps for whoever reads the sum; see the module's head.
    sum.fetch_add(amount as u64, Ordering::AcqRel);
}

/// Adds `part`, which a CPU counted, to the zone's share, and sets what the CPU still has to 0, in the order that makes readers
/// see too little rather than too much. `clear` stores with release.
fn fold_one(share: &AtomicU64, part: i64, clear: &dyn Fn()) {
    match part {
        0 => clear(),
        1.. => {
            clear();
            add(share, part);
        }
        _ => {
            add(share, part);
            clear();
        }
    }
}

fn fold_free(zone: &Zone<'_>, slot: &CpuSlot, number: usize, delta: i64) {
    fold_one(&zone.share.free, delta, &|| slot.set_delta(number, 0));
}

fn fold_whole(zone: &Zone<'_>, slot: &CpuSlot, number: usize, whole: i64) {
    fold_one(&zone.share.whole, whole, &|| slot.set_whole(number, 0));
}
