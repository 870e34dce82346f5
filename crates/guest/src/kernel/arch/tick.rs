//! What the timer's handler does beside waking its CPU: nothing, or a routine that somebody has set for a while.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

use dirigible_frames::CpuId;

use super::cpu;

/// Called with the number of the CPU, interrupts off.
type Routine<'a> = &'a (dyn Fn(CpuId) + Sync);

/// Where the present routine stands; null: there is none.
static ROUTINE: AtomicPtr<Routine<'static>> = AtomicPtr::new(ptr::null_mut());
/// Handlers that may be using it.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// What the interrupt does.
pub(super) fn interrupted() {
    // Dekker, with `with_routine`: we say that we are here and then look for the routine; it takes the routine away and then
    // looks who is here. SeqCst, so that one of us sees the other.
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let routine = ROUTINE.load(Ordering::SeqCst);
    // SAFETY: null, or set by `with_routine`, which does not return while we are counted.
    if let Some(routine) = unsafe { routine.as_ref() } {
        routine(cpu::current_id());
    }
    // Release: pairs with the load in `with_routine`, which then may use what the routine has left.
    RUNNING.fetch_sub(1, Ordering::Release);
}

/// Has the timer's handler call `routine` on all CPUs while `work` lasts. It must not take a lock that others hold with
/// interrupts on.
pub fn with_routine(routine: Routine<'_>, work: impl FnOnce()) {
    // SAFETY: only the lifetime changes; nobody uses it after this function, see below. It does not unwind past `work`: a panic
    // ends the kernel.
    let mut routine: Routine<'static> = unsafe { core::mem::transmute(routine) };
    let none = ptr::null_mut();
    let order = (Ordering::SeqCst, Ordering::SeqCst);
    let taken = ROUTINE.compare_exchange(none, &raw mut routine, order.0, order.1);
    assert!(taken.is_ok(), "a routine inside of another one");
    work();
    ROUTINE.store(ptr::null_mut(), Ordering::SeqCst);
    while RUNNING.load(Ordering::SeqCst) != 0 {
        core::hint::spin_loop();
    }
}
