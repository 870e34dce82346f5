//! Recomputing every count from scratch.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, FrameState, Migratetype,
    Order, Pfn,
    config::MAX_ZONES,
    cpu::residue,
    descriptor::Word,
    drain::class_of,
    metadata::WORDS,
    sync::{AtomicU64, Ordering},
};

/// What does not fit together. Always a fault of this crate, or of a caller that changed frames it did not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A frame's bit and its descriptor disagree about whether it is free.
    #[error("frame {pfn}: the bit says free = {bit}, the descriptor {state:?}")]
    Bit {
        /// The frame.
        pfn: Pfn,
        /// Whether its bit is set.
        bit: bool,
        /// What the descriptor says.
        state: FrameState,
    },
    /// A frame is inside an allocation and its descriptor does not say so, or the reverse.
    #[error("frame {0}: no well-formed allocation of several frames")]
    Tail(Pfn),
    /// A count of a ledger is wrong.
    #[error("{block:?}: the ledger counts {ledger} {what} frames, there are {found}")]
    Count {
        /// The block.
        block: BlockId,
        /// Which count.
        what: &'static str,
        /// What the ledger says.
        ledger: u16,
        /// What was found.
        found: u16,
    },
    /// An index has the block in the wrong place.
    #[error("{0:?} is in the wrong place of the index by {1}")]
    Index(BlockId, &'static str),
    /// A summary of an index has a bit too many or too few.
    #[error("a summary of the index by {0} is wrong")]
    Summary(&'static str),
    /// A CPU keeps more of a sum to itself than it may, or has moved blocks and not said that it is done.
    #[error("CPU {cpu} keeps {what} of {kept}")]
    Cpu {
        /// The CPU.
        cpu: usize,
        /// What.
        what: &'static str,
        /// How much.
        kept: i64,
    },
    /// A frame was freed by two at once.
    #[error("{0} frames were freed by two CPUs at the same time")]
    FreedTwice(u64),
    /// A sum of a zone is wrong.
    #[error("zone {zone}: {what} is {kept}, should be {found}")]
    Zone {
        /// The zone.
        zone: usize,
        /// Which sum.
        what: &'static str,
        /// What is kept.
        kept: i64,
        /// What was found.
        found: i64,
    },
    /// A free frame is in no field and no cache, or in two, or in the cache of a CPU that does not know of its block,
    /// or of an isolated block.
    #[error("frame {0} is free, and not in exactly one place")]
    Cache(Pfn),
    /// A free block's type or a huge page's head is not as it should be.
    #[error("{0:?} is no well-formed huge page")]
    Huge(BlockId),
    /// The count of isolated blocks is wrong.
    #[error("{kept} blocks are counted as isolated, {found} are")]
    Isolated {
        /// What is kept.
        kept: u32,
        /// What was found.
        found: u32,
    },
}

impl FrameAllocator<'_> {
    /// Recomputes all counts and compares. Only when nothing else uses the allocator; walks all memory's descriptors.
    ///
    /// # Errors
    ///
    /// The first thing that does not fit.
    pub fn verify(&self) -> Result<(), VerifyError> {
        let mut free = [0i64; MAX_ZONES];
        let mut whole = [0i64; MAX_ZONES];
        let mut isolated = 0;
        for block in self.blocks() {
            let ledger = self.ledger(block);
            let zone = self.zone_of_block(block);
            match ledger.state() {
                BlockState::Huge => self.verify_huge(block)?,
                _ => self.verify_frames(block)?,
            }
            if (ledger.state() == BlockState::Spare) != (self.keepers(block) > 0)
                || self.keepers(block) > 1
            {
                return Err(VerifyError::Huge(block));
            }
            free[zone.index()] += ledger.available();
            whole[zone.index()] += i64::from(ledger.counts_as_whole());
            isolated += u32::from(ledger.state() == BlockState::Isolated);
            let of_zone = self.zone(zone);
            let indexes = [&of_zone.by_room, &of_zone.by_cost, &of_zone.by_heal];
            for ((index, place), name) in indexes.into_iter().zip(self.places(block)).zip(INDEXES) {
                if !index.check(block, place) {
                    return Err(VerifyError::Index(block, name));
                }
            }
        }
        for id in self.zones() {
            let zone = self.zone(id);
            let indexes = [&zone.by_room, &zone.by_cost, &zone.by_heal];
            for (index, name) in indexes.into_iter().zip(INDEXES) {
                if !index.check_summaries() {
                    return Err(VerifyError::Summary(name));
                }
            }
            for (what, kept, found) in [
                ("free frames", self.free_in(id), free[id.index()]),
                ("free blocks", self.whole_in(id), whole[id.index()]),
                (
                    "moves ended",
                    i64::from(self.moves_ended(id)),
                    i64::from(self.moves_begun(id)),
                ),
            ] {
                if kept != found {
                    return Err(VerifyError::Zone {
                        zone: id.index(),
                        what,
                        kept,
                        found,
                    });
                }
            }
        }
        self.verify_cpus()?;
        let kept = self.isolated_blocks();
        if kept != isolated {
            return Err(VerifyError::Isolated {
                kept,
                found: isolated,
            });
        }
        match self.double_frees.load(Ordering::Relaxed) {
            0 => Ok(()),
            frames => Err(VerifyError::FreedTwice(frames)),
        }
    }

    /// The parts of the sums that CPUs keep, and what their caches hold.
    #[inline(never)]
    fn verify_cpus(&self) -> Result<(), VerifyError> {
        for (cpu, slot) in self.cpus.iter().enumerate() {
            for zone in self.zones() {
                let kept = slot.delta(zone);
                if kept.abs() > self.zone(zone).drift() {
                    let what = "a part of the free frames";
                    return Err(VerifyError::Cpu { cpu, what, kept });
                }
            }
            let guard = self.lock_slot(slot);
            let mut wrong = None;
            for migratetype in Migratetype::ALL {
                guard.cache(migratetype).for_each(&mut |frame| {
                    let block = frame.block();
                    let word = self.descriptor_at(frame).load();
                    let fits = !self.is_bit_set(frame)
                        && word.state() == FrameState::Free
                        && self.ledger(block).state() == BlockState::Open
                        && !slot.is_clear_of_by_filter(residue(block));
                    if !fits {
                        wrong = Some(frame);
                    }
                });
            }
            if let Some(frame) = wrong {
                return Err(VerifyError::Cache(self.pfn(frame)));
            }
        }
        Ok(())
    }

    /// How many CPUs keep `block` as a spare one.
    #[inline(never)]
    fn keepers(&self, block: BlockId) -> usize {
        let mut count = 0;
        for slot in self.cpus {
            let guard = self.lock_slot(slot);
            guard.for_each_spare(&mut |spare| count += usize::from(spare == block));
        }
        count
    }

    /// Frames of `block` in CPU caches by class, as bits.
    #[inline(never)]
    fn cached_in(&self, block: BlockId) -> Result<[[u64; WORDS]; 4], VerifyError> {
        let mut masks = [[0u64; WORDS]; 4];
        let mut twice = None;
        for slot in self.cpus {
            if slot.is_clear_of_by_filter(residue(block)) {
                continue;
            }
            let guard = self.lock_slot(slot);
            for migratetype in Migratetype::ALL {
                let class = class_of(migratetype) as usize;
                guard.cache(migratetype).for_each(&mut |frame| {
                    if frame.block() != block {
                        return;
                    }
                    let (word, bit) = (frame.word(), 1 << frame.bit());
                    if masks.iter().any(|mask| mask[word] & bit != 0) {
                        twice = Some(frame);
                    }
                    masks[class][word] |= bit;
                });
            }
        }
        match twice {
            Some(frame) => Err(VerifyError::Cache(self.pfn(frame))),
            None => Ok(masks),
        }
    }

    /// Counts the frames of a block that is no huge page.
    #[inline(never)]
    fn verify_frames(&self, block: BlockId) -> Result<(), VerifyError> {
        let ledger = self.ledger(block);
        let cached = self.cached_in(block)?;
        let mut counts = [0u16; 4];
        let mut free = 0;
        let (mut tails, mut class) = (0, FrameClass::Unmovable);
        for frame in block.first_frame().run(FRAMES_PER_BLOCK) {
            let set = |masks: &[u64; WORDS]| masks[frame.word()] >> frame.bit() & 1 == 1;
            let bit = self.is_bit_set(frame);
            let word = self.descriptor_at(frame).load();
            let (pfn, state) = (self.pfn(frame), word.state());
            let in_cache = cached.iter().position(set);
            if bit && state != FrameState::Free {
                return Err(VerifyError::Bit { pfn, bit, state });
            }
            if (state == FrameState::Free) != (bit != in_cache.is_some()) {
                return Err(VerifyError::Cache(pfn));
            }
            if state == FrameState::Free && word != Word::new() {
                return Err(VerifyError::Bit { pfn, bit, state });
            }
            if (state == FrameState::Tail) != (tails > 0) {
                return Err(VerifyError::Tail(pfn));
            }
            if state == FrameState::Tail {
                tails -= 1;
                counts[class as usize] += 1;
                continue;
            }
            // A head is at a multiple of its size; the last tail is in the same block.
            let size = 1usize << word.order();
            if !frame.offset().is_multiple_of(size as u32) {
                return Err(VerifyError::Tail(pfn));
            }
            class = word.counted_class();
            tails = size - 1;
            match in_cache {
                Some(class) => counts[class] += 1,
                None if bit => free += 1,
                None => counts[class as usize] += 1,
            }
        }
        if tails > 0 {
            return Err(VerifyError::Tail(self.block_start(block)));
        }
        if self.reserved_in(block) > ledger.unmovable() {
            return Err(VerifyError::Count {
                block,
                what: "reserved",
                ledger: ledger.unmovable(),
                found: self.reserved_in(block),
            });
        }
        let immovable =
            counts[FrameClass::Unmovable as usize] + counts[FrameClass::Reclaimable as usize];
        for (what, ledger, found) in [
            ("free", ledger.free(), free),
            (
                "movable",
                ledger.movable(),
                counts[FrameClass::Movable as usize],
            ),
            (
                "balloon",
                ledger.balloon(),
                counts[FrameClass::Balloon as usize],
            ),
            ("unmovable", ledger.unmovable(), immovable),
        ] {
            if ledger != found {
                return Err(VerifyError::Count {
                    block,
                    what,
                    ledger,
                    found,
                });
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn verify_huge(&self, block: BlockId) -> Result<(), VerifyError> {
        let wrong = Err(VerifyError::Huge(block));
        let (ledger, start) = (self.ledger(block), self.block_start(block));
        let head = self.head(start);
        let Some(frame) = self.frame_index(head) else {
            return wrong;
        };
        let word = self.descriptor_at(frame).load();
        let is_head = word.is_held() && word.order() >= Order::HUGE.get();
        // The second half of an order-10 allocation has no head of its own, and the first one is huge, too.
        let pair = word.order() == Order::MAX.get();
        let fits = if pair {
            let upper = self.block_above(frame.block());
            head.is_aligned(Order::MAX)
                && (head == start || upper == Some(block))
                && upper.is_some_and(|upper| self.ledger(upper).state() == BlockState::Huge)
        } else {
            head == start
        };
        // They stay set while the block is one allocation.
        let full = |bits: &AtomicU64| bits.load(Ordering::Acquire) == u64::MAX;
        let bits_set = self.field(block).0.iter().all(full);
        let tails_untouched = block.first_frame().run(FRAMES_PER_BLOCK).all(|frame| {
            let at_head = frame.offset() == 0 && head == start;
            at_head || self.descriptor_at(frame).load() == Word::new()
        });
        let counted = ledger.class_count(word.counted_class()) as usize == FRAMES_PER_BLOCK;
        if is_head && fits && bits_set && tails_untouched && counted {
            Ok(())
        } else {
            wrong
        }
    }
}

/// The names of a zone's indexes.
const INDEXES: [&str; 3] = ["room", "cost", "heal"];
