//! Generations: which frames are old.

use dirigible_frames::{
    BlockId, CpuId, Event, FrameAllocator, FrameFlags, FrameInfo, Marks, Pfn,
    sync::{AtomicU32, AtomicU64, Ordering},
};

use crate::{
    evictable::Kind,
    index::Blocks,
    stamp::{EvictionClock, Stamp},
    tally::Tally,
};

/// Where a new frame begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// In the second oldest generation: read once, or ahead.
    New,
    /// In the youngest: known to be in use.
    Young,
}

/// Sequences that exist at a time.
const COUNT: u32 = 4;

/// The marks that say how a frame is used, which go with the contents when they move. The others belong to the place.
const CARRIED: FrameFlags = FrameFlags::DIRTY
    .union(FrameFlags::REFERENCED)
    .union(FrameFlags::RECLAIM)
    .union(FrameFlags::ACTIVE)
    .union(FrameFlags::WORKINGSET);

/// The generations of all reclaimable frames of an allocator.
///
/// An owner calls [`add`](Self::add) when a frame comes onto its books, [`used`](Self::used) at each use,
/// [`remove`](Self::remove) before the frame leaves.
///
/// # How it is kept
///
/// There are no lists. A frame's state word says its generation, 1 to 4; 0 is none. Four *sequences* exist at a time, the
/// oldest to the oldest + 3, and sequence `s` has the number `s % 4 + 1`. Ageing raises the oldest sequence by one: no
/// frame's word changes, the numbers rotate. It is done when no frame is left in the oldest generation. A frame that is
/// given the oldest number at just that moment becomes young by it: a mistake about its age, not about the books.
///
/// The tally word of each block counts its frames by generation ([`Tally`]), and a bit for each block and generation says
/// whether it may have any. Counts follow each change of a word by one atomic addition, so they are exact whenever
/// nothing is under way.
#[derive(Debug)]
pub struct Generations<'a> {
    frames: &'a FrameAllocator<'a>,
    /// The oldest sequence. It wraps at a multiple of four.
    oldest: AtomicU32,
    /// Frames of each generation, 1 to 4. Signed, since a frame may be counted out before it was counted in.
    counts: [AtomicU64; COUNT as usize],
    blocks: [Blocks; COUNT as usize],
    pub(crate) evictions: EvictionClock,
    /// A block's number and 1, or 0: a frame of it was written, and became one of the oldest, since the hand last asked.
    written: AtomicU32,
    /// By [`Kind`].
    costs: [AtomicU64; Kind::COUNT],
}

/// The number of sequence `sequence`.
pub(crate) const fn generation(sequence: u32) -> u8 {
    (sequence % COUNT + 1) as u8
}

impl<'a> Generations<'a> {
    /// The generations of `frames`. Allocates its tables from the heap, four bits a block.
    pub fn new(frames: &'a FrameAllocator<'a>) -> Self {
        let blocks = frames.block_capacity();
        Self {
            frames,
            oldest: AtomicU32::new(0),
            counts: Default::default(),
            blocks: core::array::from_fn(|_| Blocks::new(blocks)),
            evictions: EvictionClock::default(),
            written: AtomicU32::new(0),
            costs: Default::default(),
        }
    }

    /// The allocator.
    pub fn frames(&self) -> &'a FrameAllocator<'a> {
        self.frames
    }

    /// `frame`, which its owner holds, can be reclaimed from now on. A frame that is in a generation already changes over
    /// to the new one.
    pub fn add(&self, frame: Pfn, age: Age) {
        let to = match age {
            Age::New => generation(self.oldest_sequence().wrapping_add(1)),
            Age::Young => self.youngest(),
        };
        self.change(frame, |info| {
            Some(Marks {
                generation: to,
                ..info.marks()
            })
        });
    }

    /// `frame` is about to leave its owner's books. Its marks stay: the owner reports a dirty one as clean
    /// ([`dirtied`](Self::dirtied)). Does nothing if the frame is in no generation.
    pub fn remove(&self, frame: Pfn) {
        self.change(frame, |info| {
            (info.generation != 0).then(|| Marks {
                generation: 0,
                ..info.marks()
            })
        });
    }

