//! Any number of frames in a row, at any place or a named one, given back in any pieces.
//!
//! A range consists of single frames: each is an order-0 allocation of its own afterwards. So a stack, a DMA buffer or
//! a part of a user's memory costs no rounding up, and may shrink or be given back piece by piece.

use crate::{
    AllocError, AllocRequest, BlockState, CpuId, Event, FRAMES_PER_BLOCK, FrameAllocator,
    FrameClass, FrameState, FreeError, Ledger, Order, Pfn, ZoneId,
    bits::{span_masks, take_span},
    descriptor::Word,
    free::{Bulk, refuse_free},
    position::FrameIndex,
    sums::Booking,
    sync::{AtomicU64, Ordering},
};

/// Why the frames at a named place were not allocated. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocAtError {
    /// They are not all in one segment, memory of one zone without a hole; or there are none. Memory that was added
    /// later, and not right behind the zone's last, is a segment of its own.
    #[error("the range is not in one segment of a zone's memory")]
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
    /// Takes `count` frames in a row, the first a multiple of 2^`align` frames (the order of `request` is ignored).
    /// Each of them is a single frame in state *Allocated*; they are given back one by one, or by
    /// [`free_range`](Self::free_range) in any pieces. A `count` of 0 is taken as 1.
    ///
    /// Up to 512 frames are looked for inside one block, by the rules of placement and fallback. A longer range, and
    /// one that fits in no block, is looked for block by block over the zone. Such a range may take the whole-block
    /// reserve, as a huge page may.
    ///
    /// # Errors
    ///
    /// See [`AllocError`]. `dirigible-mobility` has a variant that moves frames out of the way.
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
        self.own_range(cpu, first, count, request);
        Ok(self.pfn(first))
    }

    /// Makes `count` frames that were just taken the caller's.
    fn own_range(&self, cpu: CpuId, first: FrameIndex, count: usize, request: AllocRequest) {
        let word = Word::owned(request.class, Order::BASE);
        for frame in first.run(count) {
            self.descriptor_at(frame).store(word);
        }
        self.count_frames(cpu, Event::PgAlloc, count);
    }

    fn range_once(
        &self,
        cpu: CpuId,
        count: usize,
        align: Order,
        request: AllocRequest,
    ) -> Result<FrameIndex, AllocError> {
        self.try_zones(|zone| {
            if count <= FRAMES_PER_BLOCK && align <= Order::HUGE {
                match self.run_booked(cpu, zone, request, count, align) {
                    Err(AllocError::Fragmented) => {}
                    done => return done,
                }
            } else {
                let mark = self.zone(zone).mark(request.watermark);
                let above = (self.free_in(zone) - mark).max(0) as u64;
                if above < count as u64 {
                    return Err(AllocError::BelowWatermark);
                }
            }
            self.claim_over_blocks(cpu, zone, count, align, request)
        })
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
        let frame = self
            .position_of(first, count)
            .ok_or(AllocAtError::NoMemory)?;
        let zone = self.zone_of_block(frame.block());
        let mut result = Err(AllocAtError::InUse);
        self.with_drain(cpu, true, &mut || {
            let claimed = self.claim_booked(cpu, zone, frame, count, request);
            result = claimed.map_err(|error| match error {
                AllocError::BelowWatermark => AllocAtError::BelowWatermark,
                AllocError::Fragmented => AllocAtError::InUse,
            });
            result.is_ok()
        });
        result?;
        self.own_range(cpu, frame, count, request);
        Ok(())
    }

    /// The position of `count` frames that are in one segment.
    fn position_of(&self, first: Pfn, count: usize) -> Option<FrameIndex> {
        let further = (count as u64).checked_sub(1)?;
        let last = Pfn::new(first.get().checked_add(further)?);
        self.segments()
            .iter()
            .find_map(|segment| segment.frame_of(last).and(segment.frame_of(first)))
    }

    /// Books and claims exactly these frames. *Fragmented*: one of them is in use.
    fn claim_booked(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        first: FrameIndex,
        count: usize,
        request: AllocRequest,
    ) -> Result<(), AllocError> {
        let booking = Booking::all(count, request.watermark);
        self.take_booked(zone, None, booking, |booked| {
            match self.claim_frames(cpu, first, count as u32, request.class) {
                true => booked,
                false => 0,
            }
        })?;
        Ok(())
    }

    /// Claims exactly these frames, of one block after the other, or none. The zone's free frames are the caller's to
    /// book.
    fn claim_frames(&self, cpu: CpuId, first: FrameIndex, count: u32, class: FrameClass) -> bool {
        for (piece, length) in first.pieces(count) {
            if !self.claim_piece(cpu, piece, length, class) {
                self.unclaim(first, piece.get() - first.get(), class);
                return false;
            }
        }
        true
    }

    /// Claims frames of one block.
    fn claim_piece(&self, cpu: CpuId, begin: FrameIndex, count: u32, class: FrameClass) -> bool {
        let block = begin.block();
        let field = self.field(block);
        let (at, count) = (begin.offset(), count as u16);
        // A look first, which writes nothing. Relaxed: the claim itself decides.
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
    fn unclaim(&self, first: FrameIndex, count: u32, class: FrameClass) {
        for (piece, count) in first.pieces(count) {
            let masks = span_masks(piece.offset(), count as usize);
            for (word, mask) in masks.into_iter().enumerate() {
                if mask != 0 {
                    self.set_bits(piece.block(), word, mask);
                }
            }
            self.give_share_back(piece.block(), class, count as u16);
        }
    }

    /// Looks for `count` free frames in a row over the blocks of a zone, and only then books and claims them: a booking
    /// during the walk would hide as many frames from others. Gives the first.
    fn claim_over_blocks(
        &self,
        cpu: CpuId,
        zone: ZoneId,
        count: usize,
        align: Order,
        request: AllocRequest,
    ) -> Result<FrameIndex, AllocError> {
        let step = align.frames() as u64;
        let steals = self.steals(&request);
        let mine = request.class.migratetype();
        let shared = self.shared_type(mine);
        // A range of a block or less takes no whole block out of the reserve; it touches two at most.
        let reserve = self.zone(zone).reserve;
        let spares = request.spares_reserve()
            && count <= FRAMES_PER_BLOCK
            && reserve > 0
            && self.whole_in(zone) < i64::from(reserve) + 2;
        let usable = |ledger: Ledger| match ledger.is_whole() {
            true => !spares,
            false => {
                let migratetype = ledger.migratetype();
                let ours = migratetype == mine || Some(migratetype) == shared;
                ledger.state() == BlockState::Open && (ours || steals)
            }
        };
        for segment in self.segments() {
            if self.zone_of_block(segment.block()) != zone {
                continue;
            }
            let base = segment.block().first_frame();
            // The first frame from `frame` on at a multiple of the alignment.
            let aligned = |frame: FrameIndex| {
                let offset = frame.get() - base.get();
                let pfn = segment.pfn().get().wrapping_add(u64::from(offset));
                u64::from(frame.get()) + (pfn.wrapping_neg() & (step - 1))
            };
            let end = base.plus(segment.blocks() * BLOCK);
            // All frames from `begin` to `at` are free.
            let (mut begin, mut at) = (base, base);
            while at < end {
                let ledger = self.ledger(at.block());
                let whole = ledger.is_whole() && usable(ledger);
                if at.offset() == 0 && (whole || ledger.free() == 0 || !usable(ledger)) {
                    at = at.plus(BLOCK);
                    if !whole {
                        begin = at;
                    }
                } else {
                    let bits = self.field_word(at).load(Ordering::Acquire) >> at.bit();
                    let left = 64 - at.bit();
                    let free = bits.trailing_ones().min(left);
                    at = at.plus(free);
                    if free == 0 {
                        at = at.plus(bits.trailing_zeros().min(left));
                        begin = at;
                    }
                }
                while aligned(begin) + count as u64 <= u64::from(at.get()) {
                    let first = FrameIndex::new(aligned(begin) as u32);
                    match self.claim_booked(cpu, zone, first, count, request) {
                        // Others took some of it.
                        Err(AllocError::Fragmented) => begin = at,
                        done => return done.map(|()| first),
                    }
                }
            }
        }
        Err(AllocError::Fragmented)
    }

    /// Gives back `count` frames from `first` on that the caller holds in state *Allocated*, whatever they were
    /// allocated as: single frames, whole allocations of any order, and parts of such, the rest of which becomes single
    /// frames.
    ///
    /// # Errors
    ///
    /// Names the first frame that is not the caller's; those before it are free, those from it on are not.
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

    /// Frees the allocation of several frames that begins at `pfn`, if it has at most `most`; otherwise makes single
    /// frames of the one that holds `pfn`. Gives how many frames were freed.
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

    /// Makes single frames of an allocation of order 1 to 10 in state *Allocated*, named by its first frame. All get
    /// its class, owner, marks and owner word. Then each can be freed on its own.
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

    fn split_allocation(&self, frame: FrameIndex, word: Word) {
        let single = word.with_order(0);
        let first = self.descriptor_at(frame);
        let owner = first.owner.load(Ordering::Relaxed);
        if word.order() < Order::HUGE.get() {
            for tail in frame.plus(1).run((1 << word.order()) - 1) {
                let descriptor = self.descriptor_at(tail);
                debug_assert_eq!(descriptor.load().state(), FrameState::Tail);
                descriptor.owner.store(owner, Ordering::Relaxed);
                descriptor.store(single);
            }
            first.store(single);
            return;
        }
        let lower = frame.block();
        if word.order() == Order::MAX.get() {
            // The upper half first: while it is huge the head stands for both.
            let upper = lower.plus(1);
            self.record(upper).owner.store(owner, Ordering::Relaxed);
            self.split_block(upper, single);
        }
        self.split_block(lower, single);
    }
}
