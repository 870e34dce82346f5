//! What virtio-drivers needs from a machine: DMA memory, and physical addresses of buffers.
//!
//! `Hal` has static functions only, while a process may hold several machines (tests do). DMA memory is taken from the
//! machine that the thread is bound to, else from the one that it built last, else from the only one there is;
//! everything else finds its machine by address.
#![allow(unsafe_code)]

use core::{ops::Range, ptr::NonNull};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
};

use dirigible_frames::FRAME_SIZE;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::{
    binding::{bound_machine, built_machine, set_built_machine},
    memory::RamShared,
};

/// The machines of this process.
static MACHINES: RwLock<Vec<Machine>> = RwLock::new(Vec::new());
/// DMA memory that drivers hold, by host address. Each entry keeps its machine's memory alive, so that a driver that
/// outlives its machine still points to memory.
static HELD: Mutex<BTreeMap<usize, Held>> = Mutex::new(BTreeMap::new());
/// Buffers that lie outside guest memory and have a copy inside while they are shared, by the copy's physical address and
/// the buffer's host address.
static BOUNCED: Mutex<BTreeMap<(PhysAddr, usize), Bounce>> = Mutex::new(BTreeMap::new());

/// A machine as the HAL sees it.
struct Machine {
    id: u64,
    ram: Weak<RamShared>,
    /// Host ranges that drivers may share, each with the physical address of its first byte.
    ranges: Vec<(Range<usize>, PhysAddr)>,
}

/// A run of DMA pages.
struct Held {
    ram: Arc<RamShared>,
    pages: usize,
}

/// The copy of a buffer.
struct Bounce {
    copy: NonNull<u8>,
    pages: usize,
}

// SAFETY: an address of DMA memory that the entry owns; only the thread that removes the entry uses it.
unsafe impl Send for Bounce {}

/// Lets drivers find a machine's memory.
pub(crate) fn register(ram: &Arc<RamShared>) {
    let dma = ram.dma_base().as_ptr().expose_provenance();
    let mut ranges = vec![(dma..dma + ram.dma_bytes(), ram.dma_address())];
    ranges.extend(
        ram.managed()
            .host_ranges()
            .map(|(range, first)| (range, first.address())),
    );
    let machine = Machine {
        id: ram.id(),
        ram: Arc::downgrade(ram),
        ranges,
    };
    MACHINES
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .push(machine);
    set_built_machine(ram.id());
}

/// The machine's memory is going away.
pub(crate) fn unregister(id: u64) {
    let mut machines = MACHINES.write().unwrap_or_else(PoisonError::into_inner);
    machines.retain(|machine| machine.id != id);
}

/// The machine that this thread works for.
fn current() -> Option<Arc<RamShared>> {
    let machines = MACHINES.read().unwrap_or_else(PoisonError::into_inner);
    let find = |id| machines.iter().find(|machine| machine.id == id);
    let machine = match bound_machine() {
        Some(id) => find(id),
        None => find(built_machine()).or(match &machines[..] {
            [only] => Some(only),
            _ => None,
        }),
    };
    machine?.ram.upgrade()
}

/// The physical address of a host range inside a machine's DMA or managed memory.
fn physical(address: usize, length: usize) -> Option<PhysAddr> {
    let machines = MACHINES.read().unwrap_or_else(PoisonError::into_inner);
    machines
        .iter()
        .flat_map(|machine| &machine.ranges)
        .find_map(|(range, first)| {
            let inside = range.contains(&address) && length <= range.end - address;
            inside.then(|| first + (address - range.start) as u64)
        })
}

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
        let ram = current()?;
        let first = ram.dma_pages().take(pages)?;
        let offset = first * FRAME_SIZE;
        // SAFETY: `take` gives runs inside the area only, whose length is `dma_bytes`.
        let address = unsafe { ram.dma_base().add(offset) };
        // SAFETY: `pages` pages from there are inside the area; nobody else has them now, they were taken just above.
        unsafe { address.write_bytes(0, pages * FRAME_SIZE) };
        let physical = ram.dma_address() + offset as u64;
        held().insert(address.as_ptr().addr(), Held { ram, pages });
        Some((physical, address))
    }

    /// Gives pages back; `false` if they are not held.
    fn give_back(address: NonNull<u8>, pages: usize) -> bool {
        let mut held = held();
        let key = address.addr().get();
        let Some(found) = held.get(&key) else {
            return false;
        };
        let offset = key - found.ram.dma_base().addr().get();
        if found.pages != pages || !found.ram.dma_pages().give_back(offset / FRAME_SIZE, pages) {
            return false;
        }
        let removed = held.remove(&key);
        // Before the entry: it may hold the last handle on the machine's memory, whose end takes another lock.
        drop(held);
        drop(removed);
        true
    }
}

// SAFETY: `dma_alloc` gives zeroed, page-aligned memory (the area begins at a page, mappings do) that stays mapped until
// `dma_dealloc` (`HELD` keeps the machine's memory) and that nothing else points to: the platform reaches managed frames
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

    /// The physical address of a buffer in DMA or managed memory; a buffer elsewhere (heap, stack) gets a copy in the DMA
    /// area while it is shared.
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
