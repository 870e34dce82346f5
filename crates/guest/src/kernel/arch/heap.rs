//! The kernel's heap. Tables, actors and reports are allocated here; nothing on a hot path is.

use core::ops::Range;

use linked_list_allocator::LockedHeap;

use super::physical;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the heap its first memory, at physical addresses `range`.
///
/// # Safety
///
/// The range is RAM that is mapped in the window, and that nothing else uses, now or later. Called once.
pub unsafe fn set_up(range: Range<u64>) {
    let start = physical::in_window(range.start).as_ptr();
    // SAFETY: the caller's contract.
    unsafe { HEAP.lock().init(start, (range.end - range.start) as usize) };
}

/// Extends the heap by the `bytes` behind its end.
///
/// # Safety
///
/// They are RAM that is mapped in the window, and that nothing else uses, now or later.
pub unsafe fn extend(bytes: usize) {
    // SAFETY: the caller's contract.
    unsafe { HEAP.lock().extend(bytes) };
}
