//! The kernel's own page tables. They map the kernel's image, page by page with the rights that each part needs, and
//! the window on physical memory. The lower half is empty: it belongs to programs.

use core::ops::Range;

use super::physical::{KERNEL, WINDOW, in_window};
use crate::kernel::memory::{HIGHEST, MAX_REGIONS};
use arrayvec::ArrayVec;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const HUGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;
/// All device registers are below this physical address.
const LOW: u64 = 4 << 30;

unsafe extern "C" {
    static kernel_text_start: u8;
    static kernel_text_end: u8;
    static kernel_rodata_end: u8;
    static kernel_end: u8;
    static boot_stack: u8;
}

/// The physical address where the image ends.
pub fn image_end() -> u64 {
    address(&raw const kernel_end) - KERNEL
}

/// Whether `address` lies in the kernel's code.
pub fn is_code(at: u64) -> bool {
    (address(&raw const kernel_text_start)..address(&raw const kernel_text_end)).contains(&at)
}

fn address(symbol: *const u8) -> u64 {
    symbol.addr() as u64
}

/// Builds page tables in frames from `frames`.
struct Mapper<'f> {
    root: u64,
    frames: &'f mut Range<u64>,
}

impl Mapper<'_> {
    fn new_table(&mut self) -> u64 {
        let table = self.frames.start;
        assert!(
            table + PAGE <= self.frames.end,
            "no room for the kernel's page tables"
        );
        self.frames.start += PAGE;
        let words = in_window(table).cast::<u64>();
        for index in 0..512 {
            // SAFETY: the frame is in the memory that `build` got for tables, and the boot tables' window maps it.
            unsafe { words.add(index).write_volatile(0) };
        }
        table
    }

    /// Maps one page of `size` bytes: 4 KiB or 2 MiB.
    fn map(&mut self, virtual_address: u64, physical: u64, size: u64, flags: u64) {
        let last = if size == PAGE { 3 } else { 2 };
        let mut table = self.root;
        for level in 0..=last {
            let index = (virtual_address >> (39 - 9 * level) & 511) as usize;
            // SAFETY: `table` is one of this mapper's tables, accessed as in `new_table`.
            let entry = unsafe { in_window(table).cast::<u64>().add(index) };
            if level == last {
                let huge = if size == PAGE { 0 } else { HUGE };
                // SAFETY: as above.
                unsafe { entry.write_volatile(physical | flags | huge | PRESENT | GLOBAL) };
                return;
            }
            // SAFETY: as above.
            let found = unsafe { entry.read_volatile() };
            table = if found & PRESENT != 0 {
                found & ADDRESS
            } else {
                let next = self.new_table();
                // SAFETY: as above.
                unsafe { entry.write_volatile(next | WRITABLE | PRESENT) };
                next
            };
        }
    }
}

/// Builds the kernel's tables for `ram`, in frames taken from the front of `frames`. Gives the root's physical address.
///
/// The root's upper half does not change afterwards, so copies of it stay valid.
///
/// # Safety
///
/// `frames` is unused RAM below 4 GiB, and the boot tables are loaded.
pub unsafe fn build(ram: &[Range<u64>], frames: &mut Range<u64>) -> u64 {
    let mut mapper = Mapper { root: 0, frames };
    mapper.root = mapper.new_table();
    let root = mapper.root;
    let (text, text_end) = (
        address(&raw const kernel_text_start),
        address(&raw const kernel_text_end),
    );
    let (rodata_end, end) = (
        address(&raw const kernel_rodata_end),
        address(&raw const kernel_end),
    );
    let guard = address(&raw const boot_stack);
    for page in (text..end).step_by(PAGE as usize) {
        let flags = match page {
            page if page < text_end => 0,
            page if page < rodata_end => NO_EXECUTE,
            // The guard page is not mapped: a stack overflow faults.
            page if page == guard => continue,
            _ => NO_EXECUTE | WRITABLE,
        };
        mapper.map(page, page - KERNEL, PAGE, flags);
    }
    let is_ram = |page: u64| {
        ram.iter()
            .any(|region| region.start < page + HUGE_PAGE && page < region.end)
    };
    for page in (0..LOW).step_by(HUGE_PAGE as usize) {
        let flags = if is_ram(page) { 0 } else { UNCACHED };
        mapper.map(
            WINDOW + page,
            page,
            HUGE_PAGE,
            flags | WRITABLE | NO_EXECUTE,
        );
    }
    let high: ArrayVec<Range<u64>, MAX_REGIONS> = ram
        .iter()
        .filter(|region| region.end > LOW)
        .map(|region| region.start..region.end.min(HIGHEST))
        .collect();
    for region in high {
        let start = region.start.max(LOW) & !(HUGE_PAGE - 1);
        for page in (start..region.end).step_by(HUGE_PAGE as usize) {
            mapper.map(WINDOW + page, page, HUGE_PAGE, WRITABLE | NO_EXECUTE);
        }
    }
    root
}
