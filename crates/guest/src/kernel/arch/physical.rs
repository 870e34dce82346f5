//! Physical memory through the window in the upper half: words of frames, and device registers.

use core::{
    ops::Range,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use dirigible_frames::{FRAME_SIZE, Pfn};

use crate::kernel::memory::MAX_REGIONS;

/// Where the window begins: physical address 0 is here. The first entry of the upper half.
pub const WINDOW: u64 = 0xffff_8000_0000_0000;
/// Where the kernel's image is mapped: physical address 0 would be here.
pub const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// 64-bit words in a frame.
const WORDS: usize = FRAME_SIZE / 8;
/// Regions of RAM that frames can be in: all managed ones, and the kernel's root table.
const REGIONS: usize = MAX_REGIONS + 1;

/// First frame and number of frames of each region that may be reached by frame number; set once at boot.
static REACHABLE: [(AtomicU64, AtomicU64); REGIONS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; REGIONS];

/// Lets frames be reached from now on: the managed ones, once at boot, before other CPUs run.
///
/// # Panics
///
/// With more regions than a machine has.
pub fn set_reachable(ranges: &[Range<Pfn>]) {
    assert!(ranges.len() <= REGIONS, "too many regions of memory");
    for (slot, range) in REACHABLE.iter().zip(ranges) {
        // Relaxed: the other CPUs are woken later, by writes to device registers.
        slot.0.store(range.start.get(), Ordering::Relaxed);
        slot.1
            .store(range.end.get() - range.start.get(), Ordering::Relaxed);
    }
}

/// Whether all of `count` frames from `first` on can be reached.
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
/// When the frame is not managed memory.
#[inline]
pub fn words(frame: Pfn) -> &'static [AtomicU64; WORDS] {
    if !is_reachable(frame, 1) {
        unreachable_frame(frame);
    }
    let address = (WINDOW + frame.address()) as usize as *const [AtomicU64; WORDS];
    // SAFETY: managed RAM is mapped in the window for ever and aligned; no Rust object lives in it, all access to it is by
    // atomic words like these, by the volatile copies below, or by programs and devices outside of the language.
    unsafe { &*address }
}

/// Word `index` of `frame`.
///
/// # Panics
///
/// When the frame is not managed memory, or the word not in a frame.
#[inline]
pub fn word(frame: Pfn, index: usize) -> &'static AtomicU64 {
    &words(frame)[index]
}

/// Copies `count` frames; the ranges do not overlap.
///
/// # Panics
///
/// When a frame is not managed memory.
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
        // SAFETY: both pointers stay inside `count` reachable frames. Volatile: a program on another CPU may still read or
        // write there, as it may under any kernel.
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
/// When a frame is not managed memory.
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

/// The address in the window of a physical one.
pub fn in_window(physical: u64) -> NonNull<u8> {
    let address = (WINDOW + physical) as usize as *mut u8;
    // The window does not begin at address 0.
    NonNull::new(address).unwrap_or(NonNull::dangling())
}

/// The physical address behind a kernel address: one in the window or in the kernel's image; `None` for any other.
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
    /// A device's register must be there, in the part of the window that is mapped uncached, and reading or writing it must
    /// not break memory that others rely on.
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

    /// Reads its low byte alone.
    pub fn read_byte(self) -> u8 {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *const u8).read_volatile() }
    }

    /// Reads its low half alone.
    pub fn read_half(self) -> u16 {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *const u16).read_volatile() }
    }

    /// Writes its low half alone.
    pub fn write_half(self, value: u16) {
        // SAFETY: see `new`.
        unsafe { (self.0 as usize as *mut u16).write_volatile(value) }
    }
}
