//! The contents of managed frames, by number and position.
//!
//! All accesses are relaxed atomics of 64 bits (plain moves on the machine), so that two threads that disagree about
//! who owns a frame make a mistake that the content checks see, never undefined behaviour.
#![allow(unsafe_code)]

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use dirigible_frames::{FRAME_SHIFT, FRAME_SIZE, Pfn};

/// 64-bit words in a frame.
pub(crate) const WORDS_PER_FRAME: usize = FRAME_SIZE / 8;

/// Consecutive managed frames and the host memory behind them.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u64,
    frames: u64,
    base: *mut u8,
}

/// The managed frames of one machine.
///
/// A value is made by [`ManagedMemory::new`], whose caller promises that the mappings outlive it.
#[derive(Clone, Debug)]
pub(crate) struct ManagedMemory {
    /// Apart from the rest because most machines have just one.
    first: Span,
    rest: Box<[Span]>,
}

// SAFETY: the pointers are only used for atomic accesses to mappings that live as long as the value (see `new`) and
// that no Rust reference points into.
unsafe impl Send for ManagedMemory {}
// SAFETY: as above; `&ManagedMemory` offers atomic accesses alone.
unsafe impl Sync for ManagedMemory {}

impl ManagedMemory {
    /// The frames of `spans`, each backed by memory that begins at the pointer beside it.
    ///
    /// # Safety
    ///
    /// Each pointer is aligned to a frame and begins a readable, writable mapping as long as its span, which lives at
    /// least as long as the value and its clones, and into which no Rust reference is ever made.
    ///
    /// # Panics
    ///
    /// When there is no span.
    pub(crate) unsafe fn new(spans: &[(Range<Pfn>, *mut u8)]) -> Self {
        let mut spans = spans.iter().map(|(range, base)| {
            assert!(
                base.addr().is_multiple_of(FRAME_SIZE),
                "a mapping that is not page-aligned"
            );
            Span {
                first: range.start.get(),
                frames: range.end.get() - range.start.get(),
                base: *base,
            }
        });
        let first = spans.next().expect("a machine has managed memory");
        Self {
            first,
            rest: spans.collect(),
        }
    }

    /// The host memory of `count` frames in a row.
    #[inline]
    fn run(&self, pfn: Pfn, count: usize) -> *mut u64 {
        let inside = |span: &Span| {
            let offset = pfn.get().wrapping_sub(span.first);
            // The first comparison also catches numbers below the span, which wrapped around.
            (offset < span.frames && count as u64 <= span.frames - offset).then(|| {
                // SAFETY: the offset is inside the span, and the mapping is as long as the span (`new`).
                unsafe { span.base.add((offset as usize) << FRAME_SHIFT) }.cast::<u64>()
            })
        };
        if let Some(pointer) = inside(&self.first) {
            return pointer;
        }
        match self.rest.iter().find_map(inside) {
            Some(pointer) => pointer,
            None => not_managed(pfn, count),
        }
    }

    /// The host address of a managed frame; `None` for all others.
    pub(crate) fn host_address(&self, pfn: Pfn) -> Option<usize> {
        core::iter::once(&self.first)
            .chain(&self.rest)
            .find_map(|span| {
                let offset = pfn.get().checked_sub(span.first)?;
                (offset < span.frames)
                    .then(|| span.base.expose_provenance() + ((offset as usize) << FRAME_SHIFT))
            })
    }

    /// Host address ranges of all spans, each with its first frame.
    pub(crate) fn host_ranges(&self) -> impl Iterator<Item = (Range<usize>, Pfn)> {
        core::iter::once(&self.first).chain(&self.rest).map(|span| {
            let start = span.base.expose_provenance();
            (
                start..start + ((span.frames as usize) << FRAME_SHIFT),
                Pfn::new(span.first),
            )
        })
    }

    /// Word `index` of a frame.
    #[inline]
    pub(crate) fn word(&self, pfn: Pfn, index: usize) -> &AtomicU64 {
        assert!(
            index < WORDS_PER_FRAME,
            "word {index} of a frame that has {WORDS_PER_FRAME}"
        );
        // SAFETY: inside the frame, which is inside a mapping that outlives `self`; aligned, since frames are; all
        // other accesses are atomic as well, or are the kernel's.
        unsafe { AtomicU64::from_ptr(self.run(pfn, 1).add(index)) }
    }

