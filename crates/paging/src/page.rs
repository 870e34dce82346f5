//! Virtual page numbers.

use core::fmt;

/// Entries in a table of any level.
pub(crate) const ENTRIES: u64 = 512;
/// Depth of the last level: 0 is the root (PML4), 1 PDPT, 2 PD, 3 PT.
pub(crate) const LEAF_DEPTH: usize = 3;
/// Depth at which a huge page is mapped.
pub(crate) const HUGE_DEPTH: usize = 2;

/// A virtual page number: a virtual address divided by 4096, 36 bits.
///
/// The type holds any number. Operations on address spaces refuse numbers from [`Page::LIMIT`] on, which are not pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Page(u64);

impl Page {
    /// The first number that is not a page: four levels of tables translate 36 bits.
    pub const LIMIT: Self = Self(1 << 36);
    /// The first page of the upper half, which is the kernel's if [`with_kernel_half`](crate::Paging::with_kernel_half)
    /// is used.
    pub const KERNEL_HALF: Self = Self(1 << 35);

    /// The page with number `number`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The page that holds virtual address `address`. Pages of the sign-extended upper half have numbers from 2^35 on.
    pub const fn containing(address: u64) -> Self {
        Self((address >> 12) & (Self::LIMIT.0 - 1))
    }

    /// The page number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The canonical virtual address of the page's first byte.
    pub const fn address(self) -> u64 {
        (((self.0 << 12) << 16) as i64 >> 16) as u64
    }

    /// The page `pages` after this one.
    pub const fn plus(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }

    /// Whether the number is below [`Page::LIMIT`].
    pub const fn is_valid(self) -> bool {
        self.0 < Self::LIMIT.0
    }

    /// The first page of the aligned 2 MiB range that contains it.
    pub const fn huge_base(self) -> Self {
        Self(self.0 & !(ENTRIES - 1))
    }

    /// Number of the aligned 2 MiB range that contains it.
    pub(crate) const fn region(self) -> u64 {
        self.0 / ENTRIES
    }

    /// Position inside its 2 MiB range.
    pub(crate) const fn offset(self) -> u64 {
        self.0 % ENTRIES
    }

    /// Index of the page's entry in a table at `depth`.
    pub(crate) const fn index(self, depth: usize) -> usize {
        ((self.0 >> (9 * (LEAF_DEPTH - depth))) % ENTRIES) as usize
    }

    /// The first page that the next entry in a table at `depth` maps.
    pub(crate) const fn next_span(self, depth: usize) -> Self {
        let shift = 9 * (LEAF_DEPTH - depth);
        Self(((self.0 >> shift) + 1) << shift)
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page:{:#x}", self.0)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_those_of_the_manual() {
        let page = Page::containing(0x0000_7fff_ffff_f123);
        assert_eq!(
            [0, 1, 2, 3].map(|depth| page.index(depth)),
            [255, 511, 511, 511]
        );
        assert_eq!(page.address(), 0x0000_7fff_ffff_f000);
    }

    #[test]
    fn the_upper_half_is_sign_extended() {
        let page = Page::containing(0xffff_8000_0000_0000);
        assert_eq!(page, Page::new(1 << 35));
        assert_eq!(page.address(), 0xffff_8000_0000_0000);
        assert!(page.is_valid() && !Page::LIMIT.is_valid());
    }

    #[test]
    fn spans_end_where_the_next_entry_begins() {
        let page = Page::new(0x1234_5678);
        assert_eq!(page.next_span(3), page.plus(1));
        assert_eq!(page.next_span(2), Page::new(0x1234_5800));
        assert_eq!(page.next_span(1), Page::new(0x1238_0000));
        assert_eq!(page.huge_base().plus(page.offset()), page);
    }
}
