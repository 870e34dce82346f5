//! The sums of a zone, split between the zone and the CPUs.
//!
//! Free frames of a zone = the zone's share + each CPU's signed *delta*, bounded by the zone's *drift*. A CPU that
//! holds its own lock changes its delta by a plain store; what grows beyond the drift is *folded* into the zone's
//! share.
//!
//! A request books its frames before it looks for them:
//!
//! - *Far* from the mark, by more than all deltas together could be, a CPU reads the zone's share and books from its
//!   own delta.
//! - *Near* it every CPU books at the zone's share by compare-and-exchange, with the deltas added. The share is read
//!   before the deltas, so that a fold between the two makes the exchange fail, unless a booking of the same amount
//!   makes up for it.
//!
//! A fold of a positive delta takes it from the CPU before it adds it to the zone, one of a negative delta the other
//! way round, so that a reader in between sees too little and not too much. Before a request is refused, the drain
//! folds everything. While several CPUs book at once, each may go below the mark by one request; at rest it is exact.
//!
//! Wholly free blocks are counted in the same way.

use crate::{
    FrameAllocator, Watermark, ZoneId,
    cpu::{CpuGuard, CpuSlot},
    sync::{AtomicU64, Ordering, spin_hint},
    zone::Zone,
};

/// The most wholly free blocks that a CPU counts before it folds them into the zone's share.
const WHOLE_DRIFT: i64 = 16;

/// Frames that a request books before it looks for them.
#[derive(Clone, Copy)]
pub(crate) struct Booking {
    frames: usize,
    /// Whether fewer will do.
    fewer: bool,
    /// What the zone must keep.
    watermark: Watermark,
    /// Free frames that do not count.
    stranded: i64,
}

impl Booking {
    pub const fn all(frames: usize, watermark: Watermark) -> Self {
        Self {
            frames,
            fewer: false,
            watermark,
            stranded: 0,
        }
    }

    /// As many as there are above the mark, up to `frames`.
    pub const fn up_to(frames: usize, watermark: Watermark) -> Self {
        Self {
            frames,
            fewer: true,
            watermark,
            stranded: 0,
        }
    }

    /// The same, as if `frames` of the free ones were not there.
    pub const fn without(self, frames: u64) -> Self {
        Self {
            stranded: frames as i64,
            ..self
        }
    }
}