    /// Writes `words` to the heads of the 64 cache lines.
    #[inline]
    pub(crate) fn write_lines(&self, pfn: Pfn, words: &[u64; 64]) {
        let base = self.run(pfn, 1);
        for (line, &word) in words.iter().enumerate() {
            // SAFETY: word 8 * 63 is the last; otherwise as in `word`.
            unsafe { AtomicU64::from_ptr(base.add(line * 8)) }.store(word, Ordering::Relaxed);
        }
    }

    /// Reads the heads of the 64 cache lines.
    #[inline]
    pub(crate) fn read_lines(&self, pfn: Pfn, out: &mut [u64; 64]) {
        let base = self.run(pfn, 1);
        for (line, word) in out.iter_mut().enumerate() {
            // SAFETY: word 8 * 63 is the last; otherwise as in `word`.
            *word = unsafe { AtomicU64::from_ptr(base.add(line * 8)) }.load(Ordering::Relaxed);
        }
    }

    /// Copies whole frames. Overlapping ranges give what an ascending word-by-word copy gives.
    pub(crate) fn copy(&self, from: Pfn, to: Pfn, count: usize) {
        let (source, target) = (self.run(from, count), self.run(to, count));
        // SAFETY: both runs are inside live mappings for their whole length (`run`).
        unsafe { copy_words(source, target, count * WORDS_PER_FRAME) }
    }

    /// Fills whole frames with zeroes.
    pub(crate) fn zero(&self, first: Pfn, count: usize) {
        let target = self.run(first, count);
        // SAFETY: the run is inside a live mapping for its whole length (`run`).
        unsafe { zero_words(target, count * WORDS_PER_FRAME) }
    }
}

/// A caller's mistake: kept out of line so that the checks stay small.
#[cold]
#[inline(never)]
fn not_managed(pfn: Pfn, count: usize) -> ! {
    panic!("{count} frame(s) from {pfn} are not all managed memory of this machine");
}

/// Copies `words` 64-bit words, each by one load and one store, ascending.
///
/// # Safety
///
/// Both pointers are aligned and valid for `words` words; nobody makes a Rust reference to the memory.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_words(source: *const u64, target: *mut u64, words: usize) {
    // In assembler because relaxed atomics in a loop are never merged into wide moves. Each step of the instruction is
    // an 8-byte load and store, so towards other threads the block does what a loop of relaxed atomics does. SAFETY:
    // valid memory by the caller's promise; the direction flag is clear by the ABI; nothing else is clobbered.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rcx") words => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Sets `words` 64-bit words to zero.
///
/// # Safety
///
/// As for [`copy_words`].
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn zero_words(target: *mut u64, words: usize) {
    // SAFETY: as in `copy_words`.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            inout("rcx") words => _,
            inout("rdi") target => _,
            in("rax") 0u64,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies `words` 64-bit words, each by one load and one store, ascending.
///
/// # Safety
///
/// Both pointers are aligned and valid for `words` words; nobody makes a Rust reference to the memory.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn copy_words(source: *const u64, target: *mut u64, words: usize) {
    for index in 0..words {
        // SAFETY: valid memory by the caller's promise; the cast to *mut only serves a load.
        let word =
            unsafe { AtomicU64::from_ptr(source.add(index).cast_mut()) }.load(Ordering::Relaxed);
        // SAFETY: valid memory by the caller's promise.
        unsafe { AtomicU64::from_ptr(target.add(index)) }.store(word, Ordering::Relaxed);
    }
}

/// Sets `words` 64-bit words to zero.
///
/// # Safety
///
/// As for [`copy_words`].
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn zero_words(target: *mut u64, words: usize) {
    for index in 0..words {
        // SAFETY: valid memory by the caller's promise.
        unsafe { AtomicU64::from_ptr(target.add(index)) }.store(0, Ordering::Relaxed);
    }
}
