//! The allocator itself: its parts, and how it is made.

use crate::{
    BlockId, Config, ConfigError, CostFn, FRAMES_PER_BLOCK, Fallback, Interrupts, Placement,
    ZoneId,
    config::MAX_ZONES,
    counters::Events,
    cpu::CpuSlot,
    descriptor::Descriptor,
    metadata::{Field, Metadata, Record, Sizes},
    segment::Segment,
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    zone::Zone,
};

/// A page-frame allocator over memory that it never touches: it deals in numbers.
///
/// All methods may be called from many CPUs at once. Those that take a [`CpuId`](crate::CpuId) want the one that the caller
/// runs on; two callers that give the same one are safe and slow.
///
/// # Panics
///
/// Frames that are no memory of the allocator's are answered, whatever their number. CPUs, zones and blocks that it does not
/// have are the caller's fault: methods that look them up in a table panic. [`has_block`](Self::has_block) tells.
#[derive(Debug)]
pub struct FrameAllocator<'m> {
    pub(crate) records: &'m [Record],
    words: &'m [AtomicU32],
    owners: &'m [AtomicU64],
    pub(crate) fields: &'m [Field],
    pub(crate) cpus: &'m [CpuSlot],
    pub(crate) segments: &'m [Segment],
    pub(crate) segment_count: AtomicU32,
    pub(crate) zone_count: usize,
    pub(crate) placement: Placement,
    pub(crate) fallback: Fallback,
    pub(crate) interrupts: Option<&'static dyn Interrupts>,
    pub(crate) cost: Option<CostFn>,
    pub(crate) zones: [Zone<'m>; MAX_ZONES],
    /// How many blocks are isolated, by the end of their number. One is read on every free; changed rarely.
    pub(crate) isolated: [AtomicU32; 64],
    /// Frames that two freed at once.
    pub(crate) double_frees: AtomicU64,
    /// Somebody is adding memory.
    pub(crate) growing: AtomicBool,
    metadata_used: usize,
}

/// The parts of a block's info word. The highest bit is taken, see [`Take`](crate::take::Take).
pub(crate) mod info_word {
    /// Frames that are reserved or no memory.
    pub const RESERVED_MASK: u32 = 0x3ff;
    /// Where the zone stands.
    pub const ZONE: u32 = 10;
    /// It has so many values.
    pub const ZONE_MASK: u32 = 0xf;
    /// Where the offset stands of the frame for which the block was refused, plus one.
    pub const OFFENDER: u32 = 14;
    /// It has so many values.
    pub const OFFENDER_MASK: u32 = 0x3ff;
}

const _: () = assert!(MAX_ZONES <= info_word::ZONE_MASK as usize + 1);

impl<'m> FrameAllocator<'m> {
    /// How much metadata memory [`new`](Self::new) wants for `config`, in bytes, alignment included. It grows with the memory
    /// and not with the holes in it.
    ///
    /// # Errors
    ///
    /// What is wrong with `config`.
    pub fn metadata_bytes(config: &Config<'_>) -> Result<usize, ConfigError> {
        Ok(config.sizes()?.bytes())
    }

    /// An allocator for the frames of `config`, all free but the reserved ones. Old contents of `metadata` do not matter.
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
                    let (first, capacity) = sizes.zone(number);
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
        // Relaxed: set before anybody knows the block.
        let info = self.record(block).info.load(Ordering::Relaxed);
        ZoneId::new((info >> info_word::ZONE & info_word::ZONE_MASK) as u8)
    }

    /// Frames of `block` that are reserved or no memory.
    pub fn reserved_in(&self, block: BlockId) -> u16 {
        (self.record(block).info.load(Ordering::Relaxed) & info_word::RESERVED_MASK) as u16
    }

    /// The counters.
    pub fn events(&self) -> Events<'_> {
        Events { cpus: self.cpus }
    }

    /// How many processors it was made for.
    pub fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    #[inline]
    pub(crate) fn descriptor_at(&self, frame: u32) -> Descriptor<'_> {
        let frame = frame as usize;
        if frame.is_multiple_of(FRAMES_PER_BLOCK) {
            let record = &self.records[frame / FRAMES_PER_BLOCK];
            Descriptor {
                word: &record.word,
                owner: &record.owner,
            }
        } else {
            Descriptor {
                word: &self.words[frame],
                owner: &self.owners[frame],
            }
        }
    }

    /// Asks for the state words of 64 frames from `base` on, which will be written one after another.
    pub(crate) fn prefetch_words(&self, base: u32) {
        for line in self.words[base as usize..][..64].chunks(16) {
            dirigible_prefetch::for_write(&line[0]);
        }
    }

    /// The tally of `block`: a word for whoever reclaims, 0 at first. It says, for example, how many frames are how old and
    /// dirty, and whether the host backs the block. The allocator looks at it only through [`Config::cost`].
    pub fn block_tally(&self, block: BlockId) -> u64 {
        // Relaxed: a hint that nothing else hangs on.
        self.record(block).tally.load(Ordering::Relaxed)
    }

    /// Replaces the tally of `block` and files the block anew by what it costs now.
    pub fn set_block_tally(&self, block: BlockId, tally: u64) {
        // Relaxed: the fence in `refile_by_cost` orders it.
        self.record(block).tally.store(tally, Ordering::Relaxed);
        self.refile_by_cost(block);
    }
}
