//! One word of a page table, in the format that x86-64 hardware walks.

use crate::page::{HUGE_DEPTH, LEAF_DEPTH};
use dirigible_frames::{Order, Pfn};

/// A page-table word.
///
/// A *migration entry* replaces a mapping while its frame is moved or split. It is not present, so hardware faults on
/// it. A software bit marks it. It keeps the frame number and all flags of the mapping.
///
/// A *swapped entry* stands for a page whose contents are in swap. It is not present either, another software bit marks
/// it, and the bits of the frame number hold the number of the slot. It has no other flags. Only last-level tables have
/// such entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct Entry(u64);

/// The kind of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Nothing is mapped.
    Empty,
    /// A table one level down.
    Table,
    /// A mapped frame, base or huge.
    Leaf,
    /// A mapping whose frame is being moved or split.
    Migration,
    /// A page in swap.
    Swapped,
}

impl Entry {
    const PRESENT: u64 = 1 << 0;
    const WRITABLE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    const HUGE: u64 = 1 << 7;
    /// Hardware ignores bits 9 to 11: software may use them.
    const MIGRATION: u64 = 1 << 9;
    const SWAPPED: u64 = 1 << 10;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;

    /// The largest slot number that fits into an entry.
    pub(crate) const MAX_SLOT: u64 = Self::FRAME >> 12;

    /// The entry that maps nothing.
    pub(crate) const EMPTY: Self = Self(0);

