//! The allocator itself: its parts, how it is made, and the steps that every other file builds on.

use crate::{
    BlockId, BlockState, Config, ConfigError, CpuId, FRAMES_PER_BLOCK, Fallback, FrameClass,
    FrameState, Ledger, Migratetype, Pfn, Placement, Refusal, ZoneId,
    bits::take_bits,
    config::MAX_ZONES,
    counters::Events,
    cpu::CpuSlot,
    descriptor::{Descriptor, Word},
    index::{ClassIndex, Place},
    metadata::{Field, IndexTables, KINDS, Metadata, Sizes, WORDS},
    sync::{AtomicU32, Ordering},
    zone::Zone,
};

/// A page-frame allocator over memory that it never touches: it deals in numbers.
///
/// All methods may be called from many CPUs at once. Those that take a [`CpuId`] want the one that the caller runs on;
/// two callers that give the same one are safe and slow.
#[derive(Debug)]
pub struct FrameAllocator<'m> {
    base: Pfn,
    blocks: usize,
    pub(crate) descriptors: &'m [Descriptor],
    pub(crate) fields: &'m [Field],
    pub(crate) cpus: &'m [CpuSlot],
    ledgers: &'m [crate::sync::AtomicU64],
    pub(crate) info: &'m [AtomicU32],
    pub(crate) notes: &'m [crate::sync::AtomicU64],
    pub(crate) by_room: ClassIndex<'m>,
    pub(crate) by_cost: ClassIndex<'m>,
    pub(crate) by_heal: ClassIndex<'m>,
    pub(crate) zones: [Zone; MAX_ZONES],
    zone_count: usize,
    pub(crate) placement: Placement,
    pub(crate) fallback: Fallback,
    /// How many blocks are isolated. Read on every free, changed rarely.
    pub(crate) isolated_blocks: AtomicU32,
    metadata_used: usize,
}

/// Kinds of blocks in the room index.
pub(crate) mod kind {
    pub const UNMOVABLE: usize = 0;
    pub const MOVABLE: usize = 1;
    pub const RECLAIMABLE: usize = 2;
    /// Movable by type, with frames in it that cannot be moved, or that an owner does not give up: they cannot become whole,
    /// and are filled first.
    pub const HYBRID: usize = 3;
    /// Wholly free, whatever the type.
    pub const WHOLE: usize = 4;
}

/// The parts of a block's info word.
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

/// Frames of one class of the cost and heal indexes.
const CLASS_STEP: usize = 32;
/// A balloon frame costs this fraction of a copied frame to move: a share of a message.
const BALLOON_DISCOUNT: usize = 8;

/// A change of a ledger.
pub(crate) struct Change {
    pub old: Ledger,
    pub new: Ledger,
}

impl Change {
    /// By how much the frames that can be taken grew.
    pub fn freed(&self) -> i64 {
        available(self.new) - available(self.old)
    }
}

fn available(ledger: Ledger) -> i64 {
    if ledger.state() == BlockState::Open {
        i64::from(ledger.free())
    } else {
        0
    }
}

impl<'m> FrameAllocator<'m> {
    /// How much metadata memory [`new`](Self::new) wants for `config`, in bytes, alignment included.
    ///
    /// # Errors
    ///
    /// What is wrong with `config`.
    pub fn metadata_bytes(config: &Config<'_>) -> Result<usize, ConfigError> {
        let (_, blocks) = config.span()?;
        Ok(Self::sizes(config, blocks).bytes())
    }

    fn sizes(config: &Config<'_>, blocks: usize) -> Sizes {
        Sizes {
            blocks,
            cpus: config.cpus as usize,
            zones: config.zones.len(),
        }
    }

    /// An allocator for the frames of `config`, all free but the reserved ones. Old contents of `metadata` do not matter.
    ///
    /// # Errors
    ///
    /// What is wrong with `config`, or that `metadata` is too small.
    pub fn new(config: &Config<'_>, metadata: &'m mut [u8]) -> Result<Self, ConfigError> {
        let (base, blocks) = config.span()?;
        let sizes = Self::sizes(config, blocks);
        let tables = Metadata::carve(sizes, metadata)?;
        let index = |t: IndexTables<'m>| ClassIndex::new(t.slots, t.bits, t.summary, blocks);
        let this = Self {
            base,
            blocks,
            descriptors: tables.descriptors,
            fields: tables.fields,
            cpus: tables.cpus,
            ledgers: tables.ledgers,
            info: tables.info,
            notes: tables.notes,
            by_room: index(tables.by_room),
            by_cost: index(tables.by_cost),
            by_heal: index(tables.by_heal),
            zones: core::array::from_fn(|z| {
                config.zones.get(z).map_or_else(Zone::absent, Zone::new)
            }),
            zone_count: config.zones.len(),
            placement: config.placement,
            fallback: config.fallback,
            isolated_blocks: AtomicU32::new(0),
            metadata_used: sizes.bytes(),
        };
        this.populate(config);
        Ok(this)
    }

