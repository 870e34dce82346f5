//! One decision of reclaim and compaction: which frames of a block move, and which are dropped because reclaim would
//! take them next.
//!
//! A huge page that is wanted when memory is full costs 512 frames, which reclaim has to free. Moving the contents of a
//! block and then reclaiming as many frames elsewhere is the work twice, if contents that nobody misses lie in the
//! block itself. So with [`drops_cold`](crate::CompactionConfig::drops_cold) the frames of a block are isolated first,
//! then each owner says which of them it would rather drop, and only the others need targets.
//!
//! Contents that are nowhere else are written before they are dropped; the block stays isolated meanwhile, so that nobody
//! takes the frames that became free.
//!
//! No more goes than reclaim owes, or than a request has no targets for: old frames only, never what merely lies beside
//! them.

use arrayvec::ArrayVec;
use dirigible_frames::{
    BlockId, CpuId, FRAMES_PER_BLOCK, FrameClass, FrameFlags, Order, OwnerId, Pfn, Platform,
    Watermark, ZoneId,
};

use crate::evacuate::Attempt;
use crate::migrate::{Freed, gather};
use crate::{EvacuateError, Mobility, MovePair};

/// Frames that an owner writes at a time, at most.
const WRITTEN_TOGETHER: usize = 32;

/// What is to become of an isolated frame of a block that is emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Its contents go to another frame.
    Move,
    /// Its contents are given up: they are somewhere else, and reclaim would take the frame soon.
    Drop,
    /// Reclaim would take the frame soon, but its contents must be written first.
    Write,
}

/// Why blocks are emptied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Somebody named them. Nothing is dropped, and what is set aside leaves this watermark.
    Named(Watermark),
    /// A request takes the block as a huge page.
    HugePage,
    /// A request found no room in blocks of its migratetype.
    Room,
    /// A reserve of wholly free blocks.
    Reserve,
}

impl Purpose {
    /// What is set aside leaves this in each zone.
    pub(crate) const fn leaves(self) -> Watermark {
        match self {
            Self::Named(watermark) => watermark,
            Self::HugePage => Watermark::Min,
            Self::Room | Self::Reserve => Watermark::Low,
        }
    }
}

/// How much of some blocks may be dropped.
pub(crate) struct Plan {
    pub(crate) purpose: Purpose,
    /// Whether anything is dropped at all.
    pub(crate) drops: bool,
    /// Frames that reclaim would have to free if nothing was dropped.
    pub(crate) owed: usize,
}

/// Isolated frames of one owner that are written together.
struct Writing {
    batch: ArrayVec<Pfn, WRITTEN_TOGETHER>,
    owner: Option<OwnerId>,
    /// Frames that are being written.
    frames: usize,
}

impl Writing {
    const fn new() -> Self {
        Self {
            batch: ArrayVec::new_const(),
            owner: None,
            frames: 0,
        }
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Frames that are not free any more in the end. A reserve is there to be taken.
    const fn takes(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::HugePage => FRAMES_PER_BLOCK as u64,
            Purpose::Reserve => self
                .config
                .reserve_high
                .saturating_mul(FRAMES_PER_BLOCK as u64),
            _ => 0,
        }
    }

    fn drops(&self, purpose: Purpose) -> bool {
        self.config.drops_cold && !matches!(purpose, Purpose::Named(_))
    }

    /// Frames that a zone lacks to its high watermark when `taken` are wanted.
    fn lack(&self, zone: ZoneId, taken: u64) -> u64 {
        let mark = self.frames.watermarks(zone).high.saturating_add(taken);
        mark.saturating_sub(self.frames.zone_free_frames(zone))
    }

    /// How many frames of a block may do without a target at most, since they can be dropped.
    #[inline(never)]
    pub(crate) fn most_drops(&self, zone: ZoneId, purpose: Purpose) -> u64 {
        match purpose {
            _ if !self.drops(purpose) => 0,
            Purpose::Reserve => self.owed(zone, purpose).min(FRAMES_PER_BLOCK as u64),
            _ => FRAMES_PER_BLOCK as u64,
        }
    }

    /// The plan for blocks of the zone of `first`, before they are isolated: their own free frames count as free.
    pub(crate) fn plan(&self, first: Option<&BlockId>, purpose: Purpose) -> Plan {
        let owed = first.map_or(0, |&block| {
            self.owed(self.frames.zone_of_block(block), purpose)
        });
        Plan {
            purpose,
            drops: self.drops(purpose),
            owed: owed as usize,
        }
    }

    /// Frames that reclaim owes a zone before blocks are emptied: so many are dropped instead of moved, if they can be.
    #[inline(never)]
    pub(crate) fn owed(&self, zone: ZoneId, purpose: Purpose) -> u64 {
        match self.drops(purpose) {
            true => {
                let stranded = match purpose {
                    Purpose::HugePage => self.frames.stranded_frames(zone),
                    _ => 0,
                };
                self.lack(zone, self.takes(purpose) + stranded)
            }
            false => 0,
        }
    }

    /// How many frames of a block would be dropped, if it has so many cold ones: what is owed, and for a request all where
    /// there are no targets for a whole block.
    #[inline(never)]
    pub(crate) fn may_drop(&self, zone: ZoneId, purpose: Purpose) -> u64 {
        let requested = self.drops(purpose) && purpose != Purpose::Reserve;
        if requested && self.blocks_with_room(zone, purpose.leaves(), 1, 0) == 0 {
            return FRAMES_PER_BLOCK as u64;
        }
        self.owed(zone, purpose)
    }

