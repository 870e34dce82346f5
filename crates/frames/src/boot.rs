//! Filling the tables at the beginning: word by word, and only what is not zero.

use core::ops::Range;

use crate::{
    BlockId, Config, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, FrameState, Ledger, Migratetype,
    Order, Pfn, Placement, ZoneId, allocator::info_word, bits::span_mask, descriptor::Word,
    index::GROUP, sync::Ordering,
};

impl FrameAllocator<'_> {
    /// Lays out the segments, then frees what the zones hold and what is not reserved.
    #[inline(never)]
    pub(crate) fn populate(&self, config: &Config<'_>) {
        let mut count = 0;
        for id in self.zones() {
            let (zone, mut present) = (self.zone(id), 0);
            config.for_each_segment(id, &mut |first, blocks| {
                self.segments[count].set(first, zone.first.plus(present), blocks as u32);
                count += 1;
                present += blocks as u32;
            });
            zone.set_present(present);
        }
        // Release: pairs with the acquire in `segments`.
        self.segment_count.store(count as u32, Ordering::Release);
        for (id, zone) in self.zones().zip(config.zones) {
            for range in zone.ranges {
                self.set_range(range, true);
            }
            self.absent_blocks(id);
        }
        for range in config.reserved.iter().chain(config.in_use) {
            self.set_range(range, false);
        }
        for id in self.zones() {
            let blocks = self.zone(id).blocks();
            let counts = self.prepare_blocks(id, blocks.clone());
            self.open_blocks(id, blocks, counts);
        }
        for range in config.in_use {
            self.take_over(range, config);
        }
        if self.placement == Placement::FullestFirst {
            self.spread_cpus();
        }
    }

    /// Makes allocated frames of those in a range that are memory and not reserved; so far they count as reserved.
    #[inline(never)]
    fn take_over(&self, range: &Range<Pfn>, config: &Config<'_>) {
        let in_one =
            |ranges: &[Range<Pfn>], pfn: &Pfn| ranges.iter().any(|range| range.contains(pfn));
        let is_memory = |pfn: &Pfn| config.zones.iter().any(|zone| in_one(zone.ranges, pfn));
        for pfn in (range.start.get()..range.end.get()).map(Pfn::new) {
            let Some(frame) = self.frame_index(pfn) else {
                continue;
            };
            let descriptor = self.descriptor_at(frame);
            let is_reserved = descriptor.load().state() == FrameState::Reserved;
            // A frame that two ranges name is taken over once.
            if is_reserved && is_memory(&pfn) && !in_one(config.reserved, &pfn) {
                descriptor.store(Word::owned(FrameClass::Unmovable, Order::BASE));
                // Relaxed: nobody else is here yet. The count is the word's lowest part.
                let info = &self.record(frame.block()).info;
                info.fetch_sub(1, Ordering::Relaxed);
                self.zone_at(frame.block()).add_managed(1);
            }
        }
    }

    /// Sets or clears the field's bits of a range, as far as it is memory.
    #[inline(never)]
    fn set_range(&self, range: &Range<Pfn>, free: bool) {
        for segment in self.segments() {
            let begin = range.start.max(segment.pfn());
            let end = range.end.min(segment.end());
            let Some(first) = segment.frame_of(begin).filter(|_| begin < end) else {
                continue;
            };
            for (piece, count) in first.pieces((end.get() - begin.get()) as u32) {
                let (at, count) = (piece.offset(), count as usize);
                let field = &self.field(piece.block()).0;
                let words = at as usize / 64..(at as usize + count).div_ceil(64);
                for (word, number) in field[words.clone()].iter().zip(words) {
                    let mask = span_mask(number, at, count);
                    // Relaxed: nobody else is here yet.
                    let old = word.load(Ordering::Relaxed);
                    word.store(
                        if free { old | mask } else { old & !mask },
                        Ordering::Relaxed,
                    );
                }
            }
        }
    }

    /// Writes the tables of blocks that may be added later: nothing in them is free.
    #[inline(never)]
    fn absent_blocks(&self, id: ZoneId) {
        let zone = self.zone(id);
        let later = zone.capacity - zone.present();
        for block in zone.first.plus(zone.present()).run(later) {
            let record = self.record(block);
            let gone = FRAMES_PER_BLOCK as u16;
            let ledger = Ledger::new().with_unmovable(gone);
            record.ledger.store(ledger.into_bits(), Ordering::Relaxed);
            record
                .info
                .store(info_of(id, u32::from(gone)), Ordering::Relaxed);
        }
    }

    /// Writes the ledgers of `blocks` from their fields, and the state words of what is not free. Their other words are
    /// zero. Gives how many free frames and whole blocks they have.
    pub(crate) fn prepare_blocks(
        &self,
        zone: ZoneId,
        blocks: impl Iterator<Item = BlockId>,
    ) -> [i64; 2] {
        let (mut frames, mut whole) = (0, 0);
        let reserved = Word::new()
            .with_state(FrameState::Reserved)
            .with_class(FrameClass::Unmovable);
        for block in blocks {
            let mut free = 0;
            for (bits, base) in self.field(block).0.iter().zip((0..).step_by(64)) {
                let bits = bits.load(Ordering::Relaxed);
                free += bits.count_ones();
                let mut gone = !bits;
                while gone != 0 {
                    let offset = base + gone.trailing_zeros();
                    let frame = block.first_frame().plus(offset);
                    self.descriptor_at(frame).store(reserved);
                    gone &= gone - 1;
                }
            }
            let gone = FRAMES_PER_BLOCK as u32 - free;
            let info = &self.record(block).info;
            info.store(info_of(zone, gone), Ordering::Relaxed);
            let ledger = Ledger::new()
                .with_free(free as u16)
                .with_unmovable(gone as u16)
                .with_type(Migratetype::Movable);
            // Release: as every change of a ledger.
            self.ledger_word(block)
                .store(ledger.into_bits(), Ordering::Release);
            frames += i64::from(free);
            whole += i64::from(ledger.is_whole());
        }
        [frames, whole]
    }

    /// Counts and files blocks that were prepared: from here on requests find them. They may have changed since they
    /// were published, by whoever knows their numbers, so `counts` are those of their preparation.
    #[inline(never)]
    pub(crate) fn open_blocks(
        &self,
        id: ZoneId,
        blocks: impl Iterator<Item = BlockId>,
        counts: [i64; 2],
    ) {
        let [frames, whole] = counts;
        let zone = self.zone(id);
        zone.add_managed(frames);
        zone.set_drift(self.cpus.len());
        self.pay_in(id, None, frames);
        self.count_whole(id, None, whole);
        for block in blocks {
            self.reindex(block, None, Ledger::new(), self.ledger(block));
        }
    }

    /// Gives each CPU its home in each zone, where its search for whole blocks begins: a group of the index of its own,
    /// if there are enough.
    pub(crate) fn spread_cpus(&self) {
        for id in self.zones() {
            let zone = self.zone(id);
            let groups = zone.present().div_ceil(GROUP as u32);
            for (cpu, slot) in self.cpus.iter().enumerate() {
                let group = u64::from(groups) * cpu as u64 / self.cpus.len() as u64;
                slot.set_home(id, zone.first.plus(group as u32 * GROUP as u32));
            }
        }
    }
}

fn info_of(zone: ZoneId, reserved: u32) -> u32 {
    (zone.index() as u32) << info_word::ZONE | reserved
}
