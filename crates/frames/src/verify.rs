//! Recomputing every count from scratch.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, FrameState, Migratetype,
    Order, Pfn,
    allocator::{cost_place, heal_place, room_place},
    config::MAX_ZONES,
    free::class_of,
    sync::Ordering,
};

/// What does not fit together. Always a fault of this crate, or of a caller that changed frames it did not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A frame's bit says free, its descriptor something else, or the other way round.
    #[error("frame {pfn}: the bit says free = {bit}, the descriptor {state:?}")]
    Bit {
        /// The frame.
        pfn: Pfn,
        /// Whether its bit is set.
        bit: bool,
        /// What the descriptor says.
        state: FrameState,
    },
    /// A frame is inside an allocation and not marked so, or the other way round.
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
    /// A cache holds a frame whose descriptor says otherwise, or of an isolated block, or there are others cached.
    #[error("the CPU caches and the descriptors disagree about frame {0}")]
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
        let (mut cached, mut isolated) = (0, 0);
        for block in self.blocks() {
            let ledger = self.ledger(block);
            let zone = self.zone_of_block(block);
            match ledger.state() {
                BlockState::Huge => self.verify_huge(block)?,
                _ => cached += self.verify_frames(block)?,
            }
            if ledger.state() == BlockState::Open {
                free[zone.index()] += i64::from(ledger.free());
            }
            whole[zone.index()] += i64::from(ledger.is_whole());
            isolated += u32::from(ledger.state() == BlockState::Isolated);
            for (index, place, name) in [
                (&self.by_room, room_place(zone, ledger), "room"),
                (&self.by_cost, cost_place(zone, ledger), "cost"),
                (&self.by_heal, heal_place(zone, ledger), "heal"),
            ] {
                if !index.check(block, place) {
                    return Err(VerifyError::Index(block, name));
                }
            }
        }
        for (number, zone) in self.zones.iter().enumerate() {
            for (what, kept, found) in [
                ("free frames", zone.free(), free[number]),
                ("free blocks", zone.whole(), whole[number]),
            ] {
                if kept != found {
                    return Err(VerifyError::Zone {
                        zone: number,
                        what,
                        kept,
                        found,
                    });
                }
            }
        }
        let kept = self.isolated_blocks.load(Ordering::Acquire);
        if kept != isolated {
            return Err(VerifyError::Isolated {
                kept,
                found: isolated,
            });
        }
        self.verify_caches(cached)
    }

    /// Counts the frames of a block that is no huge page; gives how many are cached.
    fn verify_frames(&self, block: BlockId) -> Result<u64, VerifyError> {
        let ledger = self.ledger(block);
        let (mut counts, mut free, mut cached) = ([0u16; 4], 0u16, 0);
        // The class of the allocation that the frame is in, and how many frames of it are to come.
        let (mut class, mut tails) = (FrameClass::Unmovable, 0);
        for offset in 0..FRAMES_PER_BLOCK {
            let frame = block.index() * FRAMES_PER_BLOCK + offset;
            let bit = self.fields[block.index()].0[offset / 64].load(Ordering::Acquire)
                >> (offset % 64)
                & 1
                == 1;
            let word = self.descriptors[frame].load();
            let (pfn, state) = (self.pfn(frame as u32), word.state());
            if bit != (state == FrameState::Free) {
                return Err(VerifyError::Bit { pfn, bit, state });
            }
            if (state == FrameState::Tail) != (tails > 0) {
                return Err(VerifyError::Tail(pfn));
            }
            if state == FrameState::Tail {
                tails -= 1;
            } else {
                class = word.counted_class();
                tails = (1usize << word.order()) - 1;
            }
            cached += u64::from(state == FrameState::Cached);
            if bit {
                free += 1;
            } else {
                counts[class as usize] += 1;
            }
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
        Ok(cached)
    }

    fn verify_huge(&self, block: BlockId) -> Result<(), VerifyError> {
        let ledger = self.ledger(block);
        let start = self.block_start(block);
        let head = self.head(start);
        let word = self
            .frame_index(head)
            .map(|frame| self.descriptors[frame as usize].load())
            .ok_or(VerifyError::Huge(block))?;
        let is_head = !matches!(
            word.state(),
            FrameState::Free | FrameState::Cached | FrameState::Reserved | FrameState::Tail
        ) && word.order() >= Order::HUGE.get();
        let bits_clear = self.fields[block.index()]
            .0
            .iter()
            .all(|bits| bits.load(Ordering::Acquire) == 0);
        let tails_untouched = (0..FRAMES_PER_BLOCK).all(|offset| {
            let frame = block.index() * FRAMES_PER_BLOCK + offset;
            self.pfn(frame as u32) == head
                || self.descriptors[frame].load().state() == FrameState::Free
        });
        let counted = ledger.class_count(word.counted_class()) as usize == FRAMES_PER_BLOCK;
        if is_head && bits_clear && tails_untouched && counted {
            Ok(())
        } else {
            Err(VerifyError::Huge(block))
        }
    }

    fn verify_caches(&self, cached: u64) -> Result<(), VerifyError> {
        let mut found = 0;
        for slot in self.cpus {
            let guard = slot.lock();
            for migratetype in Migratetype::ALL {
                for position in 0..guard.len(migratetype) {
                    let frame = guard.peek(migratetype, position);
                    let word = self.descriptors[frame as usize].load();
                    let block = Self::block_of_index(frame);
                    let fits = word.state() == FrameState::Cached
                        && word.class() == class_of(migratetype)
                        && self.ledger(block).state() != BlockState::Isolated;
                    if !fits {
                        return Err(VerifyError::Cache(self.pfn(frame)));
                    }
                    found += 1;
                }
            }
        }
        if found == cached {
            Ok(())
        } else {
            Err(VerifyError::Cache(self.base()))
        }
    }
}
