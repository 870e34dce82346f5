//! Any number of frames in a row, at any place or a named one, given back in any pieces.
//!
//! A range is single frames that happen to stand side by side: each is an order-0 allocation of its own afterwards. So a stack, a
//! DMA buffer or a user's segment costs no rounding up, and may shrink or be given back piece by piece.

use crate::{
    AllocError, AllocRequest, BlockId, BlockState, CpuId, Event, FRAMES_PER_BLOCK, Fallback,
    FrameAllocator, FrameClass, FrameState, FreeError, Ledger, Migratetype, Order, Pfn, Watermark,
    bits::{span_masks, take_span},
    descriptor::Word,
    free::{Bulk, refuse_free},
    metadata::WORDS,
    sums::Part,
    sync::{AtomicU64, Ordering},
};

/// Why the frames at a named place cannot be had. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocAtError {
    /// Not all of them are one stretch of one zone's memory, or there is none. Memory that was added later, and not right behind
    /// the zone's last, is a stretch of its own.
    #[error("the range is not one stretch of a zone's memory")]
    NoMemory,
    /// Free memory would fall below the watermark: reclaim first.
    #[error("free memory is at the watermark; reclaim some")]
    BelowWatermark,
    /// One of them is in use, reserved, or in a block that somebody is emptying; evacuate first.
    #[error("a frame of the range is in use")]
    InUse,
}

const BLOCK: u32 = FRAMES_PER_BLOCK as u32;

