//! Runs a device model: inside `notify` and as virtual time passes (deterministic), or on a thread that sleeps until it
//! is kicked.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use virtio_drivers::transport::{DeviceStatus, InterruptStatus};

use crate::{
    clock::{Clock, Due},
    devices::registers::{DeviceModel, Registers},
};

/// What a transport and the host ask of a device, whatever it is.
pub(crate) trait Backend: Send + Sync {
    /// Its registers.
    fn registers(&self) -> &Registers;
    /// The driver announces buffers in `queue`.
    fn kick(&self, queue: u16);
    /// The driver writes the status register.
    fn write_status(&self, status: DeviceStatus);
    /// The driver writes a word of the configuration.
    fn write_config(&self, word: usize, value: u32);
}

/// Work for the device's thread.
#[derive(Debug, Default)]
struct Inbox {
    /// One bit a queue.
    kicked: u64,
    /// The host wants something.
    host: bool,
    stop: bool,
}

/// A device and what runs it.
pub(crate) struct Runner<D> {
    registers: Registers,
    device: Mutex<D>,
    clock: Arc<Clock>,
    /// Whether a thread works for the device; else whoever kicks does.
    threaded: bool,
    /// A copy of the device's `due`, readable without its lock.
    due: AtomicU64,
    inbox: Mutex<Inbox>,
    woken: Condvar,
}

impl<D: DeviceModel> Runner<D> {
    pub(crate) fn new(
        device: D,
        registers: Registers,
        clock: Arc<Clock>,
        threaded: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            registers,
            device: Mutex::new(device),
            clock,
            threaded,
            due: AtomicU64::new(u64::MAX),
            inbox: Mutex::default(),
            woken: Condvar::new(),
        })
    }

    /// The device. It stays usable after a panic of another thread: the models keep nothing half-done.
    pub(crate) fn device(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host has a request for the device.
    pub(crate) fn host_request(&self) {
        if self.threaded {
            self.inbox().host = true;
            self.woken.notify_one();
        } else {
            self.work(|device| device.tick(&self.registers, self.clock.now()));
        }
    }

    /// Starts the device's thread.
    pub(crate) fn start(self: &Arc<Self>, name: &str) -> std::io::Result<DeviceThread> {
        let runner = Arc::clone(self);
        let handle = Builder::new()
            .name(name.to_owned())
            .spawn(move || runner.serve())?;
        let runner = Arc::clone(self);
        Ok(DeviceThread {
            stop: Box::new(move || runner.stop()),
            handle: Some(handle),
        })
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the device, then raises its interrupt if need be: never under the device's lock, since the driver may
    /// come back at once.
    fn work(&self, work: impl FnOnce(&mut D) -> bool) {
        let interrupt = {
            let mut device = self.device();
            let interrupt = work(&mut device);
            // Relaxed: a hint about when to look; the lock orders the work itself.
            self.due.store(device.due(), Ordering::Relaxed);
            interrupt
        };
        if interrupt {
            self.registers
                .interrupt
                .raise(InterruptStatus::QUEUE_INTERRUPT);
        }
    }

    /// The device's thread: sleeps until there is something to do.
    fn serve(&self) {
        loop {
            let mut inbox = self.inbox();
            while inbox.kicked == 0 && !inbox.host && !inbox.stop {
                let due = self.due.load(Ordering::Relaxed);
                if due == u64::MAX {
                    inbox = self
                        .woken
                        .wait(inbox)
                        .unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                let Some(left) = due.checked_sub(self.clock.now()) else {
                    break;
                };
                let nap = Duration::from_nanos(left.max(1));
                let (next, _) = self
                    .woken
                    .wait_timeout(inbox, nap)
                    .unwrap_or_else(PoisonError::into_inner);
                inbox = next;
            }
            if inbox.stop {
                return;
            }
            let kicked = core::mem::take(&mut inbox.kicked);
            inbox.host = false;
            drop(inbox);
            let now = self.clock.now();
            for queue in (0..64).filter(|queue| kicked & (1 << queue) != 0) {
                self.work(|device| device.kicked(&self.registers, queue, now));
            }
            self.work(|device| device.tick(&self.registers, now));
        }
    }

    fn stop(&self) {
        self.inbox().stop = true;
        self.woken.notify_one();
    }
}

impl<D: DeviceModel> Backend for Runner<D> {
    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn kick(&self, queue: u16) {
        if queue >= 64 {
            return;
        }
        if self.threaded {
            self.inbox().kicked |= 1 << queue;
            self.woken.notify_one();
        } else {
            self.work(|device| device.kicked(&self.registers, queue, self.clock.now()));
        }
    }

    fn write_status(&self, mut status: DeviceStatus) {
        let registers = &self.registers;
        if status.is_empty() {
            // Under the device's lock: when this returns, the device has stopped using the driver's memory.
            let mut device = self.device();
            if !device.takes_reset() {
                return;
            }
            device.reset();
            self.due.store(device.due(), Ordering::Relaxed);
            registers.reset();
            return;
        }
        if registers.accepted() & !registers.offered != 0 {
            status.remove(DeviceStatus::FEATURES_OK);
        }
        let before = registers.status();
        // Only a reset takes this one back.
        status.insert(before & DeviceStatus::DEVICE_NEEDS_RESET);
        registers.set_status(status);
        if status.contains(DeviceStatus::DRIVER_OK) && !before.contains(DeviceStatus::DRIVER_OK) {
            self.device().activate(registers);
        }
    }

    fn write_config(&self, word: usize, value: u32) {
        let mut device = self.device();
        if device.may_write(word) {
            self.registers.config().driver_writes(word, value);
        } else {
            device.refused_write();
        }
    }
}

impl<D: DeviceModel> Due for Runner<D> {
    fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }

    fn run(&self, now: u64) {
        self.work(|device| device.tick(&self.registers, now));
    }
}

/// A device's thread; dropping it stops the thread and waits for its end.
pub(crate) struct DeviceThread {
    stop: Box<dyn Fn() + Send + Sync>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        (self.stop)();
        if let Some(handle) = self.handle.take() {
            // A panic of the device's thread was printed; the machine is going away.
            let _ = handle.join();
        }
    }
}

impl core::fmt::Debug for DeviceThread {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("DeviceThread").field(&self.handle).finish()
    }
}