    /// `to` has taken the place of `from` (a migration): same generation, and the same marks of use (`DIRTY`,
    /// `REFERENCED`, `RECLAIM`, `ACTIVE`, `WORKINGSET`). `from` is in none any more; its marks stay, and a dirty one is
    /// counted as clean. The owner holds both.
    pub fn moved(&self, from: Pfn, to: Pfn) {
        let left = self.change(from, |info| {
            Some(Marks {
                generation: 0,
                ..info.marks()
            })
        });
        let Some(left) = left else {
            return;
        };
        let carried = left.flags.bits() & CARRIED.bits();
        self.change(to, |info| {
            let kept = info.flags.without(CARRIED).bits();
            Some(Marks {
                flags: FrameFlags::from_bits(kept | carried),
                generation: left.generation,
                ..info.marks()
            })
        });
        if left.flags.contains(FrameFlags::DIRTY) {
            self.dirtied(from, false);
            self.dirtied(to, true);
        }
    }

    /// `frame` is used: the first time it is marked `REFERENCED`, then `ACTIVE`. Costs one load where nothing changes.
    #[inline]
    pub fn used(&self, frame: Pfn) {
        if !self.frames.flags(frame).contains(FrameFlags::ACTIVE) {
            self.mark_used(frame);
        }
    }

    fn mark_used(&self, frame: Pfn) {
        let marked = self.frames.update_marks(frame, |info| {
            let mark = if info.flags.contains(FrameFlags::REFERENCED) {
                FrameFlags::ACTIVE
            } else {
                FrameFlags::REFERENCED
            };
            (!info.flags.contains(FrameFlags::ACTIVE)).then(|| Marks {
                flags: info.flags.union(mark),
                ..info.marks()
            })
        });
        // Nobody holds it, or it was marked meanwhile.
        let _ = marked;
    }

    /// `frame` has become dirty, or clean: for the counts by block.
    pub fn dirtied(&self, frame: Pfn, dirty: bool) {
        if let Some(block) = self.frames.block_of(frame) {
            self.frames.add_to_block_tally(block, Tally::dirtied(dirty));
        }
    }

    /// `frame` has been written. If reclaim has met it before (`RECLAIM`), it becomes one of the oldest, unless it was
    /// used meanwhile, and loses the mark.
    pub fn written(&self, frame: Pfn) {
        if !self.frames.flags(frame).contains(FrameFlags::RECLAIM) {
            return;
        }
        let oldest = generation(self.oldest_sequence());
        let used = FrameFlags::ACTIVE.union(FrameFlags::REFERENCED);
        let mut returns = false;
        self.change(frame, |info| {
            returns = info.generation != 0 && !info.flags.intersects(used);
            info.flags.contains(FrameFlags::RECLAIM).then(|| Marks {
                flags: info.flags.without(FrameFlags::RECLAIM),
                generation: match info.generation {
                    0 => 0,
                    kept if info.flags.intersects(used) => kept,
                    _ => oldest,
                },
                ..info.marks()
            })
        });
        // Relaxed: a hint. The first of them is mostly the first that the hand has met, and the others follow it.
        if returns
            && self.written.load(Ordering::Relaxed) == 0
            && let Some(block) = self.frames.block_of(frame)
        {
            let number = block.index() as u32 + 1;
            self.written.store(number, Ordering::Relaxed);
        }
    }

    /// A block with frames that have just been written and are to be dropped, if there are any since the last call.
    pub(crate) fn written_block(&self) -> Option<BlockId> {
        // Relaxed: a hint.
        if self.written.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let block = self.written.swap(0, Ordering::Relaxed);
        block.checked_sub(1).map(BlockId::new)
    }

    /// Contents that reclaim took at `stamp` are wanted again. Gives whether they were in use: then the frame is added
    /// as [`Age::Young`] and marked `WORKINGSET`. Counts the events on `cpu`, the caller's.
    ///
    /// The *distance* is how many frames were reclaimed since. Had there been as many frames more for contents that were
    /// used once, these would not have been lost. If no more than that are in the two youngest generations, it is worth
    /// more to keep them than the least used of those: so they are in use if the distance is not above the number of
    /// frames in the two youngest generations (the idea is that of Linux, mm/workingset.c).
    pub fn refault(&self, cpu: CpuId, stamp: Stamp, kind: Kind) -> bool {
        let distance = u64::from(self.evictions.now().since(stamp));
        let in_use = distance <= self.young();
        let (refault, activate) = match kind {
            Kind::File => (Event::WorkingsetRefault, Event::WorkingsetActivate),
            Kind::Anonymous => (Event::RefaultAnon, Event::ActivateAnon),
        };
        let events = self.frames.events();
        events.add(cpu, refault, 1);
        if in_use {
            events.add(cpu, activate, 1);
            self.cost(kind, 1);
        }
        in_use
    }