impl FrameAllocator<'_> {
    /// Takes `count` frames in a row, the first a multiple of 2^`align` frames (the order of `request` is ignored). Each of them
    /// is a single frame in state *Allocated*; they are given back one by one, or by [`free_range`](Self::free_range) in any
    /// pieces. A `count` of 0 is taken as 1.
    ///
    /// Up to 512 frames are looked for inside one block, after the rules of placement and fallback. A longer range, and one
    /// that fits in no block, is looked for block by block over the zone. Such a range may take the whole-block reserve, as a
    /// huge page may.
    ///
    /// # Errors
    ///
    /// See [`AllocError`]. Mobility's variant moves others out of the way.
    pub fn alloc_range(
        &self,
        cpu: CpuId,
        count: usize,
        align: Order,
        request: AllocRequest,
    ) -> Result<Pfn, AllocError> {
        let request = AllocRequest {
            order: Order::BASE,
            ..request
        };
        let count = count.max(1);
        let mut result = Err(AllocError::Fragmented);
        self.with_drain(cpu, true, &mut || {
            result = self.range_once(cpu, count, align, request);
            result.is_ok()
        });
        let first = result?;
        for frame in first..first + count as u32 {
            self.descriptor_at(frame)
                .store(Word::owned(request.class, Order::BASE));
        }
        self.count_frames(cpu, Event::PgAlloc, count);
        Ok(self.pfn(first))
    }

    fn range_once(
        &self,
        cpu: CpuId,
        count: usize,
        align: Order,
        request: AllocRequest,
    ) -> Result<u32, AllocError> {
        let mut error = AllocError::BelowWatermark;
        for zone_number in self.zone_order() {
            if count <= FRAMES_PER_BLOCK && align <= Order::HUGE {
                match self.run_booked(cpu, zone_number, request, count, align) {
                    Ok(first) => return Ok(first),
                    Err(AllocError::BelowWatermark) => continue,
                    Err(AllocError::Fragmented) => {}
                }
            } else if self.above(zone_number, request.watermark) < count as u64 {
                continue;
            }
            match self.claim_over_blocks(cpu, zone_number, count, align, request) {
                Ok(first) => return Ok(first),
                Err(AllocAtError::BelowWatermark) => {}
                Err(_) => error = AllocError::Fragmented,
            }
        }
        Err(error)
    }

    /// Free frames of a zone above a mark.
    fn above(&self, zone_number: usize, watermark: Watermark) -> u64 {
        let mark = self.zones[zone_number].mark(watermark);
        (self.free_in(zone_number) - mark).max(0) as u64
    }

    /// Takes `count` frames from `first` on, wherever that is, as single frames (the order of `request` is ignored).
    ///
    /// # Errors
    ///
    /// See [`AllocAtError`].
    pub fn alloc_at(
        &self,
        cpu: CpuId,
        first: Pfn,
        count: usize,
        request: AllocRequest,
    ) -> Result<(), AllocAtError> {
        let frame = self.row_of(first, count).ok_or(AllocAtError::NoMemory)?;
        let zone = self.zone_of_block(Self::block_of_index(frame)).index();
        let mut result = Err(AllocAtError::InUse);
        self.with_drain(cpu, true, &mut || {
            result = self.claim_booked(cpu, zone, frame, count, request);
            result.is_ok()
        });
        result?;
        for frame in frame..frame + count as u32 {
            self.descriptor_at(frame)
                .store(Word::owned(request.class, Order::BASE));
        }
        self.count_frames(cpu, Event::PgAlloc, count);
        Ok(())
    }

    /// The position of `count` frames that are one stretch of one zone.
    fn row_of(&self, first: Pfn, count: usize) -> Option<u32> {
        let further = (count as u64).checked_sub(1)?;
        let last = Pfn::new(first.get().checked_add(further)?);
        self.segments()
            .iter()
            .find_map(|segment| segment.frame_of(last).and(segment.frame_of(first)))
    }

    fn claim_booked(
        &self,
        cpu: CpuId,
        zone: usize,
        first: u32,
        count: usize,
        request: AllocRequest,
    ) -> Result<(), AllocAtError> {
        if self.book(zone, None, count, Part::All, request.watermark) == 0 {
            return Err(AllocAtError::BelowWatermark);
        }
        if self.claim_frames(cpu, first, count as u32, request.class) {
            return Ok(());
        }
        self.pay_in(zone, None, count as i64);
        Err(AllocAtError::InUse)
    }

    /// Claims exactly these frames, of one block after the other, or none. The zone's free frames are the caller's to book.
    fn claim_frames(&self, cpu: CpuId, first: u32, count: u32, class: FrameClass) -> bool {
        let end = first + count;
        let mut at = first;
        while at < end {
            let stop = end.min((at / BLOCK + 1) * BLOCK);
            if !self.claim_piece(cpu, at, stop, class) {
                self.unclaim(first, at, class);
                return false;
            }
            at = stop;
        }
        true
    }

    fn claim_piece(&self, cpu: CpuId, begin: u32, end: u32, class: FrameClass) -> bool {
        let block = Self::block_of_index(begin);
        let field = &self.fields[block.index()];
        let (at, count) = (begin % BLOCK, (end - begin) as u16);
        // A look first: it disturbs nobody. Relaxed, since the step itself decides.
        let set = |(word, mask): (&AtomicU64, u64)| word.load(Ordering::Relaxed) & mask == mask;
        if !field.0.iter().zip(span_masks(at, count.into())).all(set) {
            return false;
        }
        let mine = class.migratetype();
        let taken = self.change(block, None, &|ledger| {
            let fits = ledger.state() == BlockState::Open && ledger.free() >= count;
            let whole = ledger.is_whole();
            let ledger = fits.then(|| ledger.taken(class, count))?;
            Some(if whole {
                ledger.with_type(mine)
            } else {
                ledger
            })
        });
        let Ok(taken) = taken else {
            return false;
        };
        if !take_span(field, at, count.into()) {
            // Others took some of them between the look and the ledger.
            self.give_share_back(block, class, count);
            return false;
        }
        if taken.old.is_whole() {
            self.events().add(cpu, Event::BlockClaimed, 1);
        }
        true
    }

    /// The reverse, for frames whose words were not written yet.
    fn unclaim(&self, first: u32, end: u32, class: FrameClass) {
        let mut at = first;
        while at < end {
            let stop = end.min((at / BLOCK + 1) * BLOCK);
            let block = Self::block_of_index(at);
            let masks = span_masks(at % BLOCK, (stop - at) as usize);
            for (word, mask) in masks.into_iter().enumerate() {
                if mask != 0 {
                    self.set_bits(block, word, mask);
                }
            }
            self.give_share_back(block, class, (stop - at) as u16);
            at = stop;
        }
    }

    /// Looks for `count` free frames in a row over the blocks of a zone, and only then books and claims them: a booking during the
    /// walk would hide as many frames from others. Gives the first.
    fn claim_over_blocks(
        &self,
        cpu: CpuId,
        zone_number: usize,
        count: usize,
        align: Order,
        request: AllocRequest,
    ) -> Result<u32, AllocAtError> {
        let step = align.frames() as u64;
        let steals = request.fall_back && self.fallback == Fallback::Steal;
        let mine = request.class.migratetype();
        // A range of a block or less takes no whole block out of the reserve; it touches two at most.
        let zone = &self.zones[zone_number];
        let spares = request.class.is_movable()
            && !request.break_reserve
            && count <= FRAMES_PER_BLOCK
            && zone.reserve > 0
            && self.whole_in(zone_number) < i64::from(zone.reserve) + 2;
        let usable = |ledger: Ledger| {
            let foreign = ledger.migratetype() != mine
                && !(self.fallback == Fallback::Evacuate
                    && mine != Migratetype::Movable
                    && ledger.migratetype() != Migratetype::Movable);
            match ledger.is_whole() {
                true => !spares,
                false => ledger.state() == BlockState::Open && (!foreign || steals),
            }
        };
        for segment in self.segments() {
            let first_block = BlockId::new(segment.block());
            if self.zone_of_block(first_block).index() != zone_number {
                continue;
            }
            let base = segment.block() * BLOCK;
            // The first frame of the free stretch that ends where the look is, moved up to a multiple of the alignment.
            let aligned = |frame: u32| {
                let pfn = segment.pfn().get().wrapping_add(u64::from(frame - base));
                u64::from(frame) + (pfn.wrapping_neg() & (step - 1))
            };
            let end = base + segment.blocks() * BLOCK;
            let (mut begin, mut at) = (base, base);
            while at < end {
                let ledger = self.ledger(Self::block_of_index(at));
                let whole = ledger.is_whole() && usable(ledger);
                if at % BLOCK == 0 && (whole || ledger.free() == 0 || !usable(ledger)) {
                    at += BLOCK;
                    if !whole {
                        begin = at;
                    }
                } else {
                    let word =
                        &self.fields[at as usize / FRAMES_PER_BLOCK].0[at as usize / 64 % WORDS];
                    let bits = word.load(Ordering::Acquire) >> (at % 64);
                    let free = bits.trailing_ones().min(64 - at % 64);
                    at += free;
                    if free == 0 {
                        let used = bits.trailing_zeros().min(64 - at % 64);
                        at += used;
                        begin = at;
                    }
                }
                while aligned(begin) + count as u64 <= u64::from(at) {
                    let first = aligned(begin) as u32;
                    let claimed = self.claim_booked(cpu, zone_number, first, count, request);
                    match claimed {
                        Ok(()) => return Ok(first),
                        Err(AllocAtError::BelowWatermark) => {
                            return Err(AllocAtError::BelowWatermark);
                        }
                        // Others took some of it.
                        Err(_) => begin = at,
                    }
                }
            }
        }
        Err(AllocAtError::InUse)
    }

    /// Gives back `count` frames from `first` on that the caller holds in state *Allocated*, whatever they were allocated as: single
    /// frames, whole allocations of any order, and pieces of such, whose rest becomes single frames.
    ///
    /// # Errors
    ///
    /// The first frame that is not the caller's; those before it are free, those from it on are not.
    pub fn free_range(&self, cpu: CpuId, first: Pfn, count: usize) -> Result<(), FreeError> {
        let mut bulk = Bulk::new(self);
        let (mut done, mut freed) = (0, 0);
        let mut result = Ok(());
        while done < count {
            let pfn = first.plus(done as u64);
            let Some(frame) = self.frame_index(pfn) else {
                result = Err(FreeError::Unknown(pfn));
                break;
            };
            if let Ok(class) = self.disown(frame, Order::BASE) {
                bulk.add(frame, class);
                done += 1;
                freed += 1;
                continue;
            }
            match self.free_part(cpu, pfn, count - done) {
                Ok(frames) => done += frames,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        bulk.finish();
        self.count_frames(cpu, Event::PgFree, freed);
        result
    }

    /// Frees the allocation of several frames that begins at `pfn`, if it has at most `most`; else makes single frames of the one
    /// that holds `pfn`. Gives how many frames were freed.
    fn free_part(&self, cpu: CpuId, pfn: Pfn, most: usize) -> Result<usize, FreeError> {
        let head = self.head(pfn);
        let frame = self.frame_index(head).ok_or(FreeError::Unknown(head))?;
        let word = self.descriptor_at(frame).load();
        let order = Order::new(word.order()).unwrap_or_default();
        if order == Order::BASE || !word.is_freeable(order) {
            return Err(refuse_free(pfn, word));
        }
        if head == pfn && order.frames() <= most {
            self.free(cpu, pfn, order)?;
            return Ok(order.frames());
        }
        self.split_allocation(frame, word);
        Ok(0)
    }

    /// Makes single frames of an allocation of order 1 to 10 in state *Allocated*, named by its first frame. All get its class, owner,
    /// marks and owner word. Each can be freed on its own then.
    ///
    /// # Errors
    ///
    /// If the caller holds no such allocation, or it has references.
    pub fn split(&self, head: Pfn) -> Result<(), FreeError> {
        let frame = self.frame_index(head).ok_or(FreeError::Unknown(head))?;
        let word = self.descriptor_at(frame).load();
        let order = Order::new(word.order()).unwrap_or_default();
        let marked = word.with_flags(0);
        if order == Order::BASE || !marked.is_freeable(order) {
            return Err(refuse_free(head, marked));
        }
        self.split_allocation(frame, word);
        Ok(())
    }

    fn split_allocation(&self, frame: u32, word: Word) {
        let single = word.with_order(0);
        let first = self.descriptor_at(frame);
        let owner = first.owner.load(Ordering::Relaxed);
        if word.order() < Order::HUGE.get() {
            for tail in frame + 1..frame + (1 << word.order()) {
                let descriptor = self.descriptor_at(tail);
                debug_assert_eq!(descriptor.load().state(), FrameState::Tail);
                descriptor.owner.store(owner, Ordering::Relaxed);
                descriptor.store(single);
            }
            first.store(single);
            return;
        }
        let lower = Self::block_of_index(frame);
        if word.order() == Order::MAX.get() {
            // The upper half first: while it is huge the head tells of both.
            let upper = BlockId::new(lower.index() as u32 + 1);
            self.record(upper).owner.store(owner, Ordering::Relaxed);
            self.split_block(upper, single);
        }
        self.split_block(lower, single);
    }
}
