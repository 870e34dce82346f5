//! Single frames: states and transitions, owners, classes, marks.

use crate::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, FrameFlags, FrameState,
    Order, OwnerId, Pfn, Refusal,
    descriptor::{Descriptor, MAX_REFS, Word},
    position::FrameIndex,
    sync::Ordering,
};

/// A frame's descriptor at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    /// Where it is in its life.
    pub state: FrameState,
    /// How it is counted.
    pub class: FrameClass,
    /// Of the allocation that it heads.
    pub order: Order,
    /// Who knows how to move it.
    pub owner: OwnerId,
    /// Marks.
    pub flags: FrameFlags,
    /// References beside the owner's, 0 to 31.
    pub refcount: u8,
    /// Age, 0 to 7.
    pub generation: u8,
    /// The owner's word. Means nothing before the frame's owner has set it.
    pub word: u64,
}

/// What an owner changes in the word of a frame that it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marks {
    /// Marks. [`FrameFlags::PINNED`] stays as it is.
    pub flags: FrameFlags,
    /// References beside the owner's, 0 to 31.
    pub refcount: u8,
    /// Age, 0 to 7.
    pub generation: u8,
}

impl FrameInfo {
    /// The part that an owner may change.
    pub const fn marks(&self) -> Marks {
        Marks {
            flags: self.flags,
            refcount: self.refcount,
            generation: self.generation,
        }
    }
}

impl Descriptor<'_> {
    /// What `word`, in state `state`, says of the frame.
    #[inline(never)]
    fn info(&self, word: Word, state: FrameState) -> FrameInfo {
        FrameInfo {
            state,
            class: word.class(),
            order: Order::new(word.order()).unwrap_or_default(),
            owner: OwnerId::new(word.owner()).unwrap_or_default(),
            flags: FrameFlags::from_bits(word.flags()),
            refcount: word.refcount(),
            generation: word.generation(),
            word: self.owner.load(Ordering::Relaxed),
        }
    }
}

