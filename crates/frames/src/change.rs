//! Changing a block: its ledger in one atomic step, its field beside it, and what follows for the indexes and the sums.
//!
//! Who takes frames lowers the ledger first and then clears as many bits; who gives some back sets the bits first and then
//! raises the ledger. So there are always at least as many bits as the ledger says, and whoever lowered it finds its own.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, Ledger, Migratetype,
    Refusal,
    bits::take_bits,
    config::MAX_ZONES,
    cpu::CpuGuard,
    metadata::{Record, WORDS},
    sync::{AtomicU64, Ordering},
};

/// A change of a ledger.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub old: Ledger,
    pub new: Ledger,
}

impl Change {
    /// By how much the frames that can be taken grew.
    pub fn freed(&self) -> i64 {
        self.new.available() - self.old.available()
    }
}

/// What is wanted of a block.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    pub class: FrameClass,
    /// Single frames at most.
    pub max: usize,
    /// What the block serves from now on, if that changes.
    pub retype: Option<Migratetype>,
}

/// Frames that were taken out of one block.
pub(crate) struct Taken {
    pub block: BlockId,
    pub count: usize,
    /// Which, by word of the field.
    pub masks: [u64; WORDS],
}

impl Taken {
    pub const fn nothing() -> Self {
        Self {
            block: BlockId::new(0),
            count: 0,
            masks: [0; WORDS],
        }
    }

    /// Them, ascending.
    pub fn frames(&self) -> impl Iterator<Item = u32> + '_ {
        let first = (self.block.index() * FRAMES_PER_BLOCK) as u32;
        self.masks.iter().zip(0..).flat_map(move |(&mask, word)| {
            let base = first + word * 64;
            let mut left = mask;
            core::iter::from_fn(move || {
                (left != 0).then(|| {
                    let frame = base + left.trailing_zeros();
                    left &= left - 1;
                    frame
                })
            })
        })
    }
}

