//! The tables, carved out of the memory that the caller hands in.

use crate::{
    ConfigError, FRAMES_PER_BLOCK,
    allocator::{cost, heal},
    cpu::CpuSlot,
    descriptor::Descriptor,
    index,
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

/// Categories of the allocation index in each zone: three types, movable that cannot become whole, wholly free.
pub(crate) const KINDS: usize = 5;

/// All tables of an allocator.
#[derive(Debug)]
pub(crate) struct Metadata<'m> {
    pub descriptors: &'m [Descriptor],
    pub fields: &'m [Field],
    pub cpus: &'m [CpuSlot],
    pub ledgers: &'m [AtomicU64],
    /// Per block: the zone, how many frames are reserved or no memory, and which one compaction was refused.
    pub info: &'m [AtomicU32],
    /// Per block: the word of whoever compacts.
    pub notes: &'m [AtomicU64],
    pub by_room: IndexTables<'m>,
    pub by_cost: IndexTables<'m>,
    pub by_heal: IndexTables<'m>,
}

/// The tables of one index.
#[derive(Debug)]
pub(crate) struct IndexTables<'m> {
    pub slots: &'m [AtomicU32],
    pub bits: &'m [AtomicU64],
    pub summary: &'m [AtomicU64],
}

/// How large everything is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub blocks: usize,
    pub cpus: usize,
    pub zones: usize,
}

impl Sizes {
    fn frames(&self) -> usize {
        self.blocks * FRAMES_PER_BLOCK
    }

    fn categories(&self) -> [usize; 3] {
        [
            self.zones * KINDS,
            self.zones * cost::COUNT,
            heal::BEGUN + self.zones,
        ]
    }

    /// Bytes of all tables, with room to align the first.
    pub fn bytes(&self) -> usize {
        // A ledger and a note for each block.
        let mut words = 2 * self.blocks;
        let mut halves = self.blocks;
        for categories in self.categories() {
            let (slots, bits, summary) = index::sizes(self.blocks, categories);
            halves += slots;
            words += bits + summary;
        }
        64 + self.cpus * size_of::<CpuSlot>()
            + self.blocks * size_of::<Field>()
            + self.frames() * 16
            + words * 8
            + halves * 4
    }
}

#[cfg(not(shuttle))]
impl<'m> Metadata<'m> {
    /// Zeroes the memory and lays the tables into it, those with the largest alignment first.
    pub fn carve(sizes: Sizes, memory: &'m mut [u8]) -> Result<Self, ConfigError> {
        use zerocopy::{FromBytes, IntoBytes, KnownLayout};

        fn take<'m, T>(memory: &mut &'m mut [u8], count: usize) -> Option<&'m [T]>
        where
            T: FromBytes + IntoBytes + KnownLayout,
        {
            let whole = core::mem::take(memory);
            let (table, rest) = whole.split_at_mut_checked(count * size_of::<T>())?;
            *memory = rest;
            let table = <[T]>::mut_from_bytes(table).ok()?;
            Some(table)
        }

        let (given, needed) = (memory.len(), sizes.bytes());
        let too_small = ConfigError::Metadata { given, needed };
        // Also where chance aligns the memory so that it would do: whether it is enough must not depend on its address.
        if given < needed {
            return Err(too_small);
        }
        let slack = memory.as_ptr().align_offset(64).min(given);
        let mut rest = &mut memory[slack..];
        let lay = |rest: &mut &'m mut [u8]| -> Option<Self> {
            let used = needed - 64;
            let whole = core::mem::take(rest);
            let (mine, left) = whole.split_at_mut_checked(used)?;
            mine.fill(0);
            *rest = left;
            let mut mine = mine;
            let cpus = take(&mut mine, sizes.cpus)?;
            let fields = take(&mut mine, sizes.blocks)?;
            let descriptors = take(&mut mine, sizes.frames())?;
            let ledgers = take(&mut mine, sizes.blocks)?;
            let notes = take(&mut mine, sizes.blocks)?;
            let [room, cost, heal] = sizes.categories().map(|c| index::sizes(sizes.blocks, c));
            let mut wide = |(_, bits, summary): (usize, usize, usize)| {
                Some((take(&mut mine, bits)?, take(&mut mine, summary)?))
            };
            let (room_words, cost_words, heal_words) = (wide(room)?, wide(cost)?, wide(heal)?);
            let info = take(&mut mine, sizes.blocks)?;
            let mut tables = |slots, (bits, summary)| {
                Some(IndexTables {
                    slots: take(&mut mine, slots)?,
                    bits,
                    summary,
                })
            };
            Some(Self {
                descriptors,
                fields,
                cpus,
                ledgers,
                info,
                notes,
                by_room: tables(room.0, room_words)?,
                by_cost: tables(cost.0, cost_words)?,
                by_heal: tables(heal.0, heal_words)?,
            })
        };
        lay(&mut rest).ok_or(too_small)
    }
}

/// Model-checked atomics are no plain memory, so they live on the heap and are leaked; tests are short.
#[cfg(shuttle)]
impl<'m> Metadata<'m> {
    pub fn carve(sizes: Sizes, memory: &'m mut [u8]) -> Result<Self, ConfigError> {
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
        let halves = |count| table(count, || AtomicU32::new(0));
        let words = |count| table(count, || AtomicU64::new(0));
        let [by_room, by_cost, by_heal] = sizes.categories().map(|categories| {
            let (slots, bits, summary) = index::sizes(sizes.blocks, categories);
            IndexTables {
                slots: halves(slots),
                bits: words(bits),
                summary: words(summary),
            }
        });
        Ok(Self {
            descriptors: table(sizes.frames(), Descriptor::default),
            fields: table(sizes.blocks, Field::default),
            cpus: table(sizes.cpus, CpuSlot::default),
            ledgers: words(sizes.blocks),
            info: halves(sizes.blocks),
            notes: words(sizes.blocks),
            by_room,
            by_cost,
            by_heal,
        })
    }
}