    /// Marks everything reserved, then frees what the zones hold and nobody reserved.
    fn populate(&self, config: &Config<'_>) {
        let reserved = Word::new()
            .with_state(FrameState::Reserved)
            .with_class(FrameClass::Unmovable);
        for descriptor in self.descriptors {
            descriptor.store(reserved);
        }
        let within = |pfn: u64| {
            config
                .reserved
                .iter()
                .any(|r| r.start.get() <= pfn && pfn < r.end.get())
        };
        for (zone, zone_config) in config.zones.iter().enumerate() {
            for range in zone_config.ranges {
                for pfn in range.start.get()..range.end.get() {
                    let frame = (pfn - self.base.get()) as usize;
                    self.info[frame / FRAMES_PER_BLOCK]
                        .store((zone as u32) << info_word::ZONE, Ordering::Relaxed);
                    if !within(pfn) {
                        self.descriptors[frame].store(Word::new());
                        self.fields[frame / FRAMES_PER_BLOCK].0[frame % FRAMES_PER_BLOCK / 64]
                            .fetch_or(1 << (frame % 64), Ordering::Relaxed);
                    }
                }
            }
        }
        for block in self.blocks() {
            let free: u32 = self.fields[block.index()]
                .0
                .iter()
                .map(|word| word.load(Ordering::Relaxed).count_ones())
                .sum();
            let gone = FRAMES_PER_BLOCK as u32 - free;
            self.info[block.index()].fetch_or(gone, Ordering::Relaxed);
            let ledger = Ledger::new()
                .with_free(free as u16)
                .with_unmovable(gone as u16)
                .with_type(Migratetype::Movable);
            self.ledgers[block.index()].store(ledger.into_bits(), Ordering::Release);
            let zone = self.block_zone(block);
            zone.add_free(i64::from(free));
            zone.add_managed(i64::from(free));
            zone.add_whole(i64::from(ledger.is_whole()));
            self.reindex(block, Ledger::new(), ledger);
        }
    }

    /// The first frame of the span, aligned to a block; frame indexes count from it.
    pub fn base(&self) -> Pfn {
        self.base
    }

    /// Bytes of metadata in use, descriptors included.
    pub fn metadata_used(&self) -> usize {
        self.metadata_used
    }

