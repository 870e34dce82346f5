//! Background reclaim, a bounded piece at a time.

use dirigible_frames::{Event, FRAMES_PER_BLOCK, Order, Platform, ZoneId, sync::Ordering};

use crate::{
    KswapdConfig, Reclaimer, Who,
    direct::FIRST_PRIORITY,
    hand::{Effort, LAST_OF_KSWAPD, Pass},
    zones::Zones,
};

/// Keeps memory free in all zones.
///
/// It begins when a zone has less than its low watermark free, or when somebody wakes it ([`Reclaim::wake`]) and a zone
/// is below its goal; it ends when all zones have reached their goals: the high watermark and a gap, and room for
/// compaction to empty a block. It never works for more than that: what a larger request lacks then is not memory.
/// Frames of zones that have reached theirs stay: a zone that cannot get there does not empty the others.
///
/// A *pass* looks at a share of all frames; passes that free too little are followed by one at a lower priority, with a
/// larger share, down to 1: a *round*. After 16 rounds in which nothing was freed, and nothing was being written, it
/// gives the zones up that lack something then, until a request has reclaimed something, or somebody has freed something
/// there. The other zones it keeps free as before.
///
/// [`Reclaim::wake`]: dirigible_frames::Reclaim::wake
pub struct Kswapd<'r, 'a, P> {
    reclaimer: &'r Reclaimer<'a, P>,
    config: KswapdConfig,
    /// The round under way.
    round: Option<Round>,
    /// Rounds in a row in which nothing was freed.
    vain: u32,
    /// What there was when it gave up.
    hopeless: Option<Hopeless>,
    paused: Option<Pause>,
}

/// A sixteenth of a fall of free memory is followed with each look: a short one is none.
const FALL: u64 = 16;

/// A round under way.
#[derive(Clone, Copy, Debug)]
struct Round {
    priority: u8,
    /// Frames that the pass still looks at.
    left: u64,
    /// All frames, when the pass began.
    size: u64,
    pass: Pass,
    /// Frames that the round has freed in earlier passes, and with objects.
    freed: u64,
    /// Frames that it has looked at in zones that lack something.
    met: u64,
    /// Frames that it has met in writing, or begun to write.
    in_flight: u64,
    /// Frames that it has given to swap.
    swapped: u64,
    /// Frames that the pass may give to swap.
    swaps: u64,
}

/// It lets writes end.
#[derive(Clone, Copy, Debug)]
struct Pause {
    /// Until when.
    end: u64,
    /// It has given frames to swap, and this many are being written: when a cluster of them has been, it goes on.
    swapping: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Hopeless {
    successes: u64,
    /// The zones that lacked something. Until there is hope it does not work for them.
    zones: Zones,
    /// Free frames of these.
    free: u64,
}

impl<'r, 'a, P: Platform> Kswapd<'r, 'a, P> {
    /// Background reclaim by `reclaimer`. There is one of it.
    pub fn new(reclaimer: &'r Reclaimer<'a, P>, config: KswapdConfig) -> Self {
        Self {
            reclaimer,
            config,
            round: None,
            vain: 0,
            hopeless: None,
            paused: None,
        }
    }

    /// Whether it works at the moment, and will go on in the next step.
    pub fn is_running(&self) -> bool {
        self.round.is_some()
    }

    /// Whether it has given up for now.
    pub fn has_given_up(&self) -> bool {
        self.hopeless.is_some()
    }

    /// Looks whether there is work, or does a bounded piece of it. Gives when to come again, on the same clock as `now`.
    /// Never waits.
    pub fn step(&mut self, now: u64) -> u64 {
        let later = now.saturating_add(self.config.tick_ns);
        if let Some(pause) = self.paused {
            let over = now >= pause.end || self.has_written(&pause);
            if !over && !self.is_urgent() && !self.is_balanced() {
                return pause.end.min(later);
            }
            self.paused = None;
        }
        let Some(round) = self.round.take().or_else(|| self.begin()) else {
            return later;
        };
        if self.is_balanced() {
            self.vain = 0;
            return later;
        }
        // A step inside of reclaim by the same caller: later.
        let Ok(_inside) = self.reclaimer.enter() else {
            self.round = Some(round);
            return later;
        };
        self.work(round, now)
    }

