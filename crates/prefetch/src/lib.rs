//! Prefetches a cache line that will be written soon.
//!
//! One function. It has a crate of its own because it needs inline assembly, and the crates that use it forbid
//! `unsafe`. The standard library's prefetch intrinsics need vector registers, which kernels do not use.

#![no_std]

/// Begins to fetch the cache line of `place` into this CPU's cache for writing, and returns at once. Does nothing under
/// Miri, or if the processor has no such instruction.
///
/// ```
/// let place = 7;
/// dirigible_prefetch::for_write(&place);
/// assert_eq!(place, 7);
/// ```
#[inline(always)]
pub fn for_write<T>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: `prefetchw` is a hint: it changes no register, flag or memory that the program can see, and it faults for
    // no address (AMD64 Architecture Programmer's Manual, volume 3, PREFETCHW). Processors without it execute it as a
    // NOP (Intel SDM).
    unsafe {
        core::arch::asm!(
            "prefetchw [{}]",
            in(reg) core::ptr::from_ref(place),
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above; `prfm` is a hint as well.
    unsafe {
        core::arch::asm!(
            "prfm pstl1keep, [{}]",
            in(reg) core::ptr::from_ref(place),
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = place;
}
