//! What becomes of one frame that the clock hand meets.

use dirigible_frames::{Event, FrameFlags, FrameInfo, FrameState, Marks, OwnerId, Pfn, Platform};

use crate::{
    Evictable, Generations, Kept, Kind, ReclaimConfig, Who,
    generations::generation,
    hand::{Effort, Pass},
    shares::{Draws, Shares},
};

/// What a frame's marks say of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Being written: freed as soon as that is over.
    Writeback,
    /// Used more than once: made young.
    Activate,
    /// Somebody has it in hand.
    InUse,
    /// Of a program, and there is no swap, or no room in it: made young, since nothing can be done for a while.
    Stuck,
    /// Used once: kept for a generation.
    Keep,
    /// Dirty, and not to be written by who reclaims.
    Immediate,
    /// Dirty: reclaim itself begins to write it.
    Write,
    /// Clean and not in use.
    Drop,
    /// Of a program, and not in use: it goes into swap.
    Swap,
    /// It could be taken, but its kind's share is used up for the moment.
    Spare,
}

/// What the caller has use for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    /// Frames of this zone; else all stay, and age as the others do.
    pub any: bool,
    /// More frames in swap.
    pub swap: bool,
}

/// What is to be done with a frame that was visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Nothing: it stays, or was not met.
    Stays,
    /// It was dropped, and is to be freed.
    Dropped,
    /// It is isolated, and is to be swapped out.
    Leaves,
}

/// Marks that say that the frame was used.
const USED: FrameFlags = FrameFlags::ACTIVE.union(FrameFlags::REFERENCED);

/// Whether who reclaims begins to write dirty frames itself: never a request, whose stack is deep and whose disk
/// requests would be in no order; background reclaim when it is in trouble.
pub(crate) fn writes(config: &ReclaimConfig, effort: &Effort) -> bool {
    effort.who == Who::Kswapd && effort.priority < config.write_priority
}

fn fate(info: &FrameInfo, writes: bool) -> Fate {
    let has = |mark| info.flags.contains(mark);
    if has(FrameFlags::WRITEBACK) {
        Fate::Writeback
    } else if has(FrameFlags::ACTIVE) {
        Fate::Activate
    } else if info.state != FrameState::Listed
        || info.refcount > 0
        || info
            .flags
            .intersects(FrameFlags::LOCKED.union(FrameFlags::PINNED))
    {
        Fate::InUse
    } else if has(FrameFlags::REFERENCED) {
        Fate::Keep
    } else if has(FrameFlags::DIRTY) {
        if writes { Fate::Write } else { Fate::Immediate }
    } else {
        Fate::Drop
    }
}

/// What a visit needs.
pub(crate) struct Visitor<'v, 'a, P> {
    pub generations: &'v Generations<'a>,
    pub platform: &'v P,
    pub config: &'v ReclaimConfig,
    pub effort: Effort,
    pub shares: Shares,
    pub draws: &'v Draws,
    /// The oldest sequence as it was when the walk of the block began.
    pub sequence: u32,
}

impl<P: Platform> Visitor<'_, '_, P> {
    /// The number of the oldest generation.
    pub fn oldest(&self) -> u8 {
        generation(self.sequence)
    }

    fn next(&self) -> u8 {
        generation(self.sequence.wrapping_add(1))
    }

    fn youngest(&self) -> u8 {
        generation(self.sequence.wrapping_add(3))
    }

