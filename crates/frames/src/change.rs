//! Changing a block: its ledger in one atomic step, then its field, the indexes and the sums.
//!
//! To take frames, the ledger is lowered first and then as many bits are cleared; to give some back, the bits are set
//! first and then the ledger is raised. So at least as many bits are set as the ledger counts, and a taker that lowered
//! it finds its bits.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, Ledger, Migratetype, Order,
    Refusal, ZoneId,
    bits::{find_span, has_run, take_bits, take_run, take_span},
    config::MAX_ZONES,
    cpu::CpuGuard,
    metadata::WORDS,
    place::is_begun,
    position::FrameIndex,
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

/// Which blocks frames may be taken from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Partly used ones of a type.
    Partly(Migratetype),
    /// Wholly free ones.
    Whole,
    /// Those that hold balloon frames and room, and nothing else.
    Begun,
}

impl Source {
    fn admits(self, ledger: Ledger) -> bool {
        match self {
            Self::Partly(migratetype) => !ledger.is_whole() && ledger.migratetype() == migratetype,
            Self::Whole => ledger.is_whole(),
            Self::Begun => is_begun(ledger),
        }
    }
}

/// What is wanted of a block.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    pub class: FrameClass,
    /// Frames at most.
    pub max: usize,
    pub source: Source,
    /// The block's new type, if it changes.
    pub retype: Option<Migratetype>,
}

impl Want {
    /// The ledger after the frames were taken; `None` if the block does not serve, or has fewer than `least`.
    fn apply(self, ledger: Ledger, least: u16) -> Option<Ledger> {
        let fits = ledger.state() == BlockState::Open && ledger.free() >= least;
        if !fits || !self.source.admits(ledger) {
            return None;
        }
        let max = self.max.min(FRAMES_PER_BLOCK) as u16;
        let ledger = ledger.taken(self.class, max.min(ledger.free()));
        Some(self.retype.map_or(ledger, |to| ledger.with_type(to)))
    }
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
    pub fn frames(&self) -> impl Iterator<Item = FrameIndex> + '_ {
        let first = self.block.first_frame();
        self.masks.iter().zip(0..).flat_map(move |(&mask, word)| {
            let base = first.plus(word * 64);
            let mut left = mask;
            core::iter::from_fn(move || {
                (left != 0).then(|| {
                    let frame = base.plus(left.trailing_zeros());
                    left &= left - 1;
                    frame
                })
            })
        })
    }
}

