//! The tables, carved out of the memory that the caller hands in.

use crate::{
    ConfigError, FRAMES_PER_BLOCK, ZoneId,
    config::MAX_ZONES,
    cpu::CpuSlot,
    index::{self, Index},
    layout::Sizes,
    place::{COST_BUCKETS, HEAL_BUCKETS, ROOM_BUCKETS},
    segment::Segment,
    sync::{AtomicU32, AtomicU64},
};

/// Words of 64 bits in a block's field.
pub(crate) const WORDS: usize = FRAMES_PER_BLOCK / 64;
/// The field of a block: one cache line.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[cfg_attr(shuttle, derive(Default))]
#[repr(C, align(64))]
pub(crate) struct Field(pub [AtomicU64; WORDS]);

/// A block's words apart from its field, in one cache line, with the descriptor of its first frame: to take a huge page
/// or to give one back writes this line alone.
#[derive(Debug)]
#[cfg_attr(
    not(shuttle),
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)
)]
#[cfg_attr(shuttle, derive(Default))]
#[repr(C, align(64))]
pub(crate) struct Record {
    /// [`Ledger`](crate::Ledger).
    pub ledger: AtomicU64,
    /// For compaction.
    pub note: AtomicU64,
    /// For the reclaimer.
    pub tally: AtomicU64,
    /// The tally by which the index by cost has the block.
    pub filed_tally: AtomicU64,
    /// The first frame's owner word.
    pub owner: AtomicU64,
    /// The first frame's state word.
    pub word: AtomicU32,
    /// The zone, how many frames are reserved or no memory, and for which frame the block was refused; see `info_word`.
    pub info: AtomicU32,
    /// The epoch of `filed_tally`.
    pub filed_epoch: AtomicU32,
    pad: [u32; 3],
}

#[cfg(not(shuttle))]
const _: () = assert!(size_of::<Record>() == 64 && size_of::<Field>() == 64);

