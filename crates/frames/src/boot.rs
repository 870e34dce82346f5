//! Filling the tables at the beginning: by words, and only what is not zero.

use core::ops::Range;

use crate::{
    BlockId, Config, FRAMES_PER_BLOCK, FrameAllocator, FrameClass, FrameState, Ledger, Migratetype,
    Pfn, Placement, allocator::info_word, bits::span_masks, descriptor::Word, sync::Ordering,
};

impl FrameAllocator<'_> {
    /// Lays out the segments, then frees what the zones hold and nobody reserved.
    #[inline(never)]
    pub(crate) fn populate(&self, config: &Config<'_>) {
        let mut count = 0;
        for number in 0..config.zones.len() {
            let mut block = self.zones[number].first;
            config.for_each_stretch(number, &mut |first, blocks| {
                self.segments[count].set(first, block, blocks as u32);
                count += 1;
                block += blocks as u32;
            });
            self.zones[number].set_present(block - self.zones[number].first);
        }
        // Release: pairs with the acquire in `segments`.
        self.segment_count.store(count as u32, Ordering::Release);
        for (number, zone) in config.zones.iter().enumerate() {
            for range in zone.ranges {
                self.set_range(range, true);
            }
            self.absent_blocks(number);
        }
        for range in config.reserved {
            self.set_range(range, false);
        }
        for number in 0..config.zones.len() {
            let (first, present) = (self.zones[number].first, self.zones[number].present());
            let counts = self.prepare_blocks(number, first..first + present);
            self.open_blocks(number, first..first + present, counts);
        }
        if self.placement == Placement::FullestFirst {
            self.spread_cpus();
        }
    }

    /// Sets or clears the field's bits of a range, as far as it is memory.
    fn set_range(&self, range: &Range<Pfn>, free: bool) {
        for segment in self.segments() {
            let (first, blocks) = (segment.pfn().get(), u64::from(segment.blocks()));
            let begin = range.start.get().max(first);
            let end = range
                .end
                .get()
                .min(first.saturating_add(blocks * FRAMES_PER_BLOCK as u64));
            if begin >= end {
                continue;
            }
            let base = u64::from(segment.block()) * FRAMES_PER_BLOCK as u64;
            let (mut at, end) = (base + begin - first, base + end - first);
            while at < end {
                let block = at / FRAMES_PER_BLOCK as u64;
                let stop = end.min((block + 1) * FRAMES_PER_BLOCK as u64);
                let offset = (at % FRAMES_PER_BLOCK as u64) as u32;
                let masks = span_masks(offset, (stop - at) as usize);
                for (word, mask) in self.fields[block as usize].0.iter().zip(masks) {
                    // Relaxed: nobody else is here yet.
                    let old = word.load(Ordering::Relaxed);
                    word.store(
                        if free { old | mask } else { old & !mask },
                        Ordering::Relaxed,
                    );
                }
                at = stop;
            }
        }
    }

    /// Blocks that may be added later: nothing in them is free, and nobody can name a frame of theirs.
    fn absent_blocks(&self, number: usize) {
        let zone = &self.zones[number];
        for block in zone.first + zone.present()..zone.first + zone.capacity {
            let record = self.record(BlockId::new(block));
            let gone = FRAMES_PER_BLOCK as u16;
            let ledger = Ledger::new().with_unmovable(gone);
            record.ledger.store(ledger.into_bits(), Ordering::Relaxed);
            let info = (number as u32) << info_word::ZONE | u32::from(gone);
            record.info.store(info, Ordering::Relaxed);
        }
    }

    /// Writes the ledgers of `blocks` after their fields, and the state words of what is not free. Their other words are zero.
    /// Gives how many free frames and whole blocks they have.
    pub(crate) fn prepare_blocks(&self, number: usize, blocks: Range<u32>) -> [i64; 2] {
        let (mut frames, mut whole) = (0, 0);
        let reserved = Word::new()
            .with_state(FrameState::Reserved)
            .with_class(FrameClass::Unmovable);
        for block in blocks.map(BlockId::new) {
            let mut free = 0;
            for (bits, base) in self.fields[block.index()].0.iter().zip((0..).step_by(64)) {
                let bits = bits.load(Ordering::Relaxed);
                free += bits.count_ones();
                let mut gone = !bits;
                while gone != 0 {
                    let offset = base + gone.trailing_zeros();
                    let frame = (block.index() * FRAMES_PER_BLOCK) as u32 + offset;
                    self.descriptor_at(frame).store(reserved);
                    gone &= gone - 1;
                }
            }
            let gone = FRAMES_PER_BLOCK as u32 - free;
            let info = (number as u32) << info_word::ZONE | gone;
            self.record(block).info.store(info, Ordering::Relaxed);
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

    /// Counts and files blocks that were prepared: from here on requests find them. Who names them may have changed them since
    /// they were published, so `counts` are those of their preparation.
    pub(crate) fn open_blocks(&self, number: usize, blocks: Range<u32>, counts: [i64; 2]) {
        let [frames, whole] = counts;
        let zone = &self.zones[number];
        zone.add_managed(frames);
        zone.set_drift(self.cpus.len());
        self.pay_in(number, None, frames);
        self.count_whole(number, None, whole);
        for block in blocks.map(BlockId::new) {
            self.reindex(block, None, Ledger::new(), self.ledger(block));
        }
    }

    /// Gives each CPU a place of its own in each zone to begin its search for whole blocks: a group of the index, as far as there
    /// are enough.
    pub(crate) fn spread_cpus(&self) {
        for (number, zone) in self.zones[..self.zone_count].iter().enumerate() {
            let groups = zone.present().div_ceil(64);
            for (cpu, slot) in self.cpus.iter().enumerate() {
                let group = u64::from(groups) * cpu as u64 / self.cpus.len() as u64;
                slot.set_home(number, zone.first + group as u32 * 64);
            }
        }
    }
}
