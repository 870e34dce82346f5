//! Which call a processor runs.
#![allow(unsafe_code)]

use core::{cell::Cell, hint::black_box, ops::Range, ptr::NonNull};

/// What a call uses to go back to its resumer, with the time until which it sleeps.
pub(crate) type Yielder = corosensei::Yielder<(), Option<u64>>;

/// A call that runs.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    number: u32,
    yielder: NonNull<Yielder>,
    bounds: Bounds,
}

/// The addresses of a call's stack.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    low: usize,
    high: usize,
}

impl Bounds {
    pub(crate) fn new(Range { start, end }: Range<usize>) -> Self {
        Self {
            low: start,
            high: end,
        }
    }

    /// Whether the caller runs on this stack.
    #[inline]
    fn is_here(self) -> bool {
        let local = 0u8;
        // The hint keeps the local in memory, which is the present stack's.
        let here = black_box(&raw const local).addr();
        (self.low..self.high).contains(&here)
    }
}

/// Which call the processor runs that the value belongs to. A machine keeps one for each thread, or for each CPU.
///
/// It is not `Sync`: what it names runs on the stack that the processor is on. A kernel that keeps it in a structure
/// which others can reach must see to it that only the CPU itself uses it, and no interrupt handler.
#[derive(Default)]
pub struct Current {
    /// Set only while that call runs, not while it waits.
    running: Cell<Option<Running>>,
}

impl Current {
    /// No call runs.
    pub const fn new() -> Self {
        Self {
            running: Cell::new(None),
        }
    }

    /// The number of the call that runs; `None` outside of calls.
    pub fn number(&self) -> Option<u32> {
        self.running.get().map(|running| running.number)
    }

    /// Suspends the call that runs and returns when it is resumed. Outside of a call it does nothing and gives `false`:
    /// also on the stack of a call that another `Current` has, and while a call that was given up is unwound.
    pub fn wait(&self) -> bool {
        self.suspend(None)
    }

    /// The same, and asks not to be resumed before `time`: the resumer learns it from
    /// [`Calls::sleeps_until`](crate::Calls::sleeps_until) and may resume the call earlier all the same.
    pub fn wait_until(&self, time: u64) -> bool {
        self.suspend(Some(time))
    }

    fn suspend(&self, until: Option<u64>) -> bool {
        let Some(running) = self.running.get() else {
            return false;
        };
        // Inside a call of another `Current` the field names a call further out, which does not run on this stack.
        if !running.bounds.is_here() {
            return false;
        }
        // SAFETY: we are on the stack of the call that the field names, and stacks of calls that have not ended do not
        // overlap. `begin` sets the field at the bottom of that stack, and below it is set again when the call goes on.
        // While a call is suspended, is unwound or has ended, it is not in the field: `Calls` has put back what was
        // there before, or nothing. So the call has been resumed and has not gone back since: its parent is the
        // resumer, which waits for it. The yielder lives at the bottom of the stack until the call has ended.
        let yielder = unsafe { running.yielder.as_ref() };
        yielder.suspend(until);
        // `resume` saved what was there before the call, as it did the first time.
        self.running.set(Some(running));
        true
    }

    /// The call `number` begins to run, at the bottom of its stack.
    pub(crate) fn begin(&self, number: u32, yielder: &Yielder, bounds: Bounds) {
        let yielder = NonNull::from(yielder);
        self.running.set(Some(Running {
            number,
            yielder,
            bounds,
        }));
    }

    /// Saves the running call and restores it on drop, also when a call panics.
    pub(crate) fn save(&self) -> Saved<'_> {
        Saved {
            current: self,
            before: self.running.take(),
        }
    }
}

impl core::fmt::Debug for Current {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Current").field(&self.number()).finish()
    }
}

/// What ran before a call was resumed.
pub(crate) struct Saved<'c> {
    current: &'c Current,
    before: Option<Running>,
}

impl Drop for Saved<'_> {
    fn drop(&mut self) {
        self.current.running.set(self.before);
    }
}