    /// The first round, if one is wanted.
    fn begin(&mut self) -> Option<Round> {
        // Relaxed: a hint. It is cleared before free memory is looked at.
        let wanted = &self.reclaimer.wanted;
        let woken = wanted.load(Ordering::Relaxed) && wanted.swap(false, Ordering::Relaxed);
        self.look_for_hope();
        let begins = self.any_zone(|low, _, free| free < low) || woken && !self.is_balanced();
        if !begins {
            return None;
        }
        let frames = self.reclaimer.generations.frames();
        let cpu = self.reclaimer.platform.cpu();
        frames.events().add(cpu, Event::KswapdWake, 1);
        Some(self.round())
    }

    fn round(&self) -> Round {
        let mut round = Round {
            priority: FIRST_PRIORITY,
            left: 0,
            size: 0,
            pass: Pass::default(),
            freed: 0,
            met: 0,
            in_flight: 0,
            swapped: 0,
            swaps: 0,
        };
        self.begin_pass(&mut round);
        round
    }

    fn begin_pass(&self, round: &mut Round) {
        round.size = self.reclaimer.generations.size();
        round.left = self.reclaimer.share(round.priority);
        round.pass = Pass::default();
        // What is being written becomes free without more. Other writes must not hold swap up for good.
        let (_, writeback) = self.reclaimer.unwritten();
        let cluster = self.reclaimer.config.cluster;
        let least = if round.priority == FIRST_PRIORITY {
            cluster
        } else {
            0
        };
        round.swaps = self.lack().saturating_sub(writeback).max(least);
    }

    /// Frames that the zones lack to their goals.
    fn lack(&self) -> u64 {
        let frames = self.reclaimer.generations.frames();
        let lacking = self.lacking();
        let lacks = frames
            .zones()
            .filter(|&zone| lacking.has(zone))
            .map(|zone| {
                self.goal(zone)
                    .saturating_sub(frames.zone_free_frames(zone))
            });
        lacks.sum()
    }

    /// A piece of the pass under way.
    fn work(&mut self, mut round: Round, now: u64) -> u64 {
        let piece = self.config.piece.clamp(1, round.left.max(1));
        let scanned = round.pass.scanned;
        let effort = Effort {
            who: Who::Kswapd,
            priority: round.priority,
            goal: u64::MAX,
            order: Order::BASE,
            swaps: round.swaps,
            zones: self.lacking(),
        };
        self.reclaimer
            .look(effort, piece.min(round.left), &mut round.pass);
        let looked_at = round.pass.scanned - scanned;
        round.left = round.left.saturating_sub(looked_at);
        if looked_at > 0 && round.left > 0 {
            self.round = Some(round);
            return now;
        }
        self.end_pass(round, now)
    }

    fn end_pass(&mut self, mut round: Round, now: u64) -> u64 {
        let (pass, priority) = (round.pass, round.priority);
        self.reclaimer.write_what_was_met(&pass);
        let objects = self
            .reclaimer
            .shrink_slabs(Who::Kswapd, priority, pass.scanned, round.size);
        round.freed += pass.freed + objects;
        round.met += pass.scanned - pass.passed;
        round.swapped += pass.swapped;
        round.in_flight += pass.writeback + pass.written + pass.swapped;
        let in_trouble = round.met > 0 && priority < self.reclaimer.config.write_priority;
        if round.freed >= self.config.progress {
            self.vain = 0;
            self.round = Some(self.round());
            return now;
        }
        if priority > LAST_OF_KSWAPD {
            round.priority -= 1;
            self.begin_pass(&mut round);
            self.round = Some(round);
        } else {
            let waits = round.freed == 0 && round.in_flight > 0;
            let vain = round.freed == 0 && !waits;
            self.vain = if vain { self.vain + 1 } else { 0 };
            if self.vain >= self.config.rounds {
                self.give_up();
                return now.saturating_add(self.config.tick_ns);
            }
            self.round = Some(self.round());
            if waits {
                // Writes end by themselves; until then it does not look without a rest, however urgent it is.
                let rest = now.saturating_add(self.config.tick_ns);
                return self.pause(now, round.swapped).max(rest);
            }
        }
        if in_trouble {
            self.pause(now, round.swapped)
        } else {
            now
        }
    }

