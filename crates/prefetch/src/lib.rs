//! Asks the processor for a cache line that will be written soon.
//!
//! One function, in a crate of its own because it needs an instruction, and the crates that gain from it forbid `unsafe`.
//! The standard library's prefetches want vector registers, which kernels do without.

#![no_std]

/// Begins to bring the cache line of `place` into this CPU's cache, to write to it; returns at once. Where the processor has no
/// such instruction, or under Miri, nothing happens.
///
/// ```
/// let place = 7;
/// dirigible_prefetch::for_write(&place);
/// assert_eq!(place, 7);
/// ```
#[inline(always)]
pub fn for_write<T>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: `prefetchw` is a hint: it changes no register, flag or memory that the program can see, and faults for no
    // address (AMD64 Architecture Programmer's Manual, volume 3, PREFETCHW; Intel's SDM: processors without it take it for a NOP).
    unsafe {
        core::arch::asm!(
            "prefetchw [{}]",
            in(reg) core::ptr::from_ref(place),
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above; `prfm` is a hint, too.
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
