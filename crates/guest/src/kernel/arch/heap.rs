//! The kernel's heap: for what is made once (tables, actors, reports); nothing on a hot path comes from it.

use core::ops::Range;

use linked_list_allocator::LockedHeap;

use super::physical;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives physical memory to the heap.
///
/// # Safety
///
/// The range is RAM that is mapped in the window and that nobody else uses, now or later. To be called once.
pub unsafe fn set_up(range: Range<u64>) {
    let start = physical::in_window(range.start).as_ptr();
    // SAFETY: the caller vouches for the memory.
    unsafe { HEAP.lock().init(start, (range.end - range.start) as usize) };
}

/// Gives the heap the `bytes` behind its end.
///
/// # Safety
///
/// They are RAM that is mapped in the window and that nobody else uses, now or later.
pub unsafe fn extend(bytes: usize) {
    // SAFETY: the caller vouches for the memory.
    unsafe { HEAP.lock().extend(bytes) };
}
