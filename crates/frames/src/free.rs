//! Freeing: into the CPU's cache, or straight into the field.

use crate::{
    CpuId, Event, FrameAllocator, FrameClass, FrameState, FreeError, Order, Pfn, cache::BATCH,
    descriptor::Word, position::FrameIndex,
};

impl FrameAllocator<'_> {
    /// Gives back what [`alloc`](Self::alloc) gave: in state *Allocated*, with the same order.
    ///
    /// # Errors
    ///
    /// See [`FreeError`]: a second free is detected unless the frame already has a new holder. If two CPUs free the
    /// same allocation at the same moment, both may succeed; [`verify`](Self::verify) reports it while one of the two
    /// is in a CPU's cache.
    pub fn free(&self, cpu: CpuId, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let frame = self
            .frame_index_inline(pfn)
            .ok_or(FreeError::Unknown(pfn))?;
        if order != Order::BASE {
            return self.free_large(cpu, pfn, frame, order);
        }
        let descriptor = self.descriptor_at(frame);
        // The line arrives while the lock is taken, which waits for everything before it.
        dirigible_prefetch::for_write(descriptor.word);
        let guard = self.lock_inline(cpu);
        let word = descriptor.load();
        if !word.is_freeable(Order::BASE) {
            return Err(refuse_free(pfn, word));
        }
        // A plain store: its holder gave the frame up, and under the lock nobody else takes it for a freed one.
        descriptor.store(Word::new());
        guard.count(Event::PgFree, 1);
        let class = word.class();
        if class == FrameClass::Balloon || self.in_isolated_block(frame) {
            self.uncache(&[frame], class, &guard);
            return Ok(());
        }
        guard.add_to_filter(frame.block());
        let cache = guard.cache(class.migratetype());
        if !cache.push(frame) {
            self.flush(&guard, class.migratetype());
            let room = cache.push(frame);
            debug_assert!(room, "a flush makes room");
        }
        Ok(())
    }

    /// Takes an allocation of `order` from its holder, in one atomic step: of two that free the same frame at once, one
    /// fails. Gives its class.
    ///
    /// # Errors
    ///
    /// The word found, if the frame is no such allocation.
    pub(crate) fn disown(&self, frame: FrameIndex, order: Order) -> Result<FrameClass, Word> {
        self.descriptor_at(frame)
            .update(|word| word.is_freeable(order).then(Word::new))
            .map(Word::class)
    }

    /// Gives back single frames in one go, past the cache; neighbours should stand together.
    ///
    /// # Errors
    ///
    /// Names the first frame that is not the caller's; those before it are free, those from it on are not.
    pub fn free_bulk(&self, cpu: CpuId, pfns: &[Pfn]) -> Result<(), FreeError> {
        let mut bulk = Bulk::new(self);
        let mut result = Ok(());
        let mut freed = 0;
        for &pfn in pfns {
            let Some(frame) = self.frame_index(pfn) else {
                result = Err(FreeError::Unknown(pfn));
                break;
            };
            match self.disown(frame, Order::BASE) {
                Ok(class) => bulk.add(frame, class),
                Err(word) => {
                    result = Err(refuse_free(pfn, word));
                    break;
                }
            }
            freed += 1;
        }
        bulk.finish();
        self.count_frames(cpu, Event::PgFree, freed);
        result
    }

    fn free_large(
        &self,
        cpu: CpuId,
        pfn: Pfn,
        head: FrameIndex,
        order: Order,
    ) -> Result<(), FreeError> {
        if order == Order::HUGE {
            return self.free_huge(cpu, pfn, head);
        }
        let class = self
            .disown(head, order)
            .map_err(|word| refuse_free(pfn, word))?;
        if order > Order::HUGE {
            self.free_blocks_of(head, order, class);
        } else {
            let mut bulk = Bulk::new(self);
            for tail in head.plus(1).run(order.frames() - 1) {
                self.descriptor_at(tail).store(Word::new());
            }
            for frame in head.run(order.frames()) {
                bulk.add(frame, class);
            }
            bulk.finish();
        }
        self.count_frames(cpu, Event::PgFree, order.frames());
        Ok(())
    }
}

#[cold]
pub(crate) fn refuse_free(pfn: Pfn, word: Word) -> FreeError {
    if word.state() != FrameState::Allocated {
        FreeError::NotAllocated(pfn)
    } else if word.is_pinned() {
        FreeError::Pinned(pfn)
    } else if word.refcount() > 0 {
        FreeError::Referenced(pfn)
    } else {
        FreeError::WrongOrder(pfn)
    }
}

/// Disowned frames on their way to their fields, in batches of one class.
pub(crate) struct Bulk<'a, 'm> {
    allocator: &'a FrameAllocator<'m>,
    batch: [FrameIndex; BATCH],
    count: usize,
    class: FrameClass,
}

impl<'a, 'm> Bulk<'a, 'm> {
    pub fn new(allocator: &'a FrameAllocator<'m>) -> Self {
        Self {
            allocator,
            batch: [FrameIndex::default(); BATCH],
            count: 0,
            class: FrameClass::Movable,
        }
    }

    pub fn add(&mut self, frame: FrameIndex, class: FrameClass) {
        if self.count == BATCH || self.count > 0 && class != self.class {
            self.flush();
        }
        self.class = class;
        self.batch[self.count] = frame;
        self.count += 1;
    }

    fn flush(&mut self) {
        self.allocator
            .put_into_field(&self.batch[..self.count], self.class, None);
        self.count = 0;
    }

    pub fn finish(mut self) {
        self.flush();
    }
}