    /// The word as read from a table.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word to write into a table.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    const fn with_frame(flags: u64, frame: Pfn) -> Self {
        debug_assert!(frame.address() & !Self::FRAME == 0);
        Self(flags | (frame.address() & Self::FRAME))
    }

    /// The entry of the table in `frame`.
    pub(crate) const fn table(frame: Pfn) -> Self {
        Self::with_frame(
            Self::PRESENT | Self::WRITABLE | Self::USER | Self::ACCESSED,
            frame,
        )
    }

    /// The entry that maps `frame` for user reads and writes. It is marked accessed, as a fault is an access.
    pub(crate) const fn leaf(frame: Pfn, order: Order) -> Self {
        let size = if order.get() == 0 { 0 } else { Self::HUGE };
        Self::with_frame(
            Self::PRESENT | Self::WRITABLE | Self::USER | Self::ACCESSED | size,
            frame,
        )
    }

    /// The entry of a page whose contents are in `slot` of swap, which is not above [`MAX_SLOT`](Self::MAX_SLOT).
    pub(crate) const fn swapped(slot: u64) -> Self {
        debug_assert!(slot <= Self::MAX_SLOT);
        Self(Self::SWAPPED | (slot << 12 & Self::FRAME))
    }

    /// The slot that it names, if it is a swapped entry.
    pub(crate) const fn slot(self) -> u64 {
        (self.0 & Self::FRAME) >> 12
    }

    /// The kind of this entry in a table at `depth`.
    pub(crate) const fn kind(self, depth: usize) -> Kind {
        if self.0 & Self::PRESENT != 0 {
            // In the last level bit 7 selects a memory type, and is always clear here.
            if depth == LEAF_DEPTH || (depth == HUGE_DEPTH && self.0 & Self::HUGE != 0) {
                Kind::Leaf
            } else {
                Kind::Table
            }
        } else if self.0 & Self::MIGRATION != 0 {
            Kind::Migration
        } else if self.0 & Self::SWAPPED != 0 && depth == LEAF_DEPTH {
            Kind::Swapped
        } else {
            Kind::Empty
        }
    }

    /// The frame or table that it names.
    pub(crate) const fn frame(self) -> Pfn {
        Pfn::containing(self.0 & Self::FRAME)
    }

    /// Whether the page was read or written.
    pub(crate) const fn is_accessed(self) -> bool {
        self.0 & Self::ACCESSED != 0
    }

    /// Whether the page was written.
    pub(crate) const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    /// The same mapping after an access, with the marks that hardware sets.
    pub(crate) const fn touched(self, write: bool) -> Self {
        Self(self.0 | Self::ACCESSED | if write { Self::DIRTY } else { 0 })
    }

    /// The same mapping, not accessed.
    pub(crate) const fn aged(self) -> Self {
        Self(self.0 & !Self::ACCESSED)
    }

    /// The migration entry that replaces this mapping.
    pub(crate) const fn to_migration(self) -> Self {
        Self((self.0 & !Self::PRESENT) | Self::MIGRATION)
    }

    /// The migration entry of [`HUGE_DEPTH`] behind which the last-level table in `table` is hidden.
    pub(crate) const fn hidden(table: Pfn) -> Self {
        Self::table(table).to_migration()
    }

    /// Whether this entry of a table at `depth` hides a table.
    pub(crate) fn hides_table(self, depth: usize) -> bool {
        depth == HUGE_DEPTH && self.kind(depth) == Kind::Migration && self.0 & Self::HUGE == 0
    }

    /// The mapping that this migration entry replaces, now to `frame`.
    pub(crate) const fn restored(self, frame: Pfn) -> Self {
        let flags = self.0 & !(Self::FRAME | Self::MIGRATION);
        Self::with_frame(flags | Self::PRESENT, frame)
    }

    /// The base mapping of frame `index` of this huge mapping, which is present or a migration entry.
    pub(crate) const fn part(self, index: u64) -> Self {
        let flags = self.0 & !(Self::FRAME | Self::MIGRATION | Self::HUGE);
        Self::with_frame(flags | Self::PRESENT, self.frame().plus(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_depend_on_the_level() {
        let table = Entry::table(Pfn::new(7));
        assert_eq!(table.kind(0), Kind::Table);
        assert_eq!(table.kind(LEAF_DEPTH), Kind::Leaf);
        let huge = Entry::leaf(Pfn::new(512), Order::HUGE);
        assert_eq!(huge.kind(HUGE_DEPTH), Kind::Leaf);
        assert_eq!(huge.to_migration().kind(HUGE_DEPTH), Kind::Migration);
        assert_eq!(Entry::EMPTY.kind(LEAF_DEPTH), Kind::Empty);
    }

    #[test]
    fn a_migration_entry_keeps_every_flag() {
        for order in [Order::BASE, Order::HUGE] {
            for write in [false, true] {
                let before = Entry::leaf(Pfn::new(1024), order).touched(write);
                let migration = before.to_migration();
                assert_eq!(migration.frame(), before.frame());
                let after = migration.restored(Pfn::new(2048));
                assert_eq!(after.frame(), Pfn::new(2048));
                assert_eq!(after.restored(before.frame()), before);
                assert_eq!(after.is_dirty(), write);
                assert!(after.is_accessed());
            }
        }
    }

    #[test]
    fn a_swapped_entry_holds_forty_bits_and_no_flags() {
        assert_eq!(Entry::MAX_SLOT, (1 << 40) - 1);
        for slot in [0, 1, 511, 1 << 39, Entry::MAX_SLOT] {
            let entry = Entry::swapped(slot);
            assert_eq!(
                (entry.kind(LEAF_DEPTH), entry.slot()),
                (Kind::Swapped, slot)
            );
            assert!(!entry.is_accessed() && !entry.is_dirty());
            assert_eq!(entry.bits() & 1, 0, "hardware faults on it");
            assert_ne!(entry, Entry::EMPTY);
        }
    }

    #[test]
    fn swapped_and_migration_entries_are_told_apart() {
        let leaf = Entry::leaf(Pfn::new(7), Order::BASE).touched(true);
        assert_eq!(leaf.to_migration().kind(LEAF_DEPTH), Kind::Migration);
        assert_ne!(leaf.to_migration(), Entry::swapped(7));
        // In a table above the last level it is no valid entry, and the audit reports it.
        assert_eq!(Entry::swapped(7).kind(HUGE_DEPTH), Kind::Empty);
    }

    #[test]
    fn parts_of_a_huge_mapping_are_base_mappings() {
        let huge = Entry::leaf(Pfn::new(512), Order::HUGE).touched(true);
        let part = huge.to_migration().part(5);
        assert_eq!(part, Entry::leaf(Pfn::new(517), Order::BASE).touched(true));
    }
}
