//! Interrupt lines, from a device to its driver.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use virtio_drivers::transport::InterruptStatus;

/// Something that threads wait for to move on, and that counts how often it did.
#[derive(Debug, Default)]
pub(crate) struct Event {
    count: AtomicU64,
    waiters: AtomicUsize,
    lock: Mutex<()>,
    moved: Condvar,
}

impl Event {
    /// How often it has happened.
    pub(crate) fn count(&self) -> u64 {
        // Acquire pairs with the release part in `signal`: what came before the event is visible to who saw its count.
        self.count.load(Ordering::Acquire)
    }

    /// It happens.
    pub(crate) fn signal(&self) {
        // SeqCst here and on `waiters` (Dekker, with `wait_past`): either we see the waiter, or it sees the new count.
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            // Taking the lock puts us before a waiter's check of the count or behind its beginning to wait.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.moved.notify_all();
        }
    }

    /// Parks until it has happened more than `seen` times (`true`) or `timeout` is over.
    pub(crate) fn wait_past(&self, seen: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let happened = loop {
            if self.count.load(Ordering::SeqCst) > seen {
                break true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break false;
            };
            let (next, _) = self
                .moved
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner);
            guard = next;
        };
        drop(guard);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        happened
    }
}

/// A device's interrupt: status bits that the driver reads and clears, and a place to park until the next one.
#[derive(Debug)]
pub struct InterruptLine {
    /// Bits of the ISR register.
    pending: AtomicU32,
    raised: Event,
    /// What the machine's idle CPUs wait for: any device's interrupt.
    machine: Arc<Event>,
}

impl InterruptLine {
    /// A line of a machine whose idle threads wait for `machine`.
    pub(crate) fn new(machine: Arc<Event>) -> Self {
        Self {
            pending: AtomicU32::new(0),
            raised: Event::default(),
            machine,
        }
    }

    /// The device raises the interrupt.
    pub(crate) fn raise(&self, why: InterruptStatus) {
        // Release pairs with the acquire in `take`: the used ring or the configuration was written before.
        self.pending.fetch_or(why.bits(), Ordering::Release);
        self.raised.signal();
        self.machine.signal();
    }

    /// Reads and clears the status, as reading the ISR register does.
    pub(crate) fn take(&self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.pending.swap(0, Ordering::Acquire))
    }

    /// Whether an interrupt waits to be acknowledged.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// Interrupts so far: what to give to [`wait_past`](Self::wait_past).
    pub fn count(&self) -> u64 {
        self.raised.count()
    }

    /// Parks until there have been more than `seen` interrupts (`true`) or `timeout` is over.
    ///
    /// Read [`count`](Self::count) first, then look whether there is work, then wait: so none is slept through.
    pub fn wait_past(&self, seen: u64, timeout: Duration) -> bool {
        self.raised.wait_past(seen, timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_before_the_wait_is_not_slept_through() {
        let line = InterruptLine::new(Arc::default());
        let seen = line.count();
        line.raise(InterruptStatus::QUEUE_INTERRUPT);
        assert!(line.wait_past(seen, Duration::from_secs(60)));
        assert!(line.is_pending());
        assert!(line.take().contains(InterruptStatus::QUEUE_INTERRUPT));
        assert!(!line.is_pending());
        assert!(!line.wait_past(line.count(), Duration::from_millis(1)));
    }

    #[test]
    fn all_waiters_wake() {
        let line = InterruptLine::new(Arc::default());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| assert!(line.wait_past(0, Duration::from_secs(60))));
            }
            std::thread::sleep(Duration::from_millis(5));
            line.raise(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
        });
    }
}