impl FrameAllocator<'_> {
    /// Books frames that are about to be taken; gives how many were booked. What is not taken goes back by
    /// [`pay_in`](Self::pay_in).
    #[inline(never)]
    pub(crate) fn book(&self, id: ZoneId, guard: Option<&CpuGuard<'_>>, booking: Booking) -> usize {
        let want = booking.frames;
        if let Some(guard) = guard
            && self.book_far(id, guard, want, booking.watermark)
        {
            return want;
        }
        let zone = self.zone(id);
        let Ok(want) = i64::try_from(want) else {
            return 0;
        };
        let mark = zone
            .mark(booking.watermark)
            .saturating_add(booking.stranded);
        let amount = |free: i64| {
            let above = (free - mark).clamp(0, want);
            let enough = booking.fewer || above == want;
            if enough { above } else { 0 }
        };
        let draw = || draw(&zone.share.free, || self.deltas(id), amount);
        // A fold may hide what it has taken from a CPU and not yet added: look once more.
        let booked = match draw() {
            0 => {
                spin_hint();
                draw()
            }
            booked => booked,
        };
        booked as usize
    }

    /// Books `want` frames if the zone is far above its mark.
    #[inline]
    pub(crate) fn book_far(
        &self,
        id: ZoneId,
        guard: &CpuGuard<'_>,
        want: usize,
        watermark: Watermark,
    ) -> bool {
        // Requests by the CPU's own lock are of a block at most.
        let want = want as i64;
        let far = self.far(id, guard) - want >= self.zone(id).mark(watermark);
        if far {
            self.pay_in(id, Some(guard), -want);
        }
        far
    }

    /// A lower bound of the free frames of a zone, without a look at the other CPUs.
    #[inline]
    pub(crate) fn far(&self, id: ZoneId, guard: &CpuGuard<'_>) -> i64 {
        let zone = self.zone(id);
        // Relaxed: a booking by plain stores is a hint anyway; see the module's head for what it may cost.
        let share = zone.share.free.load(Ordering::Relaxed) as i64;
        share + guard.slot.delta(id) - zone.slack()
    }

    fn deltas(&self, zone: ZoneId) -> i64 {
        self.cpus.iter().map(|cpu| cpu.delta(zone)).sum()
    }

    /// The CPUs' parts of the sum of whole blocks.
    fn whole_parts(&self, zone: ZoneId) -> i64 {
        self.cpus.iter().map(|cpu| cpu.whole(zone)).sum()
    }

    /// Adds frames that were freed, or that were booked and not taken.
    #[inline]
    pub(crate) fn pay_in(&self, id: ZoneId, guard: Option<&CpuGuard<'_>>, frames: i64) {
        let zone = self.zone(id);
        let Some(guard) = guard else {
            if frames != 0 {
                add(&zone.share.free, frames);
            }
            return;
        };
        let delta = guard.slot.delta(id) + frames;
        if delta.abs() <= zone.drift() {
            guard.slot.set_delta(id, delta);
        } else {
            fold_free(zone, guard.slot, id, delta);
        }
    }

    /// Counts blocks that became whole, or ceased to be.
    #[inline]
    pub(crate) fn count_whole(&self, id: ZoneId, guard: Option<&CpuGuard<'_>>, blocks: i64) {
        let zone = self.zone(id);
        let Some(guard) = guard else {
            add(&zone.share.whole, blocks);
            return;
        };
        let whole = guard.slot.whole(id) + blocks;
        if whole.abs() <= WHOLE_DRIFT {
            guard.slot.set_whole(id, whole);
        } else {
            fold_whole(zone, guard.slot, id, whole);
        }
    }

    /// Gives the CPU's deltas back to the zones.
    pub(crate) fn fold(&self, guard: &CpuGuard<'_>) {
        for id in self.zones() {
            let (zone, slot) = (self.zone(id), guard.slot);
            fold_free(zone, slot, id, slot.delta(id));
            fold_whole(zone, slot, id, slot.whole(id));
        }
    }

    /// Frames that can be taken in a zone. Exact while nothing is under way.
    pub(crate) fn free_in(&self, zone: ZoneId) -> i64 {
        self.zone(zone).share.free.load(Ordering::Acquire) as i64 + self.deltas(zone)
    }

    /// Wholly free blocks of a zone. Exact while nothing is under way.
    pub(crate) fn whole_in(&self, zone: ZoneId) -> i64 {
        let own = self.zone(zone).share.whole.load(Ordering::Acquire) as i64;
        own + self.whole_parts(zone)
    }

    /// Runs `claim`, which takes a whole block and gives whether it did, unless that would leave fewer than the zone's
    /// reserve. The block is booked meanwhile, so that two CPUs do not both take the last one above the reserve.
    ///
    /// `guard` is that by which `claim` counts what it takes.
    pub(crate) fn sparing(
        &self,
        id: ZoneId,
        guard: Option<&CpuGuard<'_>>,
        claim: &mut dyn FnMut() -> bool,
    ) -> bool {
        let zone = self.zone(id);
        if zone.reserve == 0 {
            // The sum follows the ledgers late; where nothing is kept the search alone decides.
            return claim();
        }
        let one = |whole: i64| i64::from(whole > i64::from(zone.reserve));
        if draw(&zone.share.whole, || self.whole_parts(id), one) == 0 {
            return false;
        }
        let claimed = claim();
        if claimed {
            // The change of the block's ledger has counted it. The booking is undone where that was counted, not in the
            // share: the share must not take a value again that others may have read before.
            self.count_whole(id, guard, 1);
        } else {
            add(&zone.share.whole, 1);
        }
        claimed
    }
}

/// Takes a part of a sum out of the zone's `share`: `amount` gives how much, from the whole sum; gives how much was
/// taken. `parts` reads what CPUs keep of the sum.
#[inline]
fn draw(share: &AtomicU64, parts: impl Fn() -> i64, amount: impl Fn(i64) -> i64) -> i64 {
    loop {
        // Before the parts; Acquire pairs with the folds.
        let now = share.load(Ordering::Acquire);
        let drawn = amount(now as i64 + parts());
        if drawn == 0 {
            return 0;
        }
        let left = now.wrapping_sub(drawn as u64);
        // Acquire and release as the folds, with which it competes.
        let done = share.compare_exchange_weak(now, left, Ordering::AcqRel, Ordering::Relaxed);
        if done.is_ok() {
            return drawn;
        }
    }
}

fn add(sum: &AtomicU64, amount: i64) {
    // AcqRel: orders the folds' two steps for whoever reads the sum; see the module's head.
    sum.fetch_add(amount as u64, Ordering::AcqRel);
}

/// Adds `part`, which a CPU counted, to the zone's share, and sets what the CPU still has to 0, in the order that makes
/// readers see too little rather than too much. `clear` stores with release.
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

fn fold_free(zone: &Zone<'_>, slot: &CpuSlot, id: ZoneId, delta: i64) {
    fold_one(&zone.share.free, delta, &|| slot.set_delta(id, 0));
}

fn fold_whole(zone: &Zone<'_>, slot: &CpuSlot, id: ZoneId, whole: i64) {
    fold_one(&zone.share.whole, whole, &|| slot.set_whole(id, 0));
}