    /// Looks at a frame of the oldest generation, whose owner has the number `id`. Whatever it finds, the frame is in
    /// another generation afterwards, or in none: so the oldest becomes empty.
    pub fn visit(
        &self,
        frame: Pfn,
        (id, owner): (OwnerId, Option<&dyn Evictable>),
        wanted: Wanted,
        pass: &mut Pass,
    ) -> Outcome {
        let oldest = self.oldest();
        let writes = writes(self.config, &self.effort);
        let kind = owner.map(Evictable::kind);
        let has_swap = kind == Some(Kind::Anonymous) && owner.is_some_and(Evictable::has_swap);
        // Once for a frame, however often the step is tried.
        let mut drawn = None;
        let mut takes = |kind| {
            *drawn.get_or_insert_with(|| {
                (kind == Kind::File || wanted.swap) && self.draws.takes(&self.shares, kind)
            })
        };
        let mut seen = Fate::InUse;
        // One step: what is decided is true of the frame as it is at that moment.
        let before = self.generations.change(frame, |info| {
            if info.generation != oldest {
                return None;
            }
            // It may have changed hands.
            let kind = kind.filter(|_| info.owner == id);
            seen = match (fate(info, writes), kind) {
                (seen @ (Fate::Activate | Fate::Keep), _) => seen,
                _ if !wanted.any => Fate::InUse,
                (Fate::Immediate | Fate::Write | Fate::Drop, Some(Kind::Anonymous)) => {
                    match has_swap {
                        false => Fate::Stuck,
                        true if takes(Kind::Anonymous) => Fate::Swap,
                        true => Fate::Spare,
                    }
                }
                (Fate::Drop, Some(Kind::File)) if !takes(Kind::File) => Fate::Spare,
                (Fate::Write | Fate::Drop, None) => Fate::InUse,
                (seen, _) => seen,
            };
            let (generation, flags) = match seen {
                Fate::Writeback | Fate::Immediate => {
                    (self.next(), info.flags.union(FrameFlags::RECLAIM))
                }
                Fate::Activate => (
                    self.youngest(),
                    info.flags.without(USED).without(FrameFlags::RECLAIM),
                ),
                Fate::Stuck => (self.youngest(), info.flags),
                Fate::InUse | Fate::Spare | Fate::Swap => (self.next(), info.flags),
                Fate::Keep => (self.next(), info.flags.without(USED)),
                // These are taken off the books first.
                Fate::Write | Fate::Drop => (oldest, info.flags),
            };
            Some(Marks {
                flags,
                generation,
                ..info.marks()
            })
        });
        if before.is_none() {
            // Somebody else has met it, or it has left.
            return Outcome::Stays;
        }
        pass.scanned += 1;
        pass.passed += u64::from(!wanted.any);
        match seen {
            Fate::Writeback => pass.writeback += 1,
            Fate::Activate => pass.activated += 1,
            Fate::Immediate => pass.immediate += 1,
            Fate::InUse | Fate::Stuck | Fate::Keep => {}
            Fate::Spare => pass.spared += 1,
            Fate::Swap => {
                if self.generations.frames().try_isolate(frame, id).is_ok() {
                    return Outcome::Leaves;
                }
            }
            Fate::Write | Fate::Drop => {
                let isolated = self.generations.frames().try_isolate(frame, id);
                let Some(owner) = owner.filter(|_| isolated.is_ok()) else {
                    self.leave(frame, FrameFlags::EMPTY);
                    return Outcome::Stays;
                };
                if seen == Fate::Write {
                    self.write(frame, owner, pass);
                } else if self.drop_clean(frame, owner, writes, pass) {
                    return Outcome::Dropped;
                }
            }
        }
        Outcome::Stays
    }

    /// Takes a frame off its owner's books; gives whether it is to be freed.
    fn drop_clean(&self, frame: Pfn, owner: &dyn Evictable, writes: bool, pass: &mut Pass) -> bool {
        match owner.drop_clean(frame, self.generations.evictions.now()) {
            Ok(()) => {
                self.generations.evictions.advance(1);
                self.generations.remove(frame);
                return true;
            }
            Err(Kept::InUse) => self.leave(frame, FrameFlags::EMPTY),
            Err(Kept::Writeback) => {
                pass.writeback += 1;
                self.leave(frame, FrameFlags::RECLAIM);
            }
            // It became dirty between the look and the isolation. Background reclaim in trouble meets it again soon.
            Err(Kept::Dirty) => {
                if !writes {
                    pass.immediate += 1;
                }
                self.leave(frame, FrameFlags::RECLAIM);
            }
        }
        owner.put_back(frame);
        false
    }

    fn write(&self, frame: Pfn, owner: &dyn Evictable, pass: &mut Pass) {
        // Before it begins, as its end takes the mark off: one that comes later would stay. Without room at the disk the
        // frame stays dirty and keeps the mark, as one that is only marked.
        self.leave(frame, FrameFlags::RECLAIM);
        let begun = owner.begin_write(frame);
        if begun == 0 {
            // No room for the request: the flusher writes it when there is.
            pass.unwritten += 1;
        } else {
            pass.written += begun as u64;
            self.generations.cost(Kind::File, begun as u64);
            pass.writeback += 1;
        }
        owner.put_back(frame);
    }

