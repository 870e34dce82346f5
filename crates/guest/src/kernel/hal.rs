//! The kernel's side of virtio-drivers: memory for devices, and physical addresses.
#![allow(unsafe_code)]

use alloc::alloc::{alloc_zeroed, dealloc};
use core::{alloc::Layout, ptr::NonNull};

use dirigible_frames::FRAME_SIZE;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::arch::physical::{in_window, physical_of};

/// Gives devices whole pages of the heap, which is contiguous RAM.
#[derive(Clone, Copy, Debug)]
pub struct GuestHal;

fn layout(pages: usize) -> Option<Layout> {
    let bytes = pages.checked_mul(FRAME_SIZE).filter(|&bytes| bytes > 0)?;
    Layout::from_size_align(bytes, FRAME_SIZE).ok()
}

// SAFETY: `dma_alloc` gives zeroed pages that the heap gives to nobody else until `dma_dealloc`. The heap is one run of
// RAM in the window, so the pages are contiguous for the device. Caches are coherent with devices on this architecture.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout is not empty.
        let memory = layout(pages).and_then(|layout| NonNull::new(unsafe { alloc_zeroed(layout) }));
        let physical = memory.and_then(|memory| physical_of(memory.addr().get() as u64));
        match (physical, memory) {
            (Some(physical), Some(memory)) => (physical, memory),
            _ => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let Some(layout) = layout(pages) else {
            return -1;
        };
        // SAFETY: the caller passes memory from `dma_alloc`, and the same number of pages.
        unsafe { dealloc(vaddr.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        in_window(paddr)
    }

    /// # Panics
    ///
    /// If the buffer is not kernel memory. Drivers have no other.
    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let address = buffer.cast::<u8>().addr().get() as u64;
        physical_of(address)
            .unwrap_or_else(|| panic!("a device cannot reach a buffer at {address:#x}"))
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
