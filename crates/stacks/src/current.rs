//! Which call a processor runs.
#![allow(unsafe_code)]

use core::{cell::Cell, ptr::NonNull};

/// What a call uses to go back to its resumer.
pub(crate) type Yielder = corosensei::Yielder<(), ()>;

/// A call that runs.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    number: u32,
    yielder: NonNull<Yielder>,
}

/// Which call the processor runs that the value belongs to. A machine keeps one for each thread, or for each CPU.
///
/// It is not `Sync`: what it names runs on the stack that the processor is on. A kernel that keeps it in a structure which
/// others can reach must see to it that only the CPU itself uses it, and no interrupt handler.
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

    /// Suspends the call that runs and returns when it is resumed. Outside of a call it does nothing and gives `false`.
    pub fn wait(&self) -> bool {
        let Some(running) = self.running.get() else {
            return false;
        };
        // SAFETY: the field is set in two places. `begin` sets it at the bottom of a call's stack, for as long as the call
        // runs; below it is set again when the call goes on. While a call is suspended or has ended, `Calls::resume` has put
        // back what was there before. So the yielder is that of the call on whose stack we are. It lives at the bottom of that
        // stack until the call has ended.
        let yielder = unsafe { running.yielder.as_ref() };
        yielder.suspend(());
        // `resume` saved what was there before the call, as it did the first time.
        self.running.set(Some(running));
        true
    }

    /// The call `number` begins to run, at the bottom of its stack.
    pub(crate) fn begin(&self, number: u32, yielder: &Yielder) {
        let yielder = NonNull::from(yielder);
        self.running.set(Some(Running { number, yielder }));
    }

    /// Puts what runs now aside until the result is dropped, also by a panic that comes out of a call.
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
