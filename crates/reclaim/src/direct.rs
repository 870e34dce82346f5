//! Reclaim on behalf of one request, which waits for it.

use dirigible_frames::{Event, Order, Platform, Reclaim, sync::Ordering};

use crate::{
    Reclaimer, Who,
    callers::{Inside, TurnedAway},
    hand::Effort,
    zones::Zones,
};

/// The priority of the first pass.
pub(crate) const FIRST_PRIORITY: u8 = 12;
/// Requests of a larger order ask for room to compact in.
const COSTLY: u8 = 3;

impl<P: Platform> Reclaim for Reclaimer<'_, P> {
    /// Passes at priorities 12 to 0, until `frames` frames are free (frames of objects count): so it looks at each
    /// frame five times at most, and at some more. What nobody uses, and is clean, is found. For orders above 3 it ends
    /// as soon as a zone has twice the request above its low watermark: compaction has room then. Gives 0 at once to who
    /// is inside of reclaim already.
    fn reclaim(&self, frames: usize, order: Order) -> usize {
        let Some(_inside) = self.wait_to_enter() else {
            return 0;
        };
        let goal = frames as u64;
        let (mut freed, mut swapped) = (0, 0);
        // Until when it waits for writes, once it has begun to.
        let mut until = None;
        for priority in (0..=FIRST_PRIORITY).rev() {
            if freed >= goal || self.has_room(order) {
                break;
            }
            let (pass, objects) = self.pass(Effort {
                who: Who::Direct,
                priority,
                goal: goal - freed,
                order,
                // What it has given away becomes free, for it or for others.
                swaps: goal.saturating_sub(swapped).min(goal - freed),
                zones: Zones::ALL,
            });
            freed += pass.freed + objects;
            swapped += pass.swapped;
            let unwritten = pass.writeback + pass.immediate + pass.swapped;
            let met = pass.scanned - pass.spared;
            let waits = match until {
                None => freed == 0 && unwritten * 2 > met,
                // What it has waited for is free now, or was not enough: for the rest it waits in the same way, as long
                // as it has time.
                Some(until) => pass.freed == 0 && swapped > 0 && self.platform.now() < until,
            };
            if waits && freed < goal {
                let now = self.platform.now();
                let end = until.unwrap_or(now.saturating_add(self.config.throttle_ns));
                until = Some(end);
                self.throttle(end);
            }
        }
        if freed > 0 {
            // Relaxed: a number on its own.
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
        freed as usize
    }

    fn wake(&self) {
        self.want_background();
    }
}

impl<P: Platform> Reclaimer<'_, P> {
    /// Lets the caller in, after a bounded wait if too many others are inside: they are about to free something.
    fn wait_to_enter(&self) -> Option<Inside<'_>> {
        let until = self.platform.now().saturating_add(self.config.throttle_ns);
        for _ in 0..self.config.throttle_looks.max(1) {
            match self.enter() {
                Ok(inside) => return Some(inside),
                Err(TurnedAway::Inside) => return None,
                // Who lets nobody run waits in vain.
                Err(TurnedAway::Full) if self.is_alone() || self.platform.now() >= until => break,
                Err(TurnedAway::Full) => self.platform.relax(),
            }
        }
        None
    }

    /// Whether the caller is the processor itself, not one of several that share it: nobody runs there while it waits.
    fn is_alone(&self) -> bool {
        let cpu = self.platform.cpu();
        self.platform.caller(cpu) == cpu.index() as u64 + 1
    }

    /// Whether compaction has room for a request of `order`.
    pub(crate) fn has_room(&self, order: Order) -> bool {
        let frames = self.generations.frames();
        order.get() > COSTLY
            && frames.zones().any(|zone| {
                let enough = frames.watermarks(zone).low + 2 * order.frames() as u64;
                frames.zone_free_frames(zone) >= enough
            })
    }

    /// Most of what was looked at is being written, or is to be written by the flusher, which has been woken: waits until
    /// some of it has been, or until the time `until`. Takes what the disk has finished itself, as nobody else may run.
    ///
    /// A caller that is the processor itself, not one of several that share it, lets no flusher run while it waits: a
    /// daemon's step (the balloon's worker), or the kernel. It waits for what is in flight only; that ends without help.
    fn throttle(&self, until: u64) {
        let cpu = self.platform.cpu();
        let alone = self.is_alone();
        let (dirty, writeback) = self.unwritten();
        if alone && writeback == 0 {
            return;
        }
        let events = self.generations.frames().events();
        events.add(cpu, Event::ReclaimThrottled, 1);
        let before = dirty + writeback;
        for _ in 0..self.config.throttle_looks {
            self.platform.relax();
            self.each_owner(|owner| owner.poll());
            let (dirty, writeback) = self.unwritten();
            let now = dirty + writeback;
            // A cluster, or all.
            let enough = now == 0 || now + self.config.cluster <= before;
            if enough || alone && writeback == 0 || self.platform.now() >= until {
                break;
            }
        }
    }
}