/// All tables of an allocator.
#[derive(Debug)]
pub(crate) struct Metadata<'m> {
    pub segments: &'m [Segment],
    pub cpus: &'m [CpuSlot],
    pub fields: &'m [Field],
    pub records: &'m [Record],
    /// State words by frame. Those of blocks' first frames are not in use: they stand in the records.
    pub words: &'m [AtomicU32],
    /// Owner words by frame, in the same way. Not zeroed: an owner's word means something after its owner has set it.
    pub owners: &'m [AtomicU64],
    /// Of each zone: by room, by cost, by what a balloon's block still holds.
    pub indexes: [[Index<'m>; 3]; MAX_ZONES],
}

impl Sizes {
    /// Words of all indexes.
    fn index_words(&self) -> usize {
        let of_zone = |zone| {
            let blocks = self.zone(zone).1 as usize;
            BUCKETS
                .iter()
                .map(|buckets| index::sizes(blocks, *buckets).iter().sum::<usize>())
                .sum::<usize>()
        };
        (0..MAX_ZONES as u8).map(ZoneId::new).map(of_zone).sum()
    }

    /// Bytes of all tables, with room to align the first.
    #[inline(never)]
    pub fn bytes(&self) -> usize {
        64 + self.cpus * size_of::<CpuSlot>()
            + self.blocks() * (size_of::<Field>() + size_of::<Record>())
            + self.frames() * (4 + 8)
            + self.index_words() * 8
            + self.segments * size_of::<Segment>()
    }
}

/// Buckets of the three indexes.
const BUCKETS: [usize; 3] = [ROOM_BUCKETS, COST_BUCKETS, HEAL_BUCKETS];

/// The three indexes of each zone, their levels given by `table`.
fn indexes<'m, E>(
    sizes: &Sizes,
    mut table: impl FnMut(usize) -> Result<&'m [AtomicU64], E>,
) -> Result<[[Index<'m>; 3]; MAX_ZONES], E> {
    let mut all = [[Index::EMPTY; 3]; MAX_ZONES];
    for (zone, of_zone) in (0..).map(ZoneId::new).zip(&mut all) {
        let (first, blocks) = sizes.zone(zone);
        for (index, buckets) in of_zone.iter_mut().zip(BUCKETS) {
            let [bits, summary, top] = index::sizes(blocks as usize, buckets);
            *index = Index::new(first, buckets, [table(bits)?, table(summary)?, table(top)?]);
        }
    }
    Ok(all)
}

#[cfg(not(shuttle))]
#[inline(never)]
fn zero(bytes: &mut [u8]) {
    bytes.fill(0);
}

#[cfg(not(shuttle))]
impl<'m> Metadata<'m> {
    /// Lays the tables into the memory, those with the largest alignment first, and zeroes what must be zero of the
    /// blocks that there are now.
    pub fn carve(sizes: &Sizes, memory: &'m mut [u8]) -> Result<Self, ConfigError> {
        use zerocopy::{FromBytes, IntoBytes, KnownLayout};

        fn take<'m, T>(memory: &mut &'m mut [u8], count: usize) -> Option<&'m mut [T]>
        where
            T: FromBytes + IntoBytes + KnownLayout,
        {
            let whole = core::mem::take(memory);
            let (table, rest) = whole.split_at_mut_checked(count * size_of::<T>())?;
            *memory = rest;
            <[T]>::mut_from_bytes(table).ok()
        }

        fn zeroed<'m, T>(memory: &mut &'m mut [u8], count: usize) -> Option<&'m [T]>
        where
            T: FromBytes + IntoBytes + KnownLayout,
        {
            let table = take::<T>(memory, count)?;
            zero(table.as_mut_bytes());
            Some(table)
        }

        let (given, needed) = (memory.len(), sizes.bytes());
        let too_small = ConfigError::Metadata { given, needed };
        // Also if the memory happens to be aligned and would suffice: the result must not depend on its address.
        if given < needed {
            return Err(too_small);
        }
        let slack = memory.as_ptr().align_offset(64).min(given);
        let mut rest = &mut memory[slack..];
        let mut lay = || -> Option<Self> {
            let memory = &mut rest;
            let cpus = zeroed(memory, sizes.cpus)?;
            let fields = zeroed(memory, sizes.blocks())?;
            let records = zeroed(memory, sizes.blocks())?;
            let owners = take(memory, sizes.frames())?;
            let segments = zeroed(memory, sizes.segments)?;
            let indexes = indexes(sizes, |words| zeroed(memory, words).ok_or(())).ok()?;
            let words: &mut [AtomicU32] = take(memory, sizes.frames())?;
            // Blocks that may be added later are not touched before.
            for (zone, &(now, _)) in (0..).map(ZoneId::new).zip(&sizes.zones) {
                let first = sizes.zone(zone).0.first_frame().index();
                let end = first + now as usize * FRAMES_PER_BLOCK;
                zero(words[first..end].as_mut_bytes());
            }
            Some(Self {
                segments,
                cpus,
                fields,
                records,
                words,
                owners,
                indexes,
            })
        };
        lay().ok_or(too_small)
    }
}

/// Model-checked atomics cannot be made from plain memory, so they are on the heap and leaked; tests are short.
#[cfg(shuttle)]
impl<'m> Metadata<'m> {
    pub fn carve(sizes: &Sizes, memory: &'m mut [u8]) -> Result<Self, ConfigError> {
        fn table<'m, T>(count: usize, one: impl Fn() -> T) -> &'m [T]
        where
            T: 'm,
        {
            std::boxed::Box::leak((0..count).map(|_| one()).collect::<std::boxed::Box<[T]>>())
        }

        let (given, needed) = (memory.len(), sizes.bytes());
        if given < needed {
            return Err(ConfigError::Metadata { given, needed });
        }
        let words = |count| table(count, || AtomicU64::new(0));
        Ok(Self {
            segments: table(sizes.segments, Segment::default),
            cpus: table(sizes.cpus, CpuSlot::default),
            fields: table(sizes.blocks(), Field::default),
            records: table(sizes.blocks(), Record::default),
            words: table(sizes.frames(), || AtomicU32::new(0)),
            owners: words(sizes.frames()),
            indexes: indexes(sizes, |count| Ok::<_, ConfigError>(words(count)))?,
        })
    }
}