    /// When to look again after a pass in trouble: writes take time. Not while a zone is below its min watermark, where
    /// requests wait; and when one gets there, somebody wakes it, or what the round gave to swap (`swapped`) has been
    /// written, the pause is over.
    fn pause(&mut self, now: u64, swapped: u64) -> u64 {
        let frames = self.reclaimer.generations.frames();
        if self.is_short() {
            let cpu = self.reclaimer.platform.cpu();
            frames.events().add(cpu, Event::KswapdSkipWait, 1);
            return now;
        }
        // Relaxed: a hint. Who woke it before has seen it work since.
        self.reclaimer.wanted.store(false, Ordering::Relaxed);
        let end = now.saturating_add(self.config.pause_ns);
        let swapping = (swapped > 0).then(|| self.reclaimer.unwritten().1);
        self.paused = Some(Pause { end, swapping });
        end.min(now.saturating_add(self.config.tick_ns))
    }

    /// Whether enough of what went to swap has been written to go on.
    fn has_written(&self, pause: &Pause) -> bool {
        pause.swapping.is_some_and(|before| {
            let (_, writeback) = self.reclaimer.unwritten();
            before > 0 && writeback == 0 || writeback + self.reclaimer.config.cluster <= before
        })
    }

    fn is_short(&self) -> bool {
        self.any_zone(|_, min, free| free < min)
    }

    fn is_urgent(&self) -> bool {
        self.is_short() || self.reclaimer.wanted.load(Ordering::Relaxed)
    }

    fn give_up(&mut self) {
        self.vain = 0;
        let zones = self.lacking().and(self.given_up());
        if zones.is_empty() {
            return;
        }
        self.hopeless = Some(Hopeless {
            // Relaxed: a number on its own.
            successes: self.reclaimer.successes.load(Ordering::Relaxed),
            zones,
            free: self.free_in(zones),
        });
    }

    /// The zones that it does not work for.
    fn given_up(&self) -> Zones {
        self.hopeless
            .map_or(Zones::default(), |hopeless| hopeless.zones)
    }

    fn free_in(&self, zones: Zones) -> u64 {
        let frames = self.reclaimer.generations.frames();
        let these = frames.zones().filter(|&zone| zones.has(zone));
        these.map(|zone| frames.zone_free_frames(zone)).sum()
    }

    /// Takes up again what it has given up, if there is reason to.
    fn look_for_hope(&mut self) {
        let free = self.free_in(self.given_up());
        let Some(hopeless) = &mut self.hopeless else {
            return;
        };
        let successes = self.reclaimer.successes.load(Ordering::Relaxed);
        let rise = hopeless.free.saturating_add(self.config.progress.max(1));
        if successes == hopeless.successes && free < rise {
            // What is taken for long and freed later is something freed; what is taken for a moment is not.
            let fall = hopeless.free.saturating_sub(free);
            hopeless.free -= fall.div_ceil(FALL);
            return;
        }
        self.hopeless = None;
    }

    fn is_balanced(&self) -> bool {
        self.lacking().is_empty()
    }

    /// The zones that are below their goal and not given up.
    fn lacking(&self) -> Zones {
        let frames = self.reclaimer.generations.frames();
        let lack = |zone: &ZoneId| frames.zone_free_frames(*zone) < self.goal(*zone);
        let lacking: Zones = frames.zones().filter(lack).collect();
        lacking.without(self.given_up())
    }

    /// What a zone should have free.
    fn goal(&self, zone: ZoneId) -> u64 {
        let frames = self.reclaimer.generations.frames();
        let (marks, managed) = (frames.watermarks(zone), frames.zone_managed(zone));
        let gap = marks.low.min(managed / 100);
        // A block that is emptied takes as much of the zone for a while; of a small zone that would be too much.
        let block = (FRAMES_PER_BLOCK as u64).min(managed / 16);
        (marks.high + gap).max(marks.low + block)
    }

    /// Whether `test` is true of the low and min watermark and the free frames of any zone that is not given up.
    fn any_zone(&self, test: impl Fn(u64, u64, u64) -> bool) -> bool {
        let frames = self.reclaimer.generations.frames();
        let given_up = self.given_up();
        let mut zones = frames.zones().filter(|&zone| !given_up.has(zone));
        zones.any(|zone| {
            let marks = frames.watermarks(zone);
            test(marks.low, marks.min, frames.zone_free_frames(zone))
        })
    }
}