    /// All blocks, ascending.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = BlockId> + ExactSizeIterator + use<> {
        (0..self.blocks as u32).map(BlockId::new)
    }

    /// The block that holds `pfn`; `None` outside the span.
    pub fn block_of(&self, pfn: Pfn) -> Option<BlockId> {
        self.frame_index(pfn).map(Self::block_of_index)
    }

    /// The first frame of `block`.
    pub fn block_start(&self, block: BlockId) -> Pfn {
        self.base.plus((block.index() * FRAMES_PER_BLOCK) as u64)
    }

    /// How many zones there are.
    pub fn zones(&self) -> impl Iterator<Item = ZoneId> + use<> {
        (0..self.zone_count as u8).map(ZoneId::new)
    }

    /// The zone of `pfn`'s block; `None` outside the span.
    pub fn zone_of(&self, pfn: Pfn) -> Option<ZoneId> {
        self.block_of(pfn).map(|block| self.zone_of_block(block))
    }

    /// The zone of `block`.
    pub fn zone_of_block(&self, block: BlockId) -> ZoneId {
        let info = self.info[block.index()].load(Ordering::Relaxed);
        ZoneId::new((info >> info_word::ZONE & info_word::ZONE_MASK) as u8)
    }

    /// The ledger of `block` as it is now.
    pub fn ledger(&self, block: BlockId) -> Ledger {
        // Acquire: pairs with the release of `change`; who sees frames freed sees their bits.
        Ledger::from_bits(self.ledgers[block.index()].load(Ordering::Acquire))
    }

    /// Frames of `block` that are reserved or no memory.
    pub fn reserved_in(&self, block: BlockId) -> u16 {
        (self.info[block.index()].load(Ordering::Relaxed) & info_word::RESERVED_MASK) as u16
    }

    /// The counters.
    pub fn events(&self) -> Events<'_> {
        Events { cpus: self.cpus }
    }

    /// How many processors it was made for.
    pub fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    pub(crate) fn cpu(&self, cpu: CpuId) -> &CpuSlot {
        &self.cpus[cpu.index()]
    }

    pub(crate) fn block_zone(&self, block: BlockId) -> &Zone {
        &self.zones[self.zone_of_block(block).index()]
    }

    #[inline]
    pub(crate) fn frame_index(&self, pfn: Pfn) -> Option<u32> {
        let index = pfn.get().checked_sub(self.base.get())?;
        (index < self.descriptors.len() as u64).then_some(index as u32)
    }

    #[inline]
    pub(crate) fn pfn(&self, frame: u32) -> Pfn {
        self.base.plus(u64::from(frame))
    }

    #[inline]
    pub(crate) fn block_of_index(frame: u32) -> BlockId {
        BlockId::new(frame / FRAMES_PER_BLOCK as u32)
    }

    /// Changes a ledger in one atomic step, keeps the index and the sum of whole blocks. The sum of free frames is the
    /// caller's, who may have booked them before.
    pub(crate) fn change(
        &self,
        block: BlockId,
        mut change: impl FnMut(Ledger) -> Option<Ledger>,
    ) -> Result<Change, Ledger> {
        // AcqRel: a taker sees the bits that freers set before they raised the count (their release), and the other way round.
        let done =
            self.ledgers[block.index()].fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                change(Ledger::from_bits(bits)).map(|new| new.bumped().into_bits())
            });
        match done {
            Err(found) => Err(Ledger::from_bits(found)),
            Ok(old) => {
                let old = Ledger::from_bits(old);
                // What `fetch_update` stored: the same change of the same value.
                let new = change(old).map_or(old, Ledger::bumped);
                if old.is_whole() != new.is_whole() {
                    self.block_zone(block)
                        .add_whole(if new.is_whole() { 1 } else { -1 });
                }
                self.reindex(block, old, new);
                Ok(Change { old, new })
            }
        }
    }

    /// Moves the block in the indexes whose order it left.
    fn reindex(&self, block: BlockId, old: Ledger, new: Ledger) {
        let zone = self.zone_of_block(block);
        if room_place(zone, old) != room_place(zone, new) {
            self.move_by_room(block, zone);
        }
        if cost_place(zone, old) != cost_place(zone, new) {
            self.by_cost
                .update(block, || cost_place(zone, self.ledger(block)));
        }
        if heal_place(zone, old) != heal_place(zone, new) {
            self.by_heal
                .update(block, || heal_place(zone, self.ledger(block)));
        }
    }

    fn move_by_room(&self, block: BlockId, zone: ZoneId) {
        let sums = &self.zones[zone.index()];
        sums.begin_move();
        self.by_room
            .update(block, || room_place(zone, self.ledger(block)));
        sums.end_move();
    }

    /// Moves a block that a search found in the wrong place: the one that changed its ledger has not come to it yet.
    pub(crate) fn refile(&self, block: BlockId) {
        let zone = self.zone_of_block(block);
        if !self
            .by_room
            .holds(block, room_place(zone, self.ledger(block)))
        {
            self.move_by_room(block, zone);
        }
    }

    /// Takes up to `max` frames of `block` for `class` if `usable` agrees, retyping the block if asked. Gives how many are in
    /// `out`; their descriptors are untouched and the zone's free frames are the caller's to book.
    pub(crate) fn take_from(
        &self,
        block: BlockId,
        class: FrameClass,
        max: usize,
        retype: Option<Migratetype>,
        usable: impl Fn(Ledger) -> bool,
        out: &mut [u32],
    ) -> usize {
        let field = &self.fields[block.index()];
        let max = max.min(out.len()) as u16;
        let mut count = 0;
        let taken = self.change(block, |ledger| {
            if ledger.state() != BlockState::Open || ledger.free() == 0 || !usable(ledger) {
                return None;
            }
            count = max.min(ledger.free());
            let ledger = ledger.taken(class, count);
            Some(retype.map_or(ledger, |migratetype| ledger.with_type(migratetype)))
        });
        if taken.is_err() || count == 0 {
            return 0;
        }
        let first = (block.index() * FRAMES_PER_BLOCK) as u32;
        take_bits(
            field,
            usize::from(count),
            &mut out[..usize::from(count)],
            first,
        );
        usize::from(count)
    }

    /// Sets bits and raises the ledger for `frames`, all of one class and already in state Free. Books what the zones gained.
    pub(crate) fn put_into_field(&self, frames: &[u32], class: FrameClass) {
        let mut at = 0;
        let mut gained = [0i64; MAX_ZONES];
        while let Some(&first) = frames.get(at) {
            // Neighbours go back together: one step for each word, one for the ledger.
            let block = Self::block_of_index(first);
            let begin = at;
            while let Some(&first) = frames
                .get(at)
                .filter(|f| Self::block_of_index(**f) == block)
            {
                let word = first / 64;
                let mut mask = 0u64;
                while let Some(&frame) = frames.get(at).filter(|frame| **frame / 64 == word) {
                    mask |= 1 << (frame % 64);
                    at += 1;
                }
                // Release, and before the ledger: who lowers the ledger next finds the bits.
                let word = &self.fields[block.index()].0[word as usize % WORDS];
                let old = word.fetch_or(mask, Ordering::AcqRel);
                debug_assert_eq!(old & mask, 0, "a free frame was freed");
            }
            let count = (at - begin) as u16;
            if let Ok(change) = self.change(block, |ledger| Some(ledger.given(class, count))) {
                gained[self.zone_of_block(block).index()] += change.freed();
                if change.new.refusal() != Refusal::None {
                    self.forgive_offender(block, &frames[begin..at]);
                }
            }
        }
        for (zone, gained) in self.zones.iter().zip(gained) {
            zone.add_free(gained);
        }
    }
}