impl FrameAllocator<'_> {
    pub(crate) fn ledger_word(&self, block: BlockId) -> &AtomicU64 {
        &self.record(block).ledger
    }

    /// The ledger of `block` as it is now.
    #[inline]
    pub fn ledger(&self, block: BlockId) -> Ledger {
        // Acquire: pairs with the release of `change`. A reader that sees frames freed sees their bits.
        Ledger::from_bits(self.ledger_word(block).load(Ordering::Acquire))
    }

    /// Changes a ledger in one atomic step, and updates the indexes and the sum of whole blocks. The sum of free frames
    /// is left to the caller, which may have booked them before.
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
            // AcqRel: a taker sees the bits that freers set before they raised the count (their release), and the other
            // way round.
            let bits = new.into_bits();
            match word.compare_exchange_weak(now, bits, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Change { old, new }),
                Err(found) => now = found,
            }
        }
    }

    /// Updates the indexes and the sum of whole blocks after a change.
    #[inline(never)]
    pub(crate) fn changed(&self, block: BlockId, guard: Option<&CpuGuard<'_>>, done: Change) {
        let Change { old, new } = done;
        let whole = i64::from(new.counts_as_whole()) - i64::from(old.counts_as_whole());
        if whole != 0 {
            self.count_whole(self.zone_of_block(block), guard, whole);
        }
        self.reindex(block, guard, old, new);
    }

    /// Takes what is wanted of `block`, as single frames, if it serves. The frames' words are untouched, and the zone's
    /// free frames are the caller's to book.
    #[inline(never)]
    pub(crate) fn take_from(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        want: Want,
        taken: &mut Taken,
    ) -> bool {
        let Ok(change) = self.change(block, guard, &|ledger| want.apply(ledger, 1)) else {
            return false;
        };
        let count = usize::from(change.old.free() - change.new.free());
        if count == 0 {
            return false;
        }
        *taken = Taken {
            block,
            count,
            masks: take_bits(self.field(block), count),
        };
        true
    }

    /// Takes all that is wanted of `block`, as frames in a row that begin at a multiple of 2^`align` frames; gives the
    /// first.
    pub(crate) fn take_run_from(
        &self,
        block: BlockId,
        want: Want,
        align: Order,
    ) -> Option<FrameIndex> {
        let (field, count) = (self.field(block), want.max);
        // A look first: a ledger that is lowered in vain hides frames from others for a moment.
        let span = if count == align.frames() && align < Order::HUGE {
            has_run(field, align.get()).then_some(None)
        } else {
            find_span(field, count, align.frames()).map(Some)
        }?;
        let all = |ledger| want.apply(ledger, count as u16);
        self.change(block, None, &all).ok()?;
        let at = match span {
            None => take_run(field, align.get()),
            Some(at) => take_span(field, at, count).then_some(at),
        };
        let Some(at) = at else {
            // Another CPU took the run between the look and the ledger.
            self.give_share_back(block, want.class, count as u16);
            return None;
        };
        Some(block.first_frame().plus(at))
    }

    /// Sets bits and raises the ledger for `frames`, all of one class and already in state Free. Pays in what the zones
    /// gained.
    ///
    /// A bit that is set already means that two CPUs freed the frame at once: it is counted once, and as a double free.
    pub(crate) fn put_into_field(
        &self,
        frames: &[FrameIndex],
        class: FrameClass,
        guard: Option<&CpuGuard<'_>>,
    ) {
        let mut at = 0;
        let mut gained = [0i64; MAX_ZONES];
        while let Some(first) = frames.get(at) {
            // Neighbours go back together: one step for each word, one for the ledger.
            let block = first.block();
            let (begin, mut count) = (at, 0);
            while let Some(first) = frames.get(at).filter(|frame| frame.block() == block) {
                let same_word = |frame: &&FrameIndex| frame.get() / 64 == first.get() / 64;
                let mut mask = 0u64;
                while let Some(frame) = frames.get(at).filter(same_word) {
                    mask |= 1 << frame.bit();
                    at += 1;
                }
                count += self.set_bits(block, first.word(), mask);
            }
            gained[self.zone_of_block(block).index()] +=
                self.raise(block, guard, class, count, &frames[begin..at]);
        }
        for (zone, gained) in (0..).map(ZoneId::new).zip(gained) {
            if gained != 0 {
                self.pay_in(zone, guard, gained);
            }
        }
    }

    /// Sets the bits of `mask` in a word of the field; gives how many were clear before (normally all).
    pub(crate) fn set_bits(&self, block: BlockId, word: usize, mask: u64) -> u16 {
        // Release, and before the ledger: the CPU that lowers the ledger next finds the bits.
        let old = self.field(block).0[word].fetch_or(mask, Ordering::AcqRel);
        if old & mask != 0 {
            self.freed_twice((old & mask).count_ones());
        }
        (mask & !old).count_ones() as u16
    }

    /// Raises the ledger for `count` frames whose bits were set, and forgives the block if its offender is among
    /// `frames`. Gives by how much the zone's free frames grew.
    pub(crate) fn raise(
        &self,
        block: BlockId,
        guard: Option<&CpuGuard<'_>>,
        class: FrameClass,
        count: u16,
        frames: &[FrameIndex],
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

    /// Gives back a share of the ledger whose bits could not be taken, or are set again. The booking of the zone's free
    /// frames stays the caller's, also if the block was isolated meanwhile: then the frames count when it is opened
    /// again, not now.
    #[cold]
    pub(crate) fn give_share_back(&self, block: BlockId, class: FrameClass, count: u16) {
        let given = self.change(block, None, &|ledger| Some(ledger.given(class, count)));
        if let Ok(change) = given {
            let zone = self.zone_of_block(block);
            self.pay_in(zone, None, change.freed() - i64::from(count));
        }
    }

    #[cold]
    fn freed_twice(&self, frames: u32) {
        self.double_frees
            .fetch_add(u64::from(frames), Ordering::Relaxed);
    }
}
