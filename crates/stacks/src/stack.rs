//! Memory for stacks.
#![allow(unsafe_code)]

use core::ops::Range;

use corosensei::stack::{Stack as Bounds, StackPointer};

/// There is no memory for a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStack;

impl core::fmt::Display for NoStack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("there is no memory for a stack")
    }
}

impl core::error::Error for NoStack {}

#[cfg(not(feature = "std"))]
pub(crate) use crate::heap::{Canary, Memory};
#[cfg(feature = "std")]
pub(crate) use crate::mapped::{Canary, Memory};

/// No piece of memory is larger. What is added to a size that is smaller (a guard page, a canary, rounding) does not
/// overflow.
const LARGEST: usize = isize::MAX as usize / 2;

/// A stack for one call at a time.
///
/// With the feature `std` it is a mapping with a guard page: an overrun ends the process. Without it, it comes from the
/// heap, and its lowest page is a canary that is looked at whenever the call on it waits or ends.
#[derive(Debug)]
pub struct Stack(Memory);

impl Stack {
    /// A stack of at least `bytes`.
    ///
    /// # Errors
    ///
    /// There is no memory for it: also when no address space can hold so much.
    pub fn new(bytes: usize) -> Result<Self, NoStack> {
        if bytes > LARGEST {
            return Err(NoStack);
        }
        Memory::new(bytes.max(corosensei::stack::MIN_STACK_SIZE)).map(Self)
    }

    /// Usable bytes.
    pub fn bytes(&self) -> usize {
        self.0.top().get() - self.0.lowest().get()
    }

    /// The most bytes that calls have used on it, found by the lowest word that is not zero any more; a call that
    /// stored only zeroes below that is not seen. Reads the unused part of the stack: for tests and reports.
    pub fn deepest(&self) -> usize {
        let unused = (self.0.lowest().get()..self.0.top().get())
            .step_by(size_of::<u64>())
            // SAFETY: an aligned word inside the stack, which is mapped and initialised (zeroes, or what a call
            // stored). `&self`: no call runs on it.
            .take_while(|&word| unsafe { core::ptr::with_exposed_provenance::<u64>(word).read_volatile() } == 0)
            .count();
        self.bytes() - unused * size_of::<u64>()
    }

    /// The addresses of the stack, with the guard page or the canary.
    pub(crate) fn addresses(&self) -> Range<usize> {
        self.0.limit().get()..self.0.top().get()
    }

    /// What tells whether a call has overrun the stack.
    pub(crate) fn canary(&self) -> Canary {
        self.0.canary()
    }
}

// SAFETY: the bounds are those of memory that the value owns, aligned as stacks must be, with a guard page (`mapped`)
// or, where there are none, with a canary that `Calls` looks at (`heap`, which says why that is enough).
unsafe impl Bounds for Stack {
    fn base(&self) -> StackPointer {
        self.0.top()
    }

    fn limit(&self) -> StackPointer {
        self.0.limit()
    }
}
