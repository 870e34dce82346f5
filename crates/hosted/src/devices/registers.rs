//! What every in-process virtio device has: the registers that its transport shows, and the model behind them.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus};

use crate::devices::interrupt::InterruptLine;

/// Where the driver put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueSetup {
    /// Entries; 0: not set up.
    pub(crate) size: u16,
    /// Physical address of the descriptor table.
    pub(crate) descriptors: u64,
    /// Physical address of the available ring.
    pub(crate) driver_area: u64,
    /// Physical address of the used ring.
    pub(crate) device_area: u64,
}

/// What the driver may read and write, and the host beside it.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) device_type: DeviceType,
    /// Features that the device offers.
    pub(crate) offered: u64,
    /// Features that the driver accepted.
    accepted: AtomicU64,
    status: AtomicU32,
    /// Largest queue, the same for all.
    pub(crate) queue_max: u16,
    queues: Mutex<Vec<QueueSetup>>,
    config: ConfigSpace,
    pub(crate) interrupt: InterruptLine,
}

impl Registers {
    pub(crate) fn new(
        device_type: DeviceType,
        offered: u64,
        queues: usize,
        queue_max: u16,
        config_bytes: usize,
        interrupt: InterruptLine,
    ) -> Self {
        Self {
            device_type,
            offered,
            accepted: AtomicU64::new(0),
            status: AtomicU32::new(0),
            queue_max,
            queues: Mutex::new(vec![QueueSetup::default(); queues]),
            config: ConfigSpace::new(config_bytes),
            interrupt,
        }
    }

    /// The configuration space.
    pub(crate) fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Features that the driver accepted.
    pub(crate) fn accepted(&self) -> u64 {
        // Acquire pairs with the release in `accept`; both sides also meet at the status.
        self.accepted.load(Ordering::Acquire)
    }

    pub(crate) fn accept(&self, features: u64) {
        self.accepted.store(features, Ordering::Release);
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        // Acquire pairs with the release in `set_status`: who sees DRIVER_OK sees the queues.
        DeviceStatus::from_bits_retain(self.status.load(Ordering::Acquire))
    }

    pub(crate) fn set_status(&self, status: DeviceStatus) {
        self.status.store(status.bits(), Ordering::Release);
    }

    /// The device is beyond repair until the driver resets it.
    pub(crate) fn need_reset(&self) {
        self.status
            .fetch_or(DeviceStatus::DEVICE_NEEDS_RESET.bits(), Ordering::Release);
        self.interrupt
            .raise(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
    }

    /// All queues, as the driver left them.
    pub(crate) fn queues(&self) -> Vec<QueueSetup> {
        self.queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// One queue; `None` if the device has no such queue.
    pub(crate) fn queue(&self, index: u16) -> Option<QueueSetup> {
        self.queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(usize::from(index))
            .copied()
    }

    /// Sets one queue; a queue that the device does not have is ignored.
    pub(crate) fn set_queue(&self, index: u16, setup: QueueSetup) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get_mut(usize::from(index)) {
            *queue = setup;
        }
    }

    /// As after power-on. The configuration stays: it is the host's.
    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.accepted.store(0, Ordering::Release);
        self.queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill(QueueSetup::default());
        self.interrupt.take();
    }
}

/// A device's configuration space, in words of 32 bits, which is what virtio makes atomic.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    words: Box<[AtomicU32]>,
    /// Moves whenever the device changes a word.
    generation: AtomicU32,
}

impl ConfigSpace {
    fn new(bytes: usize) -> Self {
        Self {
            words: (0..bytes.div_ceil(4)).map(|_| AtomicU32::new(0)).collect(),
            generation: AtomicU32::new(0),
        }
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.words.len() * 4
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Word `index`, which exists.
    pub(crate) fn word(&self, index: usize) -> u32 {
        self.words[index].load(Ordering::Acquire)
    }

    /// The device changes a word.
    pub(crate) fn set_word(&self, index: usize, value: u32) {
        self.words[index].store(value, Ordering::Release);
        // After the word: a driver that reads the old generation on both sides read the old word or the new one, whole.
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The driver writes a word; generations count the device's changes only.
    pub(crate) fn driver_writes(&self, index: usize, value: u32) {
        self.words[index].store(value, Ordering::Release);
    }

    /// Copies bytes from `offset`; `false` if they are not all there.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        if offset
            .checked_add(out.len())
            .is_none_or(|end| end > self.len())
        {
            return false;
        }
        for (position, byte) in (offset..).zip(out) {
            *byte = self.word(position / 4).to_le_bytes()[position % 4];
        }
        true
    }
}

/// What a device does; its registers are beside it. One thread at a time works on it.
pub(crate) trait DeviceModel: Send + 'static {
    /// The driver is ready: take over its queues.
    fn activate(&mut self, registers: &Registers);
    /// Whether it takes a reset. One that does not goes on, and its status says so.
    fn takes_reset(&self) -> bool {
        true
    }
    /// Forget the driver and all its requests.
    fn reset(&mut self);
    /// The driver announced buffers in queue `queue`. `true`: raise the queue interrupt.
    fn kicked(&mut self, registers: &Registers, queue: u16, now: u64) -> bool;
    /// Do what the host asked for and what is due. `true`: raise the queue interrupt.
    fn tick(&mut self, registers: &Registers, now: u64) -> bool;
    /// When `tick` has something to do next; `u64::MAX`: never as it stands.
    fn due(&self) -> u64;
    /// Whether the driver may write the configuration word.
    fn may_write(&self, word: usize) -> bool;
    /// The driver wrote a word that it may not write.
    fn refused_write(&mut self);
}
