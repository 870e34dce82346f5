//! Stacks from the heap, with a canary where a guard page would be.
#![allow(unsafe_code)]

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::NonNull;

use corosensei::stack::{STACK_ALIGNMENT, StackPointer};

use crate::NoStack;

/// Bytes of the canary, at the lower end. A page: for a frame of a page or more the compiler touches each page that it
/// spans (stack probes), and a smaller frame has its return address; neither steps over a page without storing in it.
const CANARY: usize = 4096;
/// What stands in it. Not zero, which probes store.
const WORD: u64 = 0x7a11_0ca9_a71e_5afe;
/// Alignment of the memory: a cache line.
const ALIGN: usize = 64;
const _: () = assert!(ALIGN.is_multiple_of(STACK_ALIGNMENT) && CANARY.is_multiple_of(ALIGN));

/// A piece of the heap.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory that the value owns.
unsafe impl Send for Memory {}
// SAFETY: as above; shared references only read it.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Result<Self, NoStack> {
        let bytes = bytes
            .checked_next_multiple_of(ALIGN)
            .and_then(|bytes| bytes.checked_add(CANARY))
            .ok_or(NoStack)?;
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| NoStack)?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(NoStack)?;
        start.as_ptr().expose_provenance();
        let memory = Self { start, layout };
        for index in 0..CANARY / size_of::<u64>() {
            // SAFETY: inside the memory, which is at least as long as the canary, and aligned; nobody else knows it
            // yet.
            unsafe { memory.canary().0.add(index).write_volatile(WORD) };
        }
        Ok(memory)
    }

    pub(crate) fn top(&self) -> StackPointer {
        self.start.addr().saturating_add(self.layout.size())
    }

    /// The lower end, the canary included.
    pub(crate) fn limit(&self) -> StackPointer {
        self.start.addr()
    }

    /// The lowest word that a call may use.
    pub(crate) fn lowest(&self) -> StackPointer {
        self.start.addr().saturating_add(CANARY)
    }

    pub(crate) fn canary(&self) -> Canary {
        Canary(self.start.cast())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and given back once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// The canary of a stack. To be used only as long as the stack lives.
#[derive(Clone, Copy)]
pub(crate) struct Canary(NonNull<u64>);

impl Canary {
    /// Whether nothing was stored in it.
    pub(crate) fn is_intact(self) -> bool {
        // SAFETY: `Calls` keeps it beside the coroutine that owns the stack; the words are aligned and initialised.
        (0..CANARY / size_of::<u64>())
            .all(|index| unsafe { self.0.add(index).read_volatile() } == WORD)
    }
}
