//! Physical memory through the window in the upper half: words of frames, and device registers.

use core::{
    ops::Range,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use dirigible_frames::{FRAME_SIZE, Pfn};

use crate::kernel::memory::MAX_REGIONS;

/// The window's virtual address: physical address 0 is mapped here. The first address of the upper half.
pub const WINDOW: u64 = 0xffff_8000_0000_0000;
/// What is added to the image's physical addresses to get its virtual ones.
pub const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// 64-bit words in a frame.
const WORDS: usize = FRAME_SIZE / 8;
/// Most regions of frames: the managed ones, and the kernel's root table.
const REGIONS: usize = MAX_REGIONS + 1;

/// First frame and number of frames of each region that may be accessed by frame number. Set once, at boot.
static REACHABLE: [(AtomicU64, AtomicU64); REGIONS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; REGIONS];

/// Sets which frames may be accessed by number. Called once at boot, before other CPUs run.
///
/// # Panics
///
/// If there are more ranges than a machine has regions.
pub fn set_reachable(ranges: &[Range<Pfn>]) {
    assert!(ranges.len() <= REGIONS, "too many regions of memory");
    for (slot, range) in REACHABLE.iter().zip(ranges) {
        // Relaxed: the other CPUs are started later, by writes to device registers.
        slot.0.store(range.start.get(), Ordering::Relaxed);
        slot.1
            .store(range.end.get() - range.start.get(), Ordering::Relaxed);
    }
}

/// Whether all of the `count` frames from `first` on may be accessed.
#[inline]
fn is_reachable(first: Pfn, count: u64) -> bool {
    REACHABLE.iter().any(|(start, frames)| {
        let offset = first.get().wrapping_sub(start.load(Ordering::Relaxed));
        let frames = frames.load(Ordering::Relaxed);
        offset < frames && count <= frames - offset
    })
}

#[cold]
#[inline(never)]
fn unreachable_frame(frame: Pfn) -> ! {
    panic!("{frame} is no frame of the guest's memory");
}

/// The words of `frame`.
///
/// # Panics
///
/// If the frame is not managed memory.
#[inline]
pub fn words(frame: Pfn) -> &'static [AtomicU64; WORDS] {
    if !is_reachable(frame, 1) {
        unreachable_frame(frame);
    }
    let address = (WINDOW + frame.address()) as usize as *const [AtomicU64; WORDS];
    // SAFETY: managed RAM is always mapped in the window, and frames are aligned. No Rust object lives in it: it is
    // accessed only by atomic words like these, by the volatile copies below, by programs, and by devices.
    unsafe { &*address }
}

/// Word `index` of `frame`.
///
/// # Panics
///
/// If the frame is not managed memory, or `index` is 512 or more.
#[inline]
pub fn word(frame: Pfn, index: usize) -> &'static AtomicU64 {
    &words(frame)[index]
}

/// Copies `count` frames from `from` on to those from `to` on. The ranges must not overlap.
///
/// # Panics
///
/// If a frame is not managed memory.
pub fn copy(from: Pfn, to: Pfn, count: usize) {
    if !is_reachable(from, count as u64) {
        unreachable_frame(from);
    }
    if !is_reachable(to, count as u64) {
        unreachable_frame(to);
    }
    let base = |frame: Pfn| (WINDOW + frame.address()) as usize;
    let (mut source, mut target) = (base(from) as *const u64, base(to) as *mut u64);
    for _ in 0..count * WORDS / 8 {
        // SAFETY: both pointers stay inside `count` reachable frames. Volatile, as a program on another CPU may read or
        // write them at the same time.
        unsafe {
            let words: [u64; 8] = core::array::from_fn(|word| source.add(word).read_volatile());
            for (word, value) in words.into_iter().enumerate() {
                target.add(word).write_volatile(value);
            }
            (source, target) = (source.add(8), target.add(8));
        }
    }
}

/// Fills `count` frames with zeroes.
///
/// # Panics
///
/// If a frame is not managed memory.
pub fn zero(first: Pfn, count: usize) {
    if !is_reachable(first, count as u64) {
        unreachable_frame(first);
    }
    let mut target = (WINDOW + first.address()) as usize as *mut u64;
    for _ in 0..count * WORDS / 8 {
        // SAFETY: as in `copy`.
        unsafe {
            for word in 0..8 {
                target.add(word).write_volatile(0);
            }
            target = target.add(8);
        }
    }
}

/// The address in the window of physical address `physical`.
pub fn in_window(physical: u64) -> NonNull<u8> {
    let address = (WINDOW + physical) as usize as *mut u8;
    // Never 0, as the window begins in the upper half.
    NonNull::new(address).unwrap_or(NonNull::dangling())
}

/// The physical address of a kernel address in the window or in the image; `None` for any other address.
pub fn physical_of(address: u64) -> Option<u64> {
    if address >= KERNEL {
        Some(address - KERNEL)
    } else {
        address.checked_sub(WINDOW)
    }
}

/// A 32-bit device register.
#[derive(Clone, Copy, Debug)]
pub struct Register(u64);

impl Register {
    /// The register at physical address `physical`.
    ///
    /// # Safety
    ///
    /// There is a device's register at that address, in the part of the window that is mapped uncached. Reading or
    /// writing it does not change memory that the kernel relies on.
    pub const unsafe fn new(physical: u64) -> Self {
        Self(WINDOW + physical)
    }

    /// Reads it.
    pub fn read(self) -> u32 {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *const u32).read_volatile() }
    }

    /// Writes it.
    pub fn write(self, value: u32) {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *mut u32).write_volatile(value) }
    }

    /// Reads only its low byte.
    pub fn read_byte(self) -> u8 {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *const u8).read_volatile() }
    }

    /// Reads only its low half.
    pub fn read_half(self) -> u16 {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *const u16).read_volatile() }
    }

    /// Writes only its low half.
    pub fn write_half(self, value: u16) {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *mut u16).write_volatile(value) }
    }
}
