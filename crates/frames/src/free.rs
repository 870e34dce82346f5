//! Freeing: into the CPU's cache, or straight into the field.

use crate::{
    BlockState, CpuId, Event, FrameAllocator, FrameClass, FrameState, FreeError, Migratetype,
    Order, Pfn,
    counters::add_locked,
    cpu::{BATCH, CpuGuard},
    descriptor::Word,
    sync::Ordering,
};

impl FrameAllocator<'_> {
    /// Gives back what [`alloc`](Self::alloc) gave: in state *Owned*, with the same order.
    ///
    /// # Errors
    ///
    /// See [`FreeError`]: a frame that was freed before is found out unless it has a new holder already.
    #[inline]
    pub fn free(&self, cpu: CpuId, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let frame = self.frame_index(pfn).ok_or(FreeError::Unknown(pfn))?;
        if order != Order::BASE {
            return self.free_large(cpu, pfn, frame, order);
        }
        let guard = self.cpu(cpu).lock();
        let class = match self.disown(frame, Order::BASE, FrameState::Cached) {
            Ok(class) => class,
            Err(word) => return Err(self.refuse_free(pfn, word)),
        };
        add_locked(&guard.slot.events[Event::PgFree as usize], 1);
        let migratetype = class.migratetype();
        if class == FrameClass::Balloon || self.in_isolated_block(frame) {
            self.uncache(&[frame], class);
        } else if !guard.push(migratetype, frame) {
            self.flush(&guard, migratetype, class);
            let room = guard.push(migratetype, frame);
            debug_assert!(room, "a flush makes room");
        }
        Ok(())
    }

    /// Takes an allocation of `order` from its holder, in one atomic step: of two that free the same frame at once, one fails.
    /// Gives its class.
    ///
    /// # Errors
    ///
    /// The word found, if the frame is no such allocation.
    #[inline]
    fn disown(&self, frame: u32, order: Order, to: FrameState) -> Result<FrameClass, Word> {
        self.descriptors[frame as usize]
            .update(|word| {
                let fits = word.state() == FrameState::Owned
                    && word.order() == order.get()
                    && !word.is_pinned();
                let left = Word::new().with_state(to);
                fits.then(|| match to {
                    FrameState::Free => left,
                    _ => left.with_class(word.class()),
                })
            })
            .map(Word::class)
    }

    #[cold]
    fn refuse_free(&self, pfn: Pfn, word: Word) -> FreeError {
        if word.state() != FrameState::Owned {
            FreeError::NotOwned(pfn)
        } else if word.is_pinned() {
            FreeError::Pinned(pfn)
        } else {
            FreeError::WrongOrder(pfn)
        }
    }

    /// Gives back single frames in one go, past the cache; neighbours should stand together.
    ///
    /// # Errors
    ///
    /// The first frame that is not the caller's; those before it are free, those after it are not.
    pub fn free_bulk(&self, cpu: CpuId, pfns: &[Pfn]) -> Result<(), FreeError> {
        let mut batch = [0u32; BATCH];
        let (mut count, mut class) = (0, FrameClass::Movable);
        let mut result = Ok(());
        let mut freed = 0;
        for &pfn in pfns {
            let Some(frame) = self.frame_index(pfn) else {
                result = Err(FreeError::Unknown(pfn));
                break;
            };
            let its_class = match self.disown(frame, Order::BASE, FrameState::Free) {
                Ok(its_class) => its_class,
                Err(word) => {
                    result = Err(self.refuse_free(pfn, word));
                    break;
                }
            };
            if count == BATCH || (count > 0 && its_class != class) {
                self.put_into_field(&batch[..count], class);
                count = 0;
            }
            class = its_class;
            batch[count] = frame;
            count += 1;
            freed += 1;
        }
        self.put_into_field(&batch[..count], class);
        self.count_frames(cpu, Event::PgFree, freed);
        result
    }

    /// Empties all CPUs' caches and reservations into the blocks.
    pub fn drain_cpu_caches(&self) {
        for slot in self.cpus {
            let guard = slot.lock();
            for migratetype in Migratetype::ALL {
                while guard.len(migratetype) > 0 {
                    self.flush(&guard, migratetype, class_of(migratetype));
                }
                guard.set_reserved(migratetype, crate::cpu::NO_BLOCK);
            }
        }
    }

    /// Moves a batch from the cache to the field, oldest first.
    fn flush(&self, guard: &CpuGuard<'_>, migratetype: Migratetype, class: FrameClass) {
        let mut batch = [0u32; BATCH];
        let count = guard.take_oldest(migratetype, &mut batch);
        self.uncache(&batch[..count], class);
    }

    /// Cached → Free, for frames that were just taken out of a cache.
    pub(crate) fn uncache(&self, frames: &[u32], class: FrameClass) {
        for frame in frames {
            self.descriptors[*frame as usize].store(Word::new());
        }
        self.put_into_field(frames, class);
    }

    /// Whether the frame must not be cached. Called with the CPU's lock held.
    ///
    /// An isolator raises the count first, changes the ledger, then takes each CPU's lock to empty the caches. Who has the
    /// lock before it will be emptied; who gets it after sees the count, by that lock.
    #[inline]
    fn in_isolated_block(&self, frame: u32) -> bool {
        self.isolated_blocks.load(Ordering::Relaxed) > 0
            && self.ledger(Self::block_of_index(frame)).state() == BlockState::Isolated
    }

    fn free_large(&self, cpu: CpuId, pfn: Pfn, head: u32, order: Order) -> Result<(), FreeError> {
        let class = self
            .disown(head, order, FrameState::Free)
            .map_err(|word| self.refuse_free(pfn, word))?;
        if order >= Order::HUGE {
            self.free_blocks_of(head, order, class);
        } else {
            let mut batch = [0u32; BATCH];
            let all = head..head + order.frames() as u32;
            for tail in all.clone().skip(1) {
                self.descriptors[tail as usize].store(Word::new());
            }
            for start in all.step_by(BATCH) {
                let count = BATCH.min(order.frames());
                for (place, frame) in batch.iter_mut().zip(start..) {
                    *place = frame;
                }
                self.put_into_field(&batch[..count], class);
            }
        }
        self.count_frames(cpu, Event::PgFree, order.frames());
        Ok(())
    }
}

/// The class of the frames in the cache of `migratetype`.
pub(crate) fn class_of(migratetype: Migratetype) -> FrameClass {
    match migratetype {
        Migratetype::Unmovable => FrameClass::Unmovable,
        Migratetype::Movable => FrameClass::Movable,
        Migratetype::Reclaimable => FrameClass::Reclaimable,
    }
}
