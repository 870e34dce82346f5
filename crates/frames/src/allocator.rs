//! The allocator itself: its parts, and its making.

use crate::{
    BlockId, Config, ConfigError, CostFn, CpuId, Fallback, Interrupts, Placement, ZoneId,
    config::MAX_ZONES,
    cpu::{CpuGuard, CpuSlot},
    descriptor::Descriptor,
    layout::Sizes,
    metadata::{Field, Metadata, Record},
    position::FrameIndex,
    segment::Segment,
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    zone::Zone,
};

/// A page-frame allocator over memory that it never touches: it deals in numbers.
///
/// All methods may be called from many CPUs at once. Those that take a [`CpuId`] expect the one that the caller runs
/// on; two callers that give the same one are safe and slow.
///
/// # Panics
///
/// A frame number outside of the allocator's memory never panics. A CPU, zone or block that the allocator does not have
/// is an error of the caller: methods that look it up in a table panic. [`has_block`](Self::has_block) tests a block.
#[derive(Debug)]
pub struct FrameAllocator<'m> {
    records: &'m [Record],
    words: &'m [AtomicU32],
    owners: &'m [AtomicU64],
    fields: &'m [Field],
    pub(crate) cpus: &'m [CpuSlot],
    pub(crate) segments: &'m [Segment],
    pub(crate) segment_count: AtomicU32,
    pub(crate) zone_count: usize,
    pub(crate) placement: Placement,
    pub(crate) fallback: Fallback,
    pub(crate) interrupts: Option<&'static dyn Interrupts>,
    pub(crate) cost: Option<CostFn>,
    /// What the tallies mean now. Relaxed: a number on its own, and a hint.
    pub(crate) epoch: AtomicU32,
    pub(crate) zones: [Zone<'m>; MAX_ZONES],
    /// How many blocks are isolated, by the low bits of their number. Each free reads one; they change rarely.
    pub(crate) isolated: [AtomicU32; 64],
    /// Frames that two CPUs freed at once.
    pub(crate) double_frees: AtomicU64,
    /// Somebody is adding memory.
    pub(crate) growing: AtomicBool,
    metadata_used: usize,
}

/// The parts of a block's info word.
pub(crate) mod info_word {
    /// Frames that are reserved or no memory.
    pub const RESERVED_MASK: u32 = 0x3ff;
    /// The shift of the zone.
    pub const ZONE: u32 = 10;
    /// Its values.
    pub const ZONE_MASK: u32 = 0xf;
    /// The shift of the offset, plus one, of the frame for which the block was refused.
    pub const OFFENDER: u32 = 14;
    /// Its values.
    pub const OFFENDER_MASK: u32 = 0x3ff;
    /// Some CPU refills its cache from this block.
    pub const IN_USE: u32 = 1 << 31;
}

const _: () = assert!(MAX_ZONES <= info_word::ZONE_MASK as usize + 1);

impl<'m> FrameAllocator<'m> {
    /// How much metadata memory [`new`](Self::new) needs for `config`, in bytes, alignment included. It grows with the
    /// memory and not with the holes in it.
    ///
    /// # Errors
    ///
    /// What is wrong with `config`.
    pub fn metadata_bytes(config: &Config<'_>) -> Result<usize, ConfigError> {
        Ok(config.sizes()?.bytes())
    }

    /// An allocator for the frames of `config`, all free but the reserved ones. Old contents of `metadata` do not
    /// matter.
    ///
    /// # Errors
    ///
    /// What is wrong with `config`, or that `metadata` is too small.
    pub fn new(config: &Config<'_>, metadata: &'m mut [u8]) -> Result<Self, ConfigError> {
        let sizes: Sizes = config.sizes()?;
        let tables = Metadata::carve(&sizes, metadata)?;
        let zone = |number: usize| {
            config
                .zones
                .get(number)
                .map_or_else(Zone::absent, |zone_config| {
                    let (first, capacity) = sizes.zone(ZoneId::new(number as u8));
                    Zone::new(zone_config, first, capacity, tables.indexes[number])
                })
        };
        let this = Self {
            records: tables.records,
            words: tables.words,
            owners: tables.owners,
            fields: tables.fields,
            cpus: tables.cpus,
            segments: tables.segments,
            segment_count: AtomicU32::new(0),
            zone_count: config.zones.len(),
            placement: config.placement,
            fallback: config.fallback,
            interrupts: config.interrupts,
            cost: config.cost,
            epoch: AtomicU32::new(0),
            zones: core::array::from_fn(zone),
            isolated: core::array::from_fn(|_| AtomicU32::new(0)),
            double_frees: AtomicU64::new(0),
            growing: AtomicBool::new(false),
            metadata_used: sizes.bytes(),
        };
        this.populate(config);
        Ok(this)
    }

    /// Bytes of metadata in use, descriptors included.
    pub fn metadata_used(&self) -> usize {
        self.metadata_used
    }

