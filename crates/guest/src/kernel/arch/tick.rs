//! A routine that the timer's handler calls while a test wants it to.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

use dirigible_frames::CpuId;

use super::cpu;

/// Called with the number of the CPU, interrupts off.
type Routine<'a> = &'a (dyn Fn(CpuId) + Sync);

/// The current routine; null if there is none.
static ROUTINE: AtomicPtr<Routine<'static>> = AtomicPtr::new(ptr::null_mut());
/// Number of handlers that may be using `ROUTINE`.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Called by the timer's handler.
pub(super) fn interrupted() {
    // Dekker, with `with_routine`: the handler counts itself and then loads the routine; `with_routine` removes the
    // routine and then reads the count. SeqCst, so that at least one of them sees the other's store.
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let routine = ROUTINE.load(Ordering::SeqCst);
    // SAFETY: null, or set by `with_routine`, which does not return while this handler is counted.
    if let Some(routine) = unsafe { routine.as_ref() } {
        routine(cpu::current_id());
    }
    // Release: pairs with the load in `with_routine`, whose caller may then read what the routine has written.
    RUNNING.fetch_sub(1, Ordering::Release);
}

/// Runs `work`. Meanwhile the timer's handlers of all CPUs call `routine`, which must not take a lock that other code
/// holds with interrupts on.
///
/// # Panics
///
/// If a routine is set already.
pub fn with_routine(routine: Routine<'_>, work: impl FnOnce()) {
    // SAFETY: only the lifetime changes, and no handler uses the routine when this function returns (see below). `work`
    // does not unwind, as a panic ends the kernel.
    let mut routine: Routine<'static> = unsafe { core::mem::transmute(routine) };
    let none = ptr::null_mut();
    let order = (Ordering::SeqCst, Ordering::SeqCst);
    let taken = ROUTINE.compare_exchange(none, &raw mut routine, order.0, order.1);
    assert!(taken.is_ok(), "a routine is set already");
    work();
    ROUTINE.store(ptr::null_mut(), Ordering::SeqCst);
    while RUNNING.load(Ordering::SeqCst) != 0 {
        core::hint::spin_loop();
    }
}