impl FrameAllocator<'_> {
    fn descriptor(&self, pfn: Pfn) -> Option<Descriptor<'_>> {
        self.frame_index(pfn).map(|frame| self.descriptor_at(frame))
    }

    /// The state of `pfn`; *Reserved* where this allocator has no memory.
    #[inline(never)]
    pub fn state(&self, pfn: Pfn) -> FrameState {
        self.frame_index(pfn)
            .map_or(FrameState::Reserved, |frame| self.state_at(frame))
    }

    #[inline(never)]
    pub(crate) fn state_at(&self, frame: FrameIndex) -> FrameState {
        let state = self.descriptor_at(frame).load().state();
        if state != FrameState::Free {
            return state;
        }
        if self.ledger(frame.block()).state() == BlockState::Huge {
            // Inside a huge page only the head's word is written.
            return FrameState::Tail;
        }
        match self.is_bit_set(frame) {
            false => FrameState::Cached,
            true => FrameState::Free,
        }
    }

    /// All fields of `pfn`'s descriptor; `None` where this allocator has no memory.
    pub fn frame(&self, pfn: Pfn) -> Option<FrameInfo> {
        let frame = self.frame_index(pfn)?;
        let descriptor = self.descriptor_at(frame);
        let word = descriptor.load();
        Some(descriptor.info(word, self.state_at(frame)))
    }

    /// The owner of `pfn`, without the rest.
    pub fn owner(&self, pfn: Pfn) -> OwnerId {
        self.descriptor(pfn)
            .and_then(|descriptor| OwnerId::new(descriptor.load().owner()))
            .unwrap_or_default()
    }

    /// Sets the owner and the owner's word of a frame that the caller holds (not free, not listed by another owner).
    pub fn set_owner(&self, pfn: Pfn, owner: OwnerId, word: u64) {
        if let Some(descriptor) = self.descriptor(pfn) {
            // Relaxed: published by the release of the word's update right after, or of the transition to Listed.
            descriptor.owner.store(word, Ordering::Relaxed);
            let _ = descriptor.update(|word| word.is_held().then(|| word.with_owner(owner.get())));
        }
    }

    /// The owner's word.
    pub fn owner_word(&self, pfn: Pfn) -> u64 {
        // Relaxed: a legitimate reader took the frame by an acquiring transition, or holds the owner's lock.
        self.descriptor(pfn)
            .map_or(0, |descriptor| descriptor.owner.load(Ordering::Relaxed))
    }

    /// Replaces the owner's word; the owner's own lock orders it.
    pub fn set_owner_word(&self, pfn: Pfn, word: u64) {
        if let Some(descriptor) = self.descriptor(pfn) {
            descriptor.owner.store(word, Ordering::Relaxed);
        }
    }

    /// Takes the frame from state `from` to `to` in one atomic step.
    ///
    /// # Errors
    ///
    /// The state found, if it is not `from`, or if a holder may not take that edge. Nothing was changed.
    #[inline]
    pub fn transition(&self, pfn: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState> {
        self.transition_if(pfn, from, to, |_| true)
    }

    /// Listed → Isolated, if `pfn` belongs to `owner` and is not pinned: what an owner's isolate operation needs, in
    /// one step.
    ///
    /// # Errors
    ///
    /// The state found. Nothing was changed.
    pub fn try_isolate(&self, pfn: Pfn, owner: OwnerId) -> Result<(), FrameState> {
        self.transition_if(pfn, FrameState::Listed, FrameState::Isolated, |word| {
            word.owner() == owner.get() && !word.is_pinned()
        })
    }

    #[inline]
    fn transition_if(
        &self,
        pfn: Pfn,
        from: FrameState,
        to: FrameState,
        allowed: impl Fn(Word) -> bool,
    ) -> Result<(), FrameState> {
        let legal = from.may_become(to);
        debug_assert!(legal, "{from:?} may not become {to:?}");
        let descriptor = self.descriptor(pfn).ok_or(FrameState::Reserved)?;
        descriptor
            .update(|word| {
                let fits = legal && word.state() == from && allowed(word);
                fits.then(|| word.with_state(to))
            })
            .map(|_| ())
            .map_err(|word| word.state())
    }

    /// Counts an allocation, named by its first frame, in another class. Does nothing if nobody holds it.
    pub fn reclass(&self, pfn: Pfn, class: FrameClass) {
        self.update_held(pfn, &|word| Some(word.with_class(class)));
    }

    /// The class of the allocation that `pfn` heads.
    pub fn class(&self, pfn: Pfn) -> FrameClass {
        self.descriptor(pfn)
            .map_or(FrameClass::Unmovable, |d| d.load().class())
    }

    /// The order of the allocation that `pfn` heads.
    pub fn order(&self, pfn: Pfn) -> Order {
        self.descriptor(pfn)
            .and_then(|d| Order::new(d.load().order()))
            .unwrap_or_default()
    }

    /// The marks of `pfn`.
    pub fn flags(&self, pfn: Pfn) -> FrameFlags {
        self.descriptor(pfn).map_or(FrameFlags::EMPTY, |d| {
            FrameFlags::from_bits(d.load().flags())
        })
    }

    /// Adds marks to an allocation, named by its first frame; `false` if nothing was changed: nobody holds it, or it
    /// cannot be pinned because it is isolated or on its way to or from the host.
    ///
    /// With [`FrameFlags::PINNED`] the allocation counts as unmovable in its block's ledger, so that compaction does
    /// not try the block, until the mark is removed. The holder must not pin, unpin, free or change the class of the
    /// same allocation on two CPUs at once.
    pub fn set_flags(&self, pfn: Pfn, flags: FrameFlags) -> bool {
        let pins = flags.contains(FrameFlags::PINNED);
        self.update_held(pfn, &|word| {
            let stays = matches!(word.state(), FrameState::Allocated | FrameState::Listed);
            (!pins || stays).then(|| word.with_flags(word.flags() | flags.bits()))
        })
    }

    /// Removes marks; see [`set_flags`](Self::set_flags).
    pub fn clear_flags(&self, pfn: Pfn, flags: FrameFlags) {
        self.update_held(pfn, &|word| {
            Some(word.with_flags(word.flags() & !flags.bits()))
        });
    }

    /// Changes the word of an allocation that somebody holds, and the ledgers of its blocks if it counts in another
    /// class afterwards; gives whether it did.
    #[inline(never)]
    fn update_held(&self, pfn: Pfn, change: &dyn Fn(Word) -> Option<Word>) -> bool {
        let Some(frame) = self.frame_index(pfn) else {
            return false;
        };
        let changed = self
            .descriptor_at(frame)
            .update(|word| word.is_held().then(|| change(word)).flatten());
        let Ok(old) = changed else {
            return false;
        };
        let (from, to) = (
            old.counted_class(),
            change(old).map_or(old.counted_class(), Word::counted_class),
        );
        if from == to {
            return true;
        }
        let frames = 1usize << old.order();
        let blocks = frames.div_ceil(FRAMES_PER_BLOCK) as u32;
        let count = frames.min(FRAMES_PER_BLOCK) as u16;
        for block in frame.block().run(blocks) {
            let changed = self.change(block, None, &|ledger| {
                Some(ledger.recounted(from, to, count))
            });
            if changed.is_ok_and(|change| change.new.refusal() != Refusal::None) {
                self.forgive_offender(block, &[frame]);
            }
        }
        true
    }

    /// Adds a reference to an allocation that somebody holds; false if nobody does, or if there are 31 already (nothing
    /// was changed). What has references cannot be freed. The caller must exclude that the holder frees or splits it
    /// meanwhile, for example by a lock: a reference that comes between the check and the step of a free is lost.
    #[must_use]
    pub fn get_ref(&self, pfn: Pfn) -> bool {
        self.descriptor(pfn).is_some_and(|d| {
            d.update(|word| {
                let more = word.is_held() && word.refcount() < MAX_REFS;
                more.then(|| word.with_refcount(word.refcount() + 1))
            })
            .is_ok()
        })
    }

    /// Drops a reference; false if there was none.
    pub fn put_ref(&self, pfn: Pfn) -> bool {
        self.descriptor(pfn).is_some_and(|d| {
            d.update(|word| Some(word.with_refcount(word.refcount().checked_sub(1)?)))
                .is_ok()
        })
    }

    /// Changes marks, references and age of an allocation that somebody holds, in one atomic step: what `change` makes
    /// of the frame as it is at that moment. It may be called several times. The frame's state and owner do not change
    /// in between: a protocol can test them and take a reference in one step.
    ///
    /// # Errors
    ///
    /// The frame as it was when `change` gave `None`; nothing was changed. `None` if nobody holds it.
    #[inline]
    pub fn update_marks(
        &self,
        pfn: Pfn,
        mut change: impl FnMut(&FrameInfo) -> Option<Marks>,
    ) -> Result<FrameInfo, Option<FrameInfo>> {
        let (info, changed) = self.try_update_marks(pfn, &mut change).ok_or(None)?;
        match changed {
            true => Ok(info),
            false => Err(Some(info)),
        }
    }

    /// The same; gives the frame as it was and whether it was changed. One copy for all changes.
    #[inline(never)]
    fn try_update_marks(
        &self,
        pfn: Pfn,
        change: &mut dyn FnMut(&FrameInfo) -> Option<Marks>,
    ) -> Option<(FrameInfo, bool)> {
        let descriptor = self.descriptor(pfn)?;
        let pinned = FrameFlags::PINNED.bits();
        let mut seen = None;
        let updated = descriptor.update(|word| {
            if !word.is_held() {
                seen = None;
                return None;
            }
            let info = descriptor.info(word, word.state());
            let marks = change(&info);
            seen = Some(info);
            let marks = marks?;
            let flags = marks.flags.bits() & !pinned | word.flags() & pinned;
            Some(
                word.with_flags(flags)
                    .with_refcount(marks.refcount.min(MAX_REFS))
                    .with_generation(marks.generation & 7),
            )
        });
        Some((seen?, updated.is_ok()))
    }

    /// The age of `pfn`, 0 to 7.
    pub fn generation(&self, pfn: Pfn) -> u8 {
        self.descriptor(pfn).map_or(0, |d| d.load().generation())
    }

    /// The first frame of `block` from offset `from` on that has the age `generation`, as its offset: for who looks through
    /// whole blocks.
    pub fn next_of_generation(&self, block: BlockId, from: usize, generation: u8) -> Option<usize> {
        let first = block.first_frame();
        (from..FRAMES_PER_BLOCK).find(|&at| {
            let frame = first.plus(at as u32);
            self.descriptor_at(frame).load().generation() == generation
        })
    }

    /// Sets the age of what somebody holds (its three low bits count).
    pub fn set_generation(&self, pfn: Pfn, generation: u8) {
        self.update_word(pfn, |word| word.with_generation(generation & 7));
    }

    fn update_word(&self, pfn: Pfn, change: impl Fn(Word) -> Word) {
        if let Some(descriptor) = self.descriptor(pfn) {
            let _ = descriptor.update(|word| word.is_held().then(|| change(word)));
        }
    }
}
