//! Reclaim on behalf of one request, which waits for it.

use dirigible_frames::{Event, Order, Platform, Reclaim, sync::Ordering};

use crate::{
    Reclaimer, Who,
    callers::{Inside, TurnedAway},
    hand::{Effort, Pass},
    zones::Zones,
};

/// The priority of the first pass.
pub(crate) const FIRST_PRIORITY: u8 = 12;
/// Requests of a larger order ask for room to compact in.
const COSTLY: u8 = 3;
/// How often a request waits for what it has given to swap, at most: a virtual clock may stand still.
const WAITS: u32 = 64;

/// What a request has come to.
struct Request {
    goal: u64,
    /// Of the next pass.
    priority: u8,
    /// There was the last pass.
    ended: bool,
    /// Frames that were freed, those of objects among them.
    freed: u64,
    /// Frames that it has given to swap. They become free when they are written, for it or for others.
    swapped: u64,
    /// Frames that it has looked at since it freed one or gave one to swap.
    vain: u64,
    /// Until when it waits for writes, once it has begun to.
    until: Option<u64>,
    waits: u32,
    /// Nothing more can be had but what is being written: small passes collect that.
    collects: bool,
}

impl Request {
    fn new(goal: u64) -> Self {
        Self {
            goal,
            priority: FIRST_PRIORITY,
            ended: false,
            freed: 0,
            swapped: 0,
            vain: 0,
            until: None,
            waits: 0,
            collects: false,
        }
    }

    fn is_over(&self) -> bool {
        self.ended || self.freed >= self.goal
    }

    fn lacks(&self) -> u64 {
        self.goal.saturating_sub(self.freed)
    }

    /// How many frames it may still give to swap.
    fn swaps(&self) -> u64 {
        match self.collects {
            true => 0,
            false => self.goal.saturating_sub(self.swapped).min(self.lacks()),
        }
    }

    /// Whether it only waits for what it has given to swap.
    fn has_given_enough(&self) -> bool {
        self.swapped > self.freed && self.swaps() == 0
    }

    fn add(&mut self, pass: &Pass, objects: u64) {
        self.freed += pass.freed + objects;
        self.swapped += pass.swapped;
        if pass.freed + pass.swapped + objects > 0 {
            self.vain = 0;
        } else {
            self.vain += pass.scanned;
        }
    }

    /// Whether it waits for writes before the next pass. It does if it has given away as much as it lacks, for as long
    /// as it has time; and once if most of what it has met is being written, or is to be written.
    fn waits(&self, pass: &Pass, now: u64) -> bool {
        if self.is_over() || pass.freed > 0 || self.waits >= WAITS {
            return false;
        }
        let met = pass.scanned - pass.spared;
        let unwritten = pass.writeback + pass.immediate + pass.swapped;
        match self.until {
            Some(until) => self.has_given_enough() && now < until,
            None => self.has_given_enough() || self.freed == 0 && unwritten * 2 > met,
        }
    }

    fn wait_until(&mut self, now: u64, most: u64) -> u64 {
        self.waits += 1;
        *self.until.get_or_insert(now.saturating_add(most))
    }

    /// The next pass looks at more. If all frames (`size`) have been looked at in vain, it is the last one, in which
    /// both kinds are taken; after that only writes can help that are under way.
    fn lower(&mut self, pass: &Pass, size: u64) {
        match self.priority {
            // What is on its way makes room without a look at more.
            _ if self.swaps() == 0 && pass.freed > 0 => {}
            _ if self.collects => self.ended = true,
            0 if self.swapped > self.freed => {
                self.collects = true;
                self.priority = FIRST_PRIORITY;
            }
            0 => self.ended = true,
            _ if self.vain > size => self.priority = 0,
            _ => self.priority -= 1,
        }
    }
}

impl<P: Platform> Reclaim for Reclaimer<'_, P> {
    /// Passes at priorities 12 to 0, until `frames` frames are free (frames of objects count): so it looks at each
    /// frame five times at most, and at some more. What nobody uses, and is clean, is found. For orders above 3 it ends
    /// as soon as a zone has twice the request above its low watermark: compaction has room then. Gives 0 at once to who
    /// is inside of reclaim already.
    fn reclaim(&self, frames: usize, order: Order) -> usize {
        let Some(_inside) = self.wait_to_enter() else {
            return 0;
        };
        let mut request = Request::new(frames as u64);
        while !request.is_over() && !self.has_room(order) {
            let (pass, objects) = self.pass(Effort {
                who: Who::Direct,
                priority: request.priority,
                goal: request.lacks(),
                order,
                swaps: request.swaps(),
                zones: Zones::ALL,
            });
            request.add(&pass, objects);
            if request.waits(&pass, self.platform.now()) {
                let end = request.wait_until(self.platform.now(), self.config.throttle_ns);
                self.throttle(end);
            } else {
                request.lower(&pass, self.generations.size());
            }
        }
        let freed = request.freed;
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
                frames.zone_free_frames(zone) >= enough + frames.stranded_frames(zone)
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
