//! Calls that have begun and not ended.
#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::marker::PhantomData;

use corosensei::{Coroutine, CoroutineResult};

use crate::{Current, Stack, current::Bounds, stack::Canary};

/// The calls of one [`scope`], by number.
///
/// Nobody can own a value of this type but `scope`, so none is ever forgotten: all calls have ended, or are unwound,
/// before the scope does.
pub struct Calls<'f, R> {
    current: &'f Current,
    running: Vec<Option<Running<R>>>,
    /// Stacks of calls that have ended, by number.
    stacks: Vec<Option<Stack>>,
    /// What the calls borrow lives as long as this. Invariant: a shorter life must not be passed off as this one.
    borrowed: PhantomData<fn(&'f ()) -> &'f ()>,
}

/// A call that has not ended.
struct Running<R> {
    coroutine: Coroutine<(), Option<u64>, R, Stack>,
    /// What it asked for when it waited last.
    sleeps_until: Option<u64>,
    /// Of the coroutine's stack.
    canary: Canary,
}

/// Runs `body` with a place for calls that borrow what lives as long as `'f`; `current` says which of them runs.
///
/// A call that is suspended at the end is unwound. Its destructors run outside of calls: they cannot wait.
///
/// # Panics
///
/// When a call is suspended at the end, and panics cannot unwind its stack (without the feature `std`). Also when a
/// call panics while it is unwound.
pub fn scope<'f, R, T>(current: &'f Current, body: impl FnOnce(&mut Calls<'f, R>) -> T) -> T {
    body(&mut Calls {
        current,
        running: Vec::new(),
        stacks: Vec::new(),
        borrowed: PhantomData,
    })
}

impl<'f, R: 'f> Calls<'f, R> {
    /// Makes `call` ready to run on `stack` under `number`; the first [`resume`](Self::resume) begins it. What is
    /// needed for `number` is allocated here, once; numbers should be dense.
    ///
    /// # Panics
    ///
    /// When a call of that number has not ended.
    pub fn start(&mut self, number: u32, stack: Stack, call: impl FnOnce() -> R + 'f) {
        let current = self.current;
        let canary = stack.canary();
        let bounds = Bounds::new(stack.addresses());
        // SAFETY: all that `call` borrows, `current` too, lives at least as long as `'f`. The coroutine is kept in
        // `self`, which only `scope` owns: it is driven to its end or dropped before `scope` returns, and `'f`, a
        // lifetime of the caller of `scope`, is longer than that. Nobody takes it out: `resume` drops what has ended.
        let coroutine = unsafe {
            Coroutine::with_stack_unchecked(stack, move |yielder, ()| {
                current.begin(number, yielder, bounds);
                call()
            })
        };
        let index = number as usize;
        if self.running.len() <= index {
            self.running.resize_with(index + 1, || None);
            self.stacks.resize_with(index + 1, || None);
        }
        assert!(
            self.running[index].is_none(),
            "call {number} begins again before it has ended"
        );
        self.running[index] = Some(Running {
            coroutine,
            sleeps_until: None,
            canary,
        });
    }

    /// Whether the call of this number has begun, or is ready to, and has not ended.
    pub fn is_open(&self, number: u32) -> bool {
        matches!(self.running.get(number as usize), Some(Some(_)))
    }

    /// Runs a call until it waits (`None`) or ends (its result).
    ///
    /// # Panics
    ///
    /// When no call has that number, when the call has overrun a stack without a guard page, and when the call panics.
    pub fn resume(&mut self, number: u32) -> Option<R> {
        let index = number as usize;
        let Some(Some(running)) = self.running.get_mut(index) else {
            panic!("no call has the number {number}");
        };
        let result = {
            let _saved = self.current.save();
            running.coroutine.resume(())
        };
        // The stack is the coroutine's still, and the call does not run.
        assert!(
            running.canary.is_intact(),
            "call {number} has overrun its stack"
        );
        match result {
            CoroutineResult::Yield(until) => {
                running.sleeps_until = until;
                None
            }
            CoroutineResult::Return(result) => {
                let ended = self.running[index].take();
                self.stacks[index] = ended.map(|running| running.coroutine.into_stack());
                Some(result)
            }
        }
    }

    /// The time before which a call that waits need not be resumed ([`Current::wait_until`]); `None` when it named
    /// none.
    pub fn sleeps_until(&self, number: u32) -> Option<u64> {
        let running = self.running.get(number as usize)?.as_ref()?;
        running.sleeps_until
    }

    /// The stack of a call that has ended, for the next one.
    pub fn take_stack(&mut self, number: u32) -> Option<Stack> {
        self.stacks.get_mut(number as usize)?.take()
    }
}

impl<R> Drop for Calls<'_, R> {
    /// Unwinds the calls that are suspended. None of them runs, and neither does the one whose scope this may be in.
    fn drop(&mut self) {
        let _saved = self.current.save();
        self.running.clear();
    }
}