    /// Makes a frame that stays a little younger. Adds `mark`, which the end of a write takes off, only if there is a
    /// write to come or to end.
    fn leave(&self, frame: Pfn, mark: FrameFlags) {
        let (oldest, next) = (self.oldest(), self.next());
        self.generations.change(frame, |info| {
            let unwritten = FrameFlags::DIRTY.union(FrameFlags::WRITEBACK);
            let flags = if info.flags.intersects(unwritten) {
                info.flags.union(mark)
            } else {
                info.flags
            };
            (info.generation == oldest).then(|| Marks {
                flags,
                generation: next,
                ..info.marks()
            })
        });
    }

    /// Counts what a part of a pass has done.
    pub fn count(&self, before: &Pass, after: &Pass) {
        let (cpu, events) = (self.platform.cpu(), self.generations.frames().events());
        let (scan, steal) = match self.effort.who {
            Who::Kswapd => (Event::PgScanKswapd, Event::PgStealKswapd),
            Who::Direct | Who::Operator => (Event::PgScanDirect, Event::PgStealDirect),
        };
        let counts = [
            (scan, before.scanned, after.scanned),
            (steal, before.freed, after.freed),
            (Event::PgActivate, before.activated, after.activated),
            (Event::VmscanImmediate, before.immediate, after.immediate),
            (Event::VmscanWrite, before.written, after.written),
        ];
        for (event, before, after) in counts {
            if after > before {
                events.add(cpu, event, after - before);
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use dirigible_frames::{FrameClass, Order, OwnerId};

    fn info(flags: FrameFlags) -> FrameInfo {
        FrameInfo {
            state: FrameState::Listed,
            class: FrameClass::Movable,
            order: Order::BASE,
            owner: OwnerId::new(1).unwrap(),
            flags,
            refcount: 0,
            generation: 1,
            word: 0,
        }
    }

    #[test]
    fn marks_decide_in_this_order() {
        const DIRTY: FrameFlags = FrameFlags::DIRTY;
        let table = [
            (FrameFlags::EMPTY, Fate::Drop, Fate::Drop),
            (FrameFlags::RECLAIM, Fate::Drop, Fate::Drop),
            (FrameFlags::WORKINGSET, Fate::Drop, Fate::Drop),
            (DIRTY, Fate::Immediate, Fate::Write),
            (FrameFlags::REFERENCED, Fate::Keep, Fate::Keep),
            (DIRTY.union(FrameFlags::REFERENCED), Fate::Keep, Fate::Keep),
            (USED, Fate::Activate, Fate::Activate),
            (
                DIRTY.union(FrameFlags::ACTIVE),
                Fate::Activate,
                Fate::Activate,
            ),
            (FrameFlags::LOCKED, Fate::InUse, Fate::InUse),
            (FrameFlags::PINNED, Fate::InUse, Fate::InUse),
            (
                FrameFlags::WRITEBACK.union(FrameFlags::ACTIVE),
                Fate::Writeback,
                Fate::Writeback,
            ),
        ];
        for (flags, direct, in_trouble) in table {
            assert_eq!(fate(&info(flags), false), direct, "{flags:?}");
            assert_eq!(fate(&info(flags), true), in_trouble, "{flags:?}");
        }
        let used = FrameInfo {
            refcount: 1,
            ..info(FrameFlags::EMPTY)
        };
        assert_eq!(fate(&used, true), Fate::InUse);
        let isolated = FrameInfo {
            state: FrameState::Isolated,
            ..info(FrameFlags::EMPTY)
        };
        assert_eq!(fate(&isolated, true), Fate::InUse);
    }

    /// Direct reclaim never writes; background reclaim only below priority 10.
    #[test]
    fn pitfall_76_only_background_reclaim_in_trouble_writes() {
        let config = ReclaimConfig::default();
        for priority in 0..=12 {
            for who in [Who::Direct, Who::Operator, Who::Kswapd] {
                let effort = Effort {
                    who,
                    priority,
                    goal: 32,
                    order: Order::BASE,
                    swaps: 0,
                    zones: crate::zones::Zones::ALL,
                };
                let expected = who == Who::Kswapd && priority < 10;
                assert_eq!(writes(&config, &effort), expected, "{effort:?}");
            }
        }
    }
}
