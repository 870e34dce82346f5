//! Atomics and locks, exchanged for their model-checked twins under `cfg(shuttle)`.
//!
//! For the lock order of the whole system see ARCHITECTURE.md.

#[cfg(not(shuttle))]
pub use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(shuttle))]
pub use spin::{Mutex, MutexGuard};

#[cfg(shuttle)]
pub use shuttle::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(shuttle)]
pub use shuttle_lock::{Mutex, MutexGuard};

/// Lets another CPU make progress while this one waits for it.
#[inline]
pub fn spin_hint() {
    #[cfg(not(shuttle))]
    core::hint::spin_loop();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}

/// `spin::Mutex`'s interface over shuttle's mutex.
#[cfg(shuttle)]
mod shuttle_lock {
    /// See `shuttle::sync::MutexGuard`.
    pub type MutexGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;

    /// A mutual exclusion lock without poisoning.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A lock around `value`.
        pub const fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a holder panicked")
        }

        /// Takes the lock if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }
}