    /// Reserves targets for the isolated frames of a block that move. Drops the others, or has them written:
    /// [`drop_written`](Self::drop_written) drops these. Gives how many pairs are left, which stand first: all with a
    /// target, unless the attempt failed.
    #[inline(never)]
    pub(crate) fn decide(
        &self,
        cpu: CpuId,
        attempt: &mut Attempt,
        pairs: &mut [MovePair],
        plan: &mut Plan,
    ) -> usize {
        let watermark = plan.purpose.leaves();
        let all = pairs.len();
        let movers = gather(pairs, &|pair| self.fate(pair.from) == Fate::Move);
        // What reclaim owes goes. What a request has no targets for goes as well; the reserve does without.
        let moves = all - (all - movers).min(plan.owed);
        let least = match plan.purpose {
            Purpose::Reserve => moves,
            _ => movers,
        };
        let mut ready = self.reserve_targets(cpu, attempt, &mut pairs[..moves], watermark);
        if ready < least {
            attempt.error = Some(EvacuateError::NoTargets);
            return all;
        }
        let mut left = all;
        let mut dropped = 0;
        let mut writing = Writing::new();
        while left > ready {
            let from = pairs[left - 1].from;
            match self.fate(from) {
                Fate::Write => {
                    self.write_first(cpu, &mut writing, from);
                    left -= 1;
                    continue;
                }
                Fate::Drop if self.drop_frame(cpu, from) => {
                    dropped += 1;
                    left -= 1;
                    continue;
                }
                _ => {}
            }
            // It has changed: it moves after all.
            pairs.swap(left - 1, ready);
            let late = &mut pairs[ready..=ready];
            if self.reserve_targets(cpu, attempt, late, watermark) == 0 {
                attempt.error = Some(EvacuateError::NoTargets);
                break;
            }
            ready += 1;
        }
        self.write_all(cpu, &mut writing);
        attempt.writes = (writing.frames > 0).then_some(plan.purpose);
        plan.owed = plan.owed.saturating_sub(all - left);
        self.account_dropped(cpu, dropped, plan.purpose);
        left
    }

    /// What the owner of an isolated frame would rather have become of it.
    #[inline(never)]
    fn fate(&self, frame: Pfn) -> Fate {
        let kind = self.isolated_kind(frame);
        kind.filter(|kind| kind.class == FrameClass::Movable)
            .and_then(|kind| self.registry.enter(kind.owner))
            .map_or(Fate::Move, |owner| owner.plan(frame))
    }

    /// Drops an isolated frame, if that is still possible.
    #[inline(never)]
    fn drop_frame(&self, cpu: CpuId, frame: Pfn) -> bool {
        let Some(kind) = self.isolated_kind(frame) else {
            return false;
        };
        let Some(owner) = self.registry.enter(kind.owner) else {
            return false;
        };
        let dropped = owner.drop_frame(frame);
        if dropped {
            Freed::new(self.frames, cpu).push(frame, Order::BASE);
            self.registry.let_go(kind.owner, 1);
        }
        dropped
    }

    /// Has an isolated frame written, together with others of the same owner.
    #[inline(never)]
    fn write_first(&self, cpu: CpuId, writing: &mut Writing, frame: Pfn) {
        let owner = self.isolated_kind(frame).map(|kind| kind.owner);
        if writing.batch.is_full() || writing.owner != owner {
            self.write_all(cpu, writing);
        }
        writing.owner = owner;
        writing.batch.push(frame);
    }

    fn write_all(&self, cpu: CpuId, writing: &mut Writing) {
        let owner = writing.owner.take();
        let Some(id) = owner.filter(|_| !writing.batch.is_empty()) else {
            return;
        };
        let count = writing.batch.len() as u64;
        match self.registry.enter(id) {
            Some(owner) => writing.frames += owner.write_frames(&writing.batch),
            None => debug_assert!(false, "an isolated frame keeps its owner registered"),
        }
        writing.batch.clear();
        self.registry.let_go(id, count);
        self.accounts
            .put_back(self.frames.events(), cpu, FrameClass::Movable, count);
    }

    /// Looks at a block whose frames were to be written before they are dropped. Drops them when all writes are over.
    /// Gives whether some are still under way; who writes them has been polled.
    #[inline(never)]
    pub(crate) fn drop_written(&self, cpu: CpuId, block: BlockId, purpose: Purpose) -> bool {
        let mut owners = 0;
        for frame in self.frames.used_frames(block) {
            let info = self.frames.frame(frame);
            if let Some(info) = info.filter(|info| info.flags.contains(FrameFlags::WRITEBACK)) {
                owners |= 1 << info.owner.get();
            }
        }
        if owners != 0 {
            self.poll_owners(owners, self.platform.now());
            return true;
        }
        let mut dropped = 0;
        for frame in self.frames.used_frames(block) {
            let Some((kind, order)) = self.isolate_frame(frame) else {
                continue;
            };
            self.accounts
                .isolated(self.frames.events(), cpu, kind.class, order.frames() as u64);
            if self.fate(frame) == Fate::Drop && self.drop_frame(cpu, frame) {
                dropped += 1;
            } else {
                self.putback_frame(cpu, frame);
            }
        }
        self.account_dropped(cpu, dropped, purpose);
        false
    }

    fn account_dropped(&self, cpu: CpuId, frames: u64, purpose: Purpose) {
        let background = purpose == Purpose::Reserve;
        self.accounts
            .dropped(self.frames.events(), cpu, frames, background);
    }
}