/// The class of a block with `free` frames, 1 to 511: 1, 2, 3, 4, then two classes for each doubling.
///
/// Full memory leaves most blocks with a handful of free frames, so classes are narrow there: *fullest* and *emptiest* mean
/// what they say just where it matters.
pub(crate) const fn room_class(free: u16) -> usize {
    if free <= 4 {
        return (free as usize).saturating_sub(1);
    }
    let below = free as usize - 1;
    let octave = below.ilog2() as usize;
    4 + (octave - 2) * 2 + (below >> (octave - 1) & 1)
}

const _: () = assert!(room_class(511) < crate::index::CLASSES && room_class(5) == 4);

pub(crate) fn room_place(zone: ZoneId, ledger: Ledger) -> Place {
    if ledger.state() != BlockState::Open || ledger.free() == 0 {
        return Place::NONE;
    }
    let category = zone.index() * KINDS;
    if ledger.is_whole() {
        return Place::new(category + kind::WHOLE, 0);
    }
    let kind = match ledger.migratetype() {
        Migratetype::Unmovable => kind::UNMOVABLE,
        Migratetype::Reclaimable => kind::RECLAIMABLE,
        Migratetype::Movable
            if ledger.unmovable() > 0
                || matches!(ledger.refusal(), Refusal::Lasting | Refusal::Expired) =>
        {
            kind::HYBRID
        }
        Migratetype::Movable => kind::MOVABLE,
    };
    Place::new(category + kind, room_class(ledger.free()))
}

/// What emptying a block costs, in copied frames.
pub(crate) fn evacuation_cost(ledger: Ledger) -> usize {
    ledger.movable() as usize + (ledger.balloon() as usize).div_ceil(BALLOON_DISCOUNT)
}

/// Categories of the cost index in each zone.
pub(crate) mod cost {
    /// Blocks that compaction may empty, by what that costs.
    pub const CANDIDATES: usize = 0;
    /// Those that it tried in vain, by the kind of refusal.
    pub const REFUSED: usize = 1;
    /// How many there are.
    pub const COUNT: usize = 2;
}

pub(crate) fn cost_place(zone: ZoneId, ledger: Ledger) -> Place {
    let candidate = ledger.state() == BlockState::Open
        && ledger.migratetype() == Migratetype::Movable
        && ledger.unmovable() == 0
        && ledger.used() > 0;
    if !candidate {
        return Place::NONE;
    }
    let category = zone.index() * cost::COUNT;
    match ledger.refusal() {
        Refusal::None => Place::new(
            category + cost::CANDIDATES,
            evacuation_cost(ledger) / CLASS_STEP,
        ),
        refusal => Place::new(category + cost::REFUSED, refusal as usize),
    }
}

/// Categories of the heal index: all zones' blocks with balloon frames, but for those that stand in a category of their
/// zone, since a balloon that takes whole blocks has begun them and goes on there.
pub(crate) mod heal {
    /// Blocks with balloon frames, by what else is in them.
    pub const ALL: usize = 0;
    /// The first of the zones' categories.
    pub const BEGUN: usize = 1;
}

pub(crate) fn heal_place(zone: ZoneId, ledger: Ledger) -> Place {
    if ledger.balloon() == 0 || ledger.state() == BlockState::Huge {
        return Place::NONE;
    }
    if ledger.unmovable() > 0 {
        return Place::new(heal::ALL, usize::MAX);
    }
    if is_begun(ledger) {
        return Place::new(heal::BEGUN + zone.index(), 0);
    }
    Place::new(heal::ALL, ledger.movable() as usize / CLASS_STEP)
}

/// Whether the block holds balloon frames, room for more, and nothing else.
pub(crate) fn is_begun(ledger: Ledger) -> bool {
    ledger.balloon() > 0
        && ledger.balloon() + ledger.free() == FRAMES_PER_BLOCK as u16
        && ledger.free() > 0
        && ledger.state() == BlockState::Open
        && ledger.migratetype() == Migratetype::Movable
}