impl FrameAllocator<'_> {
    pub(crate) fn record(&self, block: BlockId) -> &Record {
        &self.records[block.index()]
    }

    pub(crate) fn ledger_word(&self, block: BlockId) -> &AtomicU64 {
        &self.records[block.index()].ledger
    }

    /// The ledger of `block` as it is now.
    #[inline]
    pub fn ledger(&self, block: BlockId) -> Ledger {
        // Acquire: pairs with the release of `change`; who sees frames freed sees their bits.
        Ledger::from_bits(self.ledger_word(block).load(Ordering::Acquire))
    }

    /// Changes a ledger in one atomic step, keeps the indexes and the sum of whole blocks. The sum of free frames is the
    /// caller's, who may have booked them before.
    pub(crate) fn change(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        change: &dyn Fn(Ledger) -> Option<Ledger>,
    ) -> Result<Change, Ledger> {
        let done = self.exchange(block, change)?;
        self.changed(block, guard, done);
        Ok(done)
    }

    /// The atomic step alone.
    pub(crate) fn exchange(
        &self,
        block: BlockId,
        change: &dyn Fn(Ledger) -> Option<Ledger>,
    ) -> Result<Change, Ledger> {
        let word = self.ledger_word(block);
        let mut now = word.load(Ordering::Acquire);
        loop {
            let old = Ledger::from_bits(now);
            let new = change(old).ok_or(old)?.bumped();
            // AcqRel: a taker sees the bits that freers set before they raised the count (their release), and the other way
            // round.
            let bits = new.into_bits();
            match word.compare_exchange_weak(now, bits, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Change { old, new }),
                Err(found) => now = found,
            }
        }
    }

    /// What follows from a change.
    pub(crate) fn changed(&self, block: BlockId, guard: Option<&CpuGuard<'_>>, done: Change) {
        let Change { old, new } = done;
        let whole = i64::from(new.counts_as_whole()) - i64::from(old.counts_as_whole());
        if whole != 0 {
            self.count_whole(self.zone_of_block(block).index(), guard, whole);
        }
        self.reindex(block, guard, old, new);
    }

    /// Takes what is wanted of `block` if `usable` agrees. The frames' words are untouched, and the zone's free frames are the
    /// caller's to book.
    #[inline(never)]
    pub(crate) fn take_from(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        want: Want,
        usable: &dyn Fn(Ledger) -> bool,
        taken: &mut Taken,
    ) -> bool {
        let Want { class, max, retype } = want;
        let max = max.min(FRAMES_PER_BLOCK) as u16;
        let change = self.change(block, guard, &|ledger| {
            if ledger.state() != BlockState::Open || ledger.free() == 0 || !usable(ledger) {
                return None;
            }
            let ledger = ledger.taken(class, max.min(ledger.free()));
            Some(retype.map_or(ledger, |migratetype| ledger.with_type(migratetype)))
        });
        let Ok(change) = change else {
            return false;
        };
        let count = usize::from(change.old.free() - change.new.free());
        if count == 0 {
            return false;
        }
        *taken = Taken {
            block,
            count,
            masks: take_bits(&self.fields[block.index()], count),
        };
        true
    }

    /// Sets bits and raises the ledger for `frames`, all of one class and already in state Free. Books what the zones gained.
    ///
    /// A bit that is set already tells of a frame that two freed at once: it is counted once, and as an event.
    pub(crate) fn put_into_field(
        &self,
        frames: &[u32],
        class: FrameClass,
        guard: Option<&CpuGuard<'_>>,
    ) {
        let mut at = 0;
        let mut gained = [0i64; MAX_ZONES];
        while let Some(&first) = frames.get(at) {
            // Neighbours go back together: one step for each word, one for the ledger.
            let block = Self::block_of_index(first);
            let (begin, mut count) = (at, 0);
            while let Some(&first) = frames
                .get(at)
                .filter(|f| Self::block_of_index(**f) == block)
            {
                let word = first / 64;
                let mut mask = 0u64;
                while let Some(&frame) = frames.get(at).filter(|frame| **frame / 64 == word) {
                    mask |= 1 << (frame % 64);
                    at += 1;
                }
                count += self.set_bits(block, word as usize % WORDS, mask);
            }
            gained[self.zone_of_block(block).index()] +=
                self.raise(block, guard, class, count, &frames[begin..at]);
        }
        for (zone, gained) in gained.into_iter().enumerate() {
            if gained != 0 {
                self.pay_in(zone, guard, gained);
            }
        }
    }

    /// Sets the bits of `mask` in a word of the field; gives how many were clear before, which should be all.
    pub(crate) fn set_bits(&self, block: BlockId, word: usize, mask: u64) -> u16 {
        // Release, and before the ledger: who lowers the ledger next finds the bits.
        let old = self.fields[block.index()].0[word].fetch_or(mask, Ordering::AcqRel);
        if old & mask != 0 {
            self.freed_twice((old & mask).count_ones());
        }
        (mask & !old).count_ones() as u16
    }

    /// Raises the ledger for `count` frames whose bits were set, and forgives the block if the one that stood in the way of its
    /// evacuation is among `frames`. Gives by how much the zone's free frames grew.
    pub(crate) fn raise(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        class: FrameClass,
        count: u16,
        frames: &[u32],
    ) -> i64 {
        let Ok(change) = self.change(block, guard, &|ledger| Some(ledger.given(class, count)))
        else {
            return 0;
        };
        if change.new.refusal() != Refusal::None {
            self.forgive_offender(block, frames);
        }
        change.freed()
    }

    /// Gives back a share of the ledger whose bits were not to be had, or are set again. The booking of the zone's free frames stays
    /// the caller's, also where the block was isolated meanwhile: then they count when it is opened again, and not now.
    #[cold]
    pub(crate) fn give_share_back(&self, block: BlockId, class: FrameClass, count: u16) {
        let given = self.change(block, None, &|ledger| Some(ledger.given(class, count)));
        if let Ok(change) = given {
            let zone = self.zone_of_block(block).index();
            self.pay_in(zone, None, change.freed() - i64::from(count));
        }
    }

    #[cold]
    fn freed_twice(&self, frames: u32) {
        self.double_frees
            .fetch_add(u64::from(frames), Ordering::Relaxed);
    }
}
