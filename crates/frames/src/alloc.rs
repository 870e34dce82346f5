//! Allocation: the per-CPU fast path, the refill behind it, runs of order 1 to 8.

use crate::{
    AllocError, AllocRequest, CpuId, Event, FrameAllocator, FrameClass, FrameState, Order, Pfn,
    ZoneId, cache::BATCH, change::Taken, cpu::CpuGuard, descriptor::Word, ladder::Ladder,
    position::FrameIndex, sums::Booking,
};

impl FrameAllocator<'_> {
    /// Takes 2^order frames; they come in state *Allocated*, without an owner.
    ///
    /// Single frames come from the cache of `cpu`, movable huge pages from the whole blocks that it keeps, and no word
    /// is written that another CPU uses. Class [`FrameClass::Balloon`] bypasses the cache. Before a request is refused,
    /// all CPUs' caches are emptied and it is tried once more. If several requests for more than one frame are refused
    /// in a row, not all of them do that: a requester that keeps failing must not empty the caches of the others each
    /// time.
    ///
    /// # Errors
    ///
    /// See [`AllocError`].
    pub fn alloc(&self, cpu: CpuId, request: AllocRequest) -> Result<Pfn, AllocError> {
        if request.order == Order::BASE && request.class != FrameClass::Balloon {
            let guard = self.lock_inline(cpu);
            if let Some(frame) = self.pop_owned(&guard, request.class) {
                return Ok(self.pfn_inline(frame));
            }
            return self.alloc_missed(cpu, guard, request);
        }
        if request.order == Order::HUGE
            && request.class == FrameClass::Movable
            && let Some(head) = self.alloc_spare(cpu, request)
        {
            return Ok(self.pfn_inline(head));
        }
        self.alloc_slow(cpu, request)
    }

    /// The next frame of the cache becomes the caller's.
    #[inline]
    fn pop_owned(&self, guard: &CpuGuard<'_>, class: FrameClass) -> Option<FrameIndex> {
        let frame = guard.cache(class.migratetype()).pop()?;
        self.descriptor_at(frame)
            .store(Word::owned(class, Order::BASE));
        guard.count(Event::PgAlloc, 1);
        Some(frame)
    }

    #[inline(never)]
    fn alloc_missed(
        &self,
        cpu: CpuId,
        guard: CpuGuard<'_>,
        request: AllocRequest,
    ) -> Result<Pfn, AllocError> {
        if let Ok(frame) = self.refill(cpu, &guard, request) {
            return Ok(self.pfn(frame));
        }
        drop(guard);
        // Cached frames are free memory too.
        self.drain_cpu_caches();
        let guard = self.lock(cpu);
        let frame = match self.pop_owned(&guard, request.class) {
            Some(frame) => frame,
            None => self.refill(cpu, &guard, request)?,
        };
        Ok(self.pfn(frame))
    }

    #[cold]
    fn alloc_slow(&self, cpu: CpuId, request: AllocRequest) -> Result<Pfn, AllocError> {
        let mut result = Err(AllocError::Fragmented);
        // Cached frames are free memory too, and their blocks may be whole with them.
        self.with_drain(cpu, request.order > Order::BASE, &mut || {
            result = self.alloc_uncached(cpu, request);
            result.is_ok()
        });
        result
    }

    fn alloc_uncached(&self, cpu: CpuId, request: AllocRequest) -> Result<Pfn, AllocError> {
        let first = match request.order {
            Order::BASE => {
                let taken = self.gather(cpu, None, request, 1)?;
                self.hand_out(&taken, request.class);
                taken.frames().next().ok_or(AllocError::Fragmented)?
            }
            order if order < Order::HUGE => self.alloc_run(cpu, request)?,
            _ => self.alloc_blocks(cpu, request)?,
        };
        self.count_frames(cpu, Event::PgAlloc, request.order.frames());
        Ok(self.pfn(first))
    }

    /// Takes up to `out.len()` single frames of `request` (its order is ignored); gives how many.
    pub fn alloc_bulk(&self, cpu: CpuId, request: AllocRequest, out: &mut [Pfn]) -> usize {
        let request = AllocRequest {
            order: Order::BASE,
            ..request
        };
        let mut count = 0;
        for place in out {
            let Ok(pfn) = self.alloc(cpu, request) else {
                break;
            };
            *place = pfn;
            count += 1;
        }
        count
    }

    /// Makes frames that were just taken from their block the caller's.
    pub(crate) fn hand_out(&self, taken: &Taken, class: FrameClass) {
        for frame in taken.frames() {
            self.descriptor_at(frame)
                .store(Word::owned(class, Order::BASE));
        }
    }

    /// Fills the CPU's empty cache with a word's worth of frames and hands one out.
    ///
    /// The lock is held from taking to caching: an isolator that comes in between waits for it and finds the frames.
    fn refill(
        &self,
        cpu: CpuId,
        guard: &CpuGuard<'_>,
        request: AllocRequest,
    ) -> Result<FrameIndex, AllocError> {
        let taken = self.gather(cpu, Some(guard), request, BATCH)?;
        guard.add_to_filter(taken.block);
        let cache = guard.cache(request.class.migratetype());
        let first = taken.block.first_frame();
        // The last word is kept as a mask; what comes from the words before it, where a block is nearly full, goes to
        // the ring, highest first, since the newest is handed out first.
        let mut filled = false;
        for (number, &mask) in taken.masks.iter().enumerate().rev() {
            let base = first.plus(number as u32 * 64);
            if mask != 0 && !filled {
                cache.fill(base, mask);
                self.prefetch_words(base);
                filled = true;
                continue;
            }
            let mut left = mask;
            while left != 0 {
                let bit = 63 - left.leading_zeros();
                left ^= 1 << bit;
                let room = cache.push(base.plus(bit));
                debug_assert!(room, "only an empty cache is refilled");
            }
        }
        let frame = self.pop_owned(guard, request.class);
        debug_assert!(frame.is_some(), "a refill brings at least one frame");
        frame.ok_or(AllocError::Fragmented)
    }

    /// Takes up to `max` frames out of one block, by the ladder.
    fn gather(
        &self,
        cpu: CpuId,
        guard: Option<&CpuGuard<'_>>,
        request: AllocRequest,
        max: usize,
    ) -> Result<Taken, AllocError> {
        let request = AllocRequest {
            order: Order::BASE,
            ..request
        };
        let booking = Booking::up_to(max, request.watermark);
        let mut taken = Taken::nothing();
        self.try_zones(|zone| {
            let ladder = Ladder::new(self, cpu, guard, zone, request);
            self.search_booked(zone, guard, booking, &mut |booked| {
                ladder.base(booked, &mut taken);
                taken.count
            })
        })?;
        Ok(taken)
    }

    fn alloc_run(&self, cpu: CpuId, request: AllocRequest) -> Result<FrameIndex, AllocError> {
        let frames = request.order.frames();
        let first =
            self.try_zones(|zone| self.run_booked(cpu, zone, request, frames, request.order))?;
        let head = Word::owned(request.class, request.order);
        self.descriptor_at(first).store(head);
        let tail = head.with_state(FrameState::Tail).with_order(0);
        for frame in first.plus(1).run(frames - 1) {
            self.descriptor_at(frame).store(tail);
        }
        Ok(first)
    }

    /// Books and takes `frames` in a row inside one block of a zone, the first a multiple of 2^`align` frames. All or
    /// nothing: a part that is given back at once would be missed by others meanwhile.
    pub(crate) fn run_booked(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        request: AllocRequest,
        frames: usize,
        align: Order,
    ) -> Result<FrameIndex, AllocError> {
        let booking = Booking::all(frames, request.watermark);
        let ladder = Ladder::new(self, cpu, None, zone, request);
        let mut found = None;
        self.search_booked(zone, None, booking, &mut |booked| {
            found = ladder.run(frames, align);
            found.map_or(0, |_| booked)
        })?;
        found.ok_or(AllocError::Fragmented)
    }
}
