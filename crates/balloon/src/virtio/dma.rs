//! Memory from [`Hal::dma_alloc`]: the requests as the device reads them, and their frame numbers as the balloon keeps
//! them. The crate has no other allocator, and large requests do not fit on a kernel's stack.
#![allow(unsafe_code)]

use core::borrow::{Borrow, BorrowMut};
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::slice;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::error::DeviceError;
use crate::request::{REQUESTS, RequestMemory};
use crate::stats::{ENTRY_BYTES, MAX_ENTRIES};

/// The buffer for statistics follows those of the requests.
pub(super) const STATS_PLACE: usize = REQUESTS;
const PLACES: usize = REQUESTS + 1;
const STATS_BYTES: usize = MAX_ENTRIES * ENTRY_BYTES;

/// A run of pages, zeroed when it is taken and given back when it is dropped.
struct Pages<H: Hal> {
    paddr: PhysAddr,
    vaddr: NonNull<u8>,
    count: usize,
    _hal: PhantomData<H>,
}

// SAFETY: `vaddr` is memory that `dma_alloc` gave to this value alone, and nothing in it belongs to one thread. The
// types below reach it through `&mut self`, or through `&self` where nobody writes.
unsafe impl<H: Hal> Send for Pages<H> {}

impl<H: Hal> Pages<H> {
    fn new(bytes: usize) -> Result<Self, DeviceError> {
        let count = bytes.div_ceil(PAGE_SIZE);
        let (paddr, vaddr) = H::dma_alloc(count, BufferDirection::DriverToDevice);
        if paddr == 0 {
            return Err(DeviceError::NoDmaMemory);
        }
        Ok(Self {
            paddr,
            vaddr,
            count,
            _hal: PhantomData,
        })
    }
}

impl<H: Hal> Drop for Pages<H> {
    fn drop(&mut self) {
        // SAFETY: these are the values of the one `dma_alloc`. If a device was told of them, it has confirmed a reset:
        // `Queues` holds the buffers from before the first ring is set up, `Queues::release` takes the proof, and
        // `Queues::drop` leaks what was not released. No device is told of `Numbers`.
        unsafe { H::dma_dealloc(self.paddr, self.vaddr, self.count) };
    }
}

/// The frame numbers of a balloon's requests. No device is told of them.
pub(super) struct Numbers<H: Hal, const N: usize>(Pages<H>);

impl<H: Hal, const N: usize> Numbers<H, N> {
    pub(super) fn new() -> Result<Self, DeviceError> {
        Pages::new(size_of::<RequestMemory<N>>()).map(Self)
    }
}

impl<H: Hal, const N: usize> Borrow<RequestMemory<N>> for Numbers<H, N> {
    fn borrow(&self) -> &RequestMemory<N> {
        // SAFETY: `new` took that many bytes; they begin at a page, were zeroed, and any bits are numbers. Whoever
        // writes has `&mut self`.
        unsafe { self.0.vaddr.cast().as_ref() }
    }
}

impl<H: Hal, const N: usize> BorrowMut<RequestMemory<N>> for Numbers<H, N> {
    fn borrow_mut(&mut self) -> &mut RequestMemory<N> {
        // SAFETY: as above, and `&mut self` keeps everybody else away.
        unsafe { self.0.vaddr.cast().as_mut() }
    }
}

/// Request buffers, in memory that is neither moved nor copied while a device has it.
pub(super) struct Buffers<H: Hal, const N: usize> {
    pages: Pages<H>,
    /// Whether the device has the buffer. Set while a descriptor points to it, and for ever if the device never
    /// returns it.
    busy: [bool; PLACES],
}

impl<H: Hal, const N: usize> Buffers<H, N> {
    /// Bytes of one buffer: a request's numbers, or the statistics.
    const BYTES: usize = if N * 4 > STATS_BYTES {
        N * 4
    } else {
        STATS_BYTES
    };

    pub(super) fn new() -> Result<Self, DeviceError> {
        Ok(Self {
            pages: Pages::new(PLACES * Self::BYTES)?,
            busy: [false; PLACES],
        })
    }

    fn start(&self, place: usize) -> NonNull<u8> {
        assert!(place < PLACES);
        // SAFETY: below PLACES buffers of BYTES each lie within the pages that were taken.
        unsafe { self.pages.vaddr.add(place * Self::BYTES) }
    }

    pub(super) fn is_busy(&self, place: usize) -> bool {
        self.busy[place]
    }

    pub(super) fn set_busy(&mut self, place: usize, busy: bool) {
        self.busy[place] = busy;
    }

    /// The buffer for writing, unless the device has it.
    pub(super) fn writable(&mut self, place: usize) -> Option<&mut [u8]> {
        if self.busy[place] {
            return None;
        }
        // SAFETY: the memory is valid and was zeroed (`Hal::dma_alloc`), `u8`s need no alignment, buffers of different
        // places do not overlap, the device does not have this one, and `&mut self` keeps others away.
        Some(unsafe { slice::from_raw_parts_mut(self.start(place).as_ptr(), Self::BYTES) })
    }

    /// The first `len` bytes of a buffer, as the device reads them.
    pub(super) fn readable(&self, place: usize, len: usize) -> &[u8] {
        assert!(len <= Self::BYTES);
        // SAFETY: as in `writable`; while this borrow lives nobody writes: we would need `&mut self`, and the device
        // is given the buffer for reading.
        unsafe { slice::from_raw_parts(self.start(place).as_ptr(), len) }
    }
}
