//! Memory from [`Hal::dma_alloc`] that driver and device share: the only unsafe code of the crate.
//!
//! All of it is accessed by atomics, so that whatever a device (or another processor) does to it at the same time, a
//! read gives some value and no more.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ptr::NonNull;
// Not those of `frames::sync`: the device does not know a model checker.
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::wire::Quiet;

/// A run of pages, zeroed when it is taken; leaked when it is dropped, unless the device is known to be done with it.
pub(super) struct Memory<H: Hal> {
    paddr: PhysAddr,
    vaddr: NonNull<u8>,
    pages: usize,
    released: AtomicBool,
    _hal: PhantomData<H>,
}

// SAFETY: `vaddr` is memory that `dma_alloc` gave to this value alone; nothing in it belongs to one thread.
unsafe impl<H: Hal> Send for Memory<H> {}
// SAFETY: shared access gives out references to atomics only.
unsafe impl<H: Hal> Sync for Memory<H> {}

impl<H: Hal> Memory<H> {
    /// `bytes` bytes; `None` when there are none.
    pub(super) fn new(bytes: usize) -> Option<Self> {
        let pages = bytes.div_ceil(PAGE_SIZE);
        let (paddr, vaddr) = H::dma_alloc(pages, BufferDirection::Both);
        (paddr != 0).then_some(Self {
            paddr,
            vaddr,
            pages,
            released: AtomicBool::new(false),
            _hal: PhantomData,
        })
    }

    /// The physical address of a byte.
    pub(super) const fn physical(&self, offset: usize) -> PhysAddr {
        self.paddr + offset as PhysAddr
    }

    /// The place of a `C`.
    ///
    /// # Panics
    /// When it is not inside the memory, or not aligned. Offsets come from the layout, never from the device.
    fn place<C>(&self, offset: usize) -> NonNull<C> {
        let end = offset.checked_add(size_of::<C>());
        assert!(end.is_some_and(|end| end <= self.pages * PAGE_SIZE));
        assert!(offset.is_multiple_of(align_of::<C>()));
        // SAFETY: inside the pages that were taken, by the first assertion.
        unsafe { self.vaddr.add(offset) }.cast()
    }

    /// A byte.
    pub(super) fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: inside the memory and aligned (`place`; pages are aligned more than an atomic needs); any bits are a
        // number; it lives as long as `self`; nobody has a reference that is not atomic.
        unsafe { self.place::<AtomicU8>(offset).as_ref() }
    }

    /// A word of 16 bits.
    pub(super) fn word16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as in `byte`.
        unsafe { self.place::<AtomicU16>(offset).as_ref() }
    }

    /// A word of 32 bits.
    pub(super) fn word32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `byte`.
        unsafe { self.place::<AtomicU32>(offset).as_ref() }
    }

    /// A word of 64 bits.
    pub(super) fn word64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `byte`.
        unsafe { self.place::<AtomicU64>(offset).as_ref() }
    }

    /// The device touches the memory never again: it is given back when it is dropped.
    pub(super) fn allow_release(&self, _quiet: &Quiet) {
        // Relaxed: `drop` has the only reference.
        self.released.store(true, Ordering::Relaxed);
    }
}

impl<H: Hal> Drop for Memory<H> {
    /// Leaks what the device may still have.
    fn drop(&mut self) {
        if !self.released.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: these are the values of the one `dma_alloc`, and `self` ends here. No device uses the memory: it has
        // confirmed a reset, which the `Quiet` of `allow_release` proves, and is not started again (`VirtioDisk::drop`).
        unsafe { H::dma_dealloc(self.paddr, self.vaddr, self.pages) };
    }
}