    /// The zone of `block`.
    #[inline]
    pub fn zone_of_block(&self, block: BlockId) -> ZoneId {
        // Relaxed: set before the block is published.
        let info = self.record(block).info.load(Ordering::Relaxed);
        ZoneId::new((info >> info_word::ZONE & info_word::ZONE_MASK) as u8)
    }

    /// Frames of `block` that are reserved or no memory.
    pub fn reserved_in(&self, block: BlockId) -> u16 {
        (self.record(block).info.load(Ordering::Relaxed) & info_word::RESERVED_MASK) as u16
    }

    /// How many blocks its tables have room for, those that can be added later among them: each block's number is
    /// smaller.
    pub fn block_capacity(&self) -> usize {
        self.records.len()
    }

    /// How many processors it was made for.
    pub fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    #[inline]
    pub(crate) fn zone(&self, zone: ZoneId) -> &Zone<'m> {
        &self.zones[zone.index()]
    }

    #[inline]
    pub(crate) fn record(&self, block: BlockId) -> &'m Record {
        &self.records[block.index()]
    }

    #[inline]
    pub(crate) fn field(&self, block: BlockId) -> &'m Field {
        &self.fields[block.index()]
    }

    /// The word of its block's field that has the frame's bit.
    #[inline]
    pub(crate) fn field_word(&self, frame: FrameIndex) -> &'m AtomicU64 {
        &self.field(frame.block()).0[frame.word()]
    }

    /// Whether the frame's bit is set. Acquire: pairs with the release of whoever set it.
    #[inline]
    pub(crate) fn is_bit_set(&self, frame: FrameIndex) -> bool {
        self.field_word(frame).load(Ordering::Acquire) >> frame.bit() & 1 == 1
    }

    #[inline]
    pub(crate) fn descriptor_at(&self, frame: FrameIndex) -> Descriptor<'_> {
        if frame.offset() == 0 {
            let record = self.record(frame.block());
            Descriptor {
                word: &record.word,
                owner: &record.owner,
            }
        } else {
            Descriptor {
                word: &self.words[frame.index()],
                owner: &self.owners[frame.index()],
            }
        }
    }

    /// Asks for the state words of 64 frames from `base` on, which will be written one after another.
    pub(crate) fn prefetch_words(&self, base: FrameIndex) {
        for line in self.words[base.index()..][..64].chunks(16) {
            dirigible_prefetch::for_write(&line[0]);
        }
    }

    /// Masks the interrupts of the CPU that calls and waits for the lock of `cpu`. The lock is contended only by
    /// isolation, by a drain, by a request that wants the CPU's spare blocks, and by a thread that migrates to another
    /// CPU.
    pub(crate) fn lock(&self, cpu: CpuId) -> CpuGuard<'m> {
        self.lock_slot(&self.cpus[cpu.index()])
    }

    /// The same, for the fast paths.
    #[inline]
    pub(crate) fn lock_inline(&self, cpu: CpuId) -> CpuGuard<'m> {
        self.cpus[cpu.index()].lock(self.interrupts)
    }

    #[inline(never)]
    pub(crate) fn lock_slot<'a>(&self, slot: &'a CpuSlot) -> CpuGuard<'a> {
        slot.lock(self.interrupts)
    }

    /// The tally of `block`: a word for the reclaimer's use, 0 at first. It may hold, for example, how many frames are
    /// old or dirty, and whether the host backs the block. The allocator reads it only through [`Config::cost`].
    pub fn block_tally(&self, block: BlockId) -> u64 {
        // Relaxed: a hint; nothing depends on it.
        self.record(block).tally.load(Ordering::Relaxed)
    }

    /// Replaces the tally of `block` and files the block by its new cost.
    pub fn set_block_tally(&self, block: BlockId, tally: u64) {
        // Relaxed: a hint; nothing depends on it.
        self.record(block).tally.store(tally, Ordering::Relaxed);
        self.refile_block(block);
    }

    /// Adds `more` to the tally of `block` in one atomic step, with wrap-around, so that it can also subtract; gives
    /// the tally before. The block is not filed anew: [`refile_block`](Self::refile_block) does that,
    /// [`set_block_tally`](Self::set_block_tally), and each change of the block's ledger. Until then the block is found
    /// by what it cost before.
    pub fn add_to_block_tally(&self, block: BlockId, more: u64) -> u64 {
        // Relaxed: a hint; nothing depends on it.
        self.record(block).tally.fetch_add(more, Ordering::Relaxed)
    }

    /// Says what all tallies mean from now on: a number that [`Config::cost`] is given beside each tally, 0 at first.
    /// For a reclaimer whose tallies count by something that turns, its oldest generation, say. No block is filed anew:
    /// each is found by what it cost in the epoch before until it is [filed](Self::refile_block), or its ledger changes.
    pub fn set_tally_epoch(&self, epoch: u32) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// What the tallies mean now.
    pub fn tally_epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }
}
