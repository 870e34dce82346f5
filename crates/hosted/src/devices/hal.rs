//! What virtio-drivers needs from a machine: DMA memory, and physical addresses of buffers.
//!
//! `Hal` has static functions only: [`registry`](crate::memory::registry) finds the machine that is meant.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dirigible_frames::FRAME_SIZE;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::memory::{
    dma::DmaArea,
    registry::{current_dma, physical},
};

/// DMA memory that drivers hold, by host address. Each entry keeps the area alive, so that a driver that outlives
/// its machine still points to memory.
static HELD: Mutex<BTreeMap<usize, Held>> = Mutex::new(BTreeMap::new());
/// Buffers that lie outside guest memory and have a copy inside while they are shared, by the copy's physical address
/// and the buffer's host address.
static BOUNCED: Mutex<BTreeMap<(PhysAddr, usize), Bounce>> = Mutex::new(BTreeMap::new());

/// A run of DMA pages.
struct Held {
    area: Arc<DmaArea>,
    pages: usize,
}

/// The copy of a buffer.
struct Bounce {
    copy: NonNull<u8>,
    pages: usize,
}

// SAFETY: an address of DMA memory that the entry owns; only the thread that removes the entry uses it.
unsafe impl Send for Bounce {}

fn held() -> MutexGuard<'static, BTreeMap<usize, Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bounced() -> MutexGuard<'static, BTreeMap<(PhysAddr, usize), Bounce>> {
    BOUNCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The machine's HAL.
#[derive(Clone, Copy, Debug)]
pub struct HostedHal;

impl HostedHal {
    /// Takes zeroed pages of the DMA area.
    fn take(pages: usize) -> Option<(PhysAddr, NonNull<u8>)> {
        let area = current_dma()?;
        let first = area.pages().take(pages)?;
        let offset = first * FRAME_SIZE;
        // SAFETY: `take` gives runs inside the area only.
        let address = unsafe { area.base().add(offset) };
        // SAFETY: `pages` pages from there are inside the area; nobody else has them now, they were taken just above.
        unsafe { address.write_bytes(0, pages * FRAME_SIZE) };
        let physical = area.address() + offset as u64;
        held().insert(address.as_ptr().addr(), Held { area, pages });
        Some((physical, address))
    }

    /// Gives pages back; `false` if they are not held.
    fn give_back(address: NonNull<u8>, pages: usize) -> bool {
        let mut held = held();
        let key = address.addr().get();
        let Some(found) = held.get(&key) else {
            return false;
        };
        let offset = key - found.area.base().addr().get();
        if found.pages != pages || !found.area.pages().give_back(offset / FRAME_SIZE, pages) {
            return false;
        }
        let removed = held.remove(&key);
        // Before the entry: it may hold the last handle on the area, whose end unmaps memory.
        drop(held);
        drop(removed);
        true
    }
}

// SAFETY: `dma_alloc` gives zeroed, page-aligned memory (the area begins at a page, mappings do) that stays mapped
// until `dma_dealloc` (`HELD` keeps the area) and that nothing else points to: the platform reaches managed frames
// only, and devices access guest memory by volatile copies, never by reference.
unsafe impl Hal for HostedHal {
    /// Gives physical address 0, which the crate reports as a DMA error, when the area is full or it is not clear which
    /// machine is meant.
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        Self::take(pages).unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        if Self::give_back(vaddr, pages) { 0 } else { -1 }
    }

    /// The hosted machine has no MMIO.
    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("the hosted machine has no MMIO, also none at {paddr:#x}");
    }

    /// The physical address of a buffer in DMA or managed memory; a buffer elsewhere (heap, stack) gets a copy in the
    /// DMA area while it is shared.
    ///
    /// # Panics
    ///
    /// When a copy is needed and the DMA area is full, or it is not clear which machine is meant: `Hal` has no way to
    /// report that.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let address = buffer.cast::<u8>().as_ptr().expose_provenance();
        if let Some(physical) = physical(address, buffer.len()) {
            return physical;
        }
        let pages = buffer.len().div_ceil(FRAME_SIZE);
        let Some((physical, copy)) = Self::take(pages) else {
            panic!(
                "a buffer of {} bytes lies outside guest memory, and no DMA memory is to be had for a copy \
                 (is the thread bound to its machine?)",
                buffer.len()
            );
        };
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller vouches for the buffer; the copy is ours and at least as long.
            unsafe { copy.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        bounced().insert((physical, address), Bounce { copy, pages });
        physical
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let address = buffer.cast::<u8>().addr().get();
        let Some(bounce) = bounced().remove(&(paddr, address)) else {
            return;
        };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: the caller vouches for the buffer; the copy is as long, and the device is done with it.
            unsafe {
                buffer
                    .cast::<u8>()
                    .copy_from_nonoverlapping(bounce.copy, buffer.len())
            };
        }
        Self::give_back(bounce.copy, bounce.pages);
    }
}