    /// Reclaiming frames of `kind` has cost as much as `pages` requests to the disk: contents in use were read again, or
    /// had to be written first. The costs of both kinds are halved when they come to more than a quarter of all frames.
    pub fn cost(&self, kind: Kind, pages: u64) {
        // Relaxed, here and below: estimates.
        self.costs[kind as usize].fetch_add(pages, Ordering::Relaxed);
        let sum = self.costs().iter().sum::<u64>();
        if sum > self.size() / 4 {
            for cost in &self.costs {
                let now = cost.load(Ordering::Relaxed);
                let _ = cost.compare_exchange(now, now / 2, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// What reclaiming of each [`Kind`] has cost of late.
    pub fn costs(&self) -> [u64; Kind::COUNT] {
        core::array::from_fn(|kind| self.costs[kind].load(Ordering::Relaxed))
    }

    /// Whether `frame` is in one of the two oldest generations, and was not used since it got there: reclaim takes it
    /// soon, so that moving it is not worth the while. A hint.
    pub fn is_old(&self, frame: Pfn) -> bool {
        let Some(info) = self.frames.frame(frame) else {
            return false;
        };
        let oldest = self.oldest_sequence();
        let used = FrameFlags::ACTIVE.union(FrameFlags::REFERENCED);
        let old = [oldest, oldest.wrapping_add(1)].map(generation);
        old.contains(&info.generation) && !info.flags.intersects(used)
    }

    /// The stamp of a frame that is evicted now.
    pub fn stamp(&self) -> Stamp {
        self.evictions.now()
    }

    /// `n` frames were evicted, by somebody else than reclaim.
    pub fn evicted(&self, n: u32) {
        self.evictions.advance(n);
    }

    /// Frames in all generations.
    pub fn size(&self) -> u64 {
        (1..=COUNT as u8).map(|number| self.count(number)).sum()
    }

    /// Frames by age, from the oldest generation to the youngest.
    pub fn sizes(&self) -> [u64; COUNT as usize] {
        let oldest = self.oldest_sequence();
        core::array::from_fn(|age| self.count(generation(oldest.wrapping_add(age as u32))))
    }

    /// Frames in the two youngest generations.
    fn young(&self) -> u64 {
        let [_, _, younger, youngest] = self.sizes();
        younger + youngest
    }

    pub(crate) fn oldest_sequence(&self) -> u32 {
        // Relaxed: whoever uses an old one is mistaken about an age.
        self.oldest.load(Ordering::Relaxed)
    }

    pub(crate) fn youngest(&self) -> u8 {
        generation(self.oldest_sequence().wrapping_add(COUNT - 1))
    }

    pub(crate) fn count(&self, number: u8) -> u64 {
        // Relaxed: a number on its own.
        let count = self.counts[number as usize - 1].load(Ordering::Relaxed);
        (count as i64).max(0) as u64
    }

    pub(crate) fn blocks(&self, number: u8) -> &Blocks {
        &self.blocks[number as usize - 1]
    }

    /// Makes all generations one older, unless somebody else has done so since the oldest sequence was `seen`. What has
    /// left the two youngest counts as deactivated.
    pub(crate) fn age(&self, cpu: CpuId, seen: u32) {
        let older = self.count(generation(seen.wrapping_add(2)));
        // Relaxed: as in `oldest_sequence`.
        let aged = self.oldest.compare_exchange(
            seen,
            seen.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if aged.is_ok() {
            self.frames.set_tally_epoch(self.oldest_sequence());
        }
        if aged.is_ok() && older > 0 {
            let events = self.frames.events();
            events.add(cpu, Event::PgRefill, older);
            events.add(cpu, Event::PgDeactivate, older);
        }
    }

    /// Changes the marks of a frame that somebody holds, and counts it in its new generation. Gives the frame as it was;
    /// `None` if `change` gave none.
    pub(crate) fn change(
        &self,
        frame: Pfn,
        mut change: impl FnMut(&FrameInfo) -> Option<Marks>,
    ) -> Option<FrameInfo> {
        let mut to = 0;
        let before = self.frames.update_marks(frame, |info| {
            change(info).inspect(|marks| to = marks.generation)
        });
        let before = before.ok()?;
        if before.generation != to
            && let Some(block) = self.frames.block_of(frame)
        {
            self.recount(block, before.generation, to);
        }
        Some(before)
    }

    fn recount(&self, block: BlockId, from: u8, to: u8) {
        self.frames
            .add_to_block_tally(block, Tally::change(from, to));
        // Relaxed: numbers on their own. They wrap, so that both orders of two additions come to the same.
        if from != 0 {
            self.counts[from as usize - 1].fetch_sub(1, Ordering::Relaxed);
        }
        if to != 0 {
            self.counts[to as usize - 1].fetch_add(1, Ordering::Relaxed);
            self.blocks(to).set(block);
        }
    }
}
