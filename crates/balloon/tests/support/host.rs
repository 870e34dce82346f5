//! The host: a device model over the driver's real rings, answering at once, on demand, wrongly, or never.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use dirigible_balloon::QUEUE_SIZE;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Identity-mapped DMA memory from the heap.
pub struct FakeHal;

std::thread_local! {
    /// How often this thread has given DMA memory back.
    pub static GIVEN_BACK: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

// SAFETY: the memory comes from the global allocator, page-aligned and zeroed, and belongs to the caller alone.
unsafe impl Hal for FakeHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the size is not zero: the driver asks for at least one page.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        (memory.as_ptr() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        GIVEN_BACK.set(GIVEN_BACK.get() + 1);
        // SAFETY: the caller guarantees that this is what `dma_alloc` gave.
        unsafe { dealloc(vaddr.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("no MMIO here")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// How the host answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Manner {
    /// Inside the notification.
    #[default]
    AtOnce,
    /// When the test asks for it.
    OnDemand,
    /// Never.
    Never,
    /// Inside the notification, and once more.
    Twice,
}

/// A request that the host has and has not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub queue: u16,
    pub head: u16,
    pub pfns: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct QueueAt {
    descriptors: u64,
    driver: u64,
    device: u64,
    seen: u16,
    used: u16,
}

/// What the device and the test share.
#[derive(Default)]
pub struct Inner {
    pub offered: u64,
    pub negotiated: u64,
    pub refuses_features: bool,
    pub status: u32,
    pub kind: Option<DeviceType>,
    pub sizes: [u32; 5],
    queues: [QueueAt; 5],
    pub manner: Manner,
    pub target: u32,
    pub actual: u32,
    pub actual_writes: u64,
    /// Frame numbers that the host has.
    pub has: BTreeSet<u32>,
    /// Largest and smallest number of them since the test last asked.
    pub low: usize,
    pub waiting: VecDeque<Request>,
    /// Requests seen, by queue.
    pub seen: BTreeMap<u16, u64>,
    pub longest: usize,
    /// Numbers that it takes in one request.
    pub most: usize,
    /// What the driver finds when it acknowledges an interrupt; the line is up while there is anything.
    pub isr: u32,
    pub target_reads: u64,
    /// The configuration space cannot be read.
    pub unreadable: bool,
    /// Statistics buffers that came, and the one that is out.
    pub stats: Vec<Vec<u8>>,
    pub stats_out: Vec<u16>,
    pub errors: Vec<String>,
    /// Called in each notification, before the device looks at the queue.
    #[allow(clippy::type_complexity)]
    pub on_notify: Option<Box<dyn FnMut(&mut Inner) + Send>>,
    /// Called around each access to the configuration space.
    pub on_config: Option<Box<dyn FnMut() + Send>>,
    pub resets: u64,
    /// It takes no reset.
    pub never_resets: bool,
    /// After a reset the status is read so often before it reads 0.
    pub reset_takes: u32,
    /// How often it is still to be read.
    resetting: u32,
    /// Frames that it had at its resets.
    pub forgotten: u64,
    pub status_reads: u64,
    pub dropped: bool,
}

/// `VIRTIO_ISR_QUEUE` and `VIRTIO_ISR_CONFIG`.
pub const ISR_QUEUE: u32 = 1;
pub const ISR_CONFIG: u32 = 2;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;

impl Inner {
    fn word(address: u64, index: usize) -> u16 {
        // SAFETY: an address inside the ring memory that the driver set up, which lives until the device is reset.
        unsafe { (address as *const u16).add(index).read_volatile() }
    }

    /// Looks at what the driver made available.
    fn fetch(&mut self, queue: u16) {
        if self.status & DeviceStatus::DRIVER_OK.bits() == 0 {
            self.errors
                .push(format!("notified before DRIVER_OK on {queue}"));
            return;
        }
        let at = self.queues[queue as usize];
        if at.driver == 0 {
            return;
        }
        let available = Self::word(at.driver, 1);
        let mut seen = at.seen;
        while seen != available {
            let head = Self::word(at.driver, 2 + usize::from(seen) % QUEUE_SIZE);
            seen = seen.wrapping_add(1);
            let descriptor = at.descriptors + u64::from(head) * 16;
            // SAFETY: a descriptor of the driver's table.
            let (address, len, flags) = unsafe {
                (
                    (descriptor as *const u64).read_volatile(),
                    ((descriptor + 8) as *const u32).read_volatile(),
                    ((descriptor + 12) as *const u16).read_volatile(),
                )
            };
            // SAFETY: the buffer that the descriptor names, which the driver leaves alone until it is used.
            let bytes =
                unsafe { std::slice::from_raw_parts(address as *const u8, len as usize) }.to_vec();
            if flags != 0 {
                self.errors.push(format!(
                    "descriptor flags {flags:#x}: not one readable buffer"
                ));
            }
            self.receive(queue, head, bytes);
        }
        self.queues[queue as usize].seen = seen;
    }

    fn receive(&mut self, queue: u16, head: u16, bytes: Vec<u8>) {
        *self.seen.entry(queue).or_default() += 1;
        if queue > DEFLATE {
            self.stats.push(bytes);
            self.stats_out.push(head);
            if self.stats_out.len() > 1 {
                self.errors.push("two statistics buffers out".into());
            }
            return;
        }
        if !bytes.len().is_multiple_of(4) || bytes.len() > 4 * self.most || bytes.is_empty() {
            self.errors
                .push(format!("request of {} bytes", bytes.len()));
        }
        let pfns: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        if !pfns.is_sorted() {
            self.errors.push("frame numbers do not ascend".into());
        }
        self.longest = self.longest.max(pfns.len());
        self.waiting.push_back(Request { queue, head, pfns });
        match self.manner {
            Manner::AtOnce => self.answer(self.waiting.len() - 1),
            Manner::Twice => {
                self.answer(self.waiting.len() - 1);
                self.use_again(queue, head);
            }
            Manner::OnDemand | Manner::Never => {}
        }
    }

    /// Answers the waiting request number `at`, and checks who has each of its frames.
    pub fn answer(&mut self, at: usize) {
        let request = self.waiting.remove(at).expect("such a request waits");
        for &pfn in &request.pfns {
            let right = match request.queue {
                INFLATE => self.has.insert(pfn),
                _ => self.has.remove(&pfn),
            };
            if !right {
                self.errors
                    .push(format!("{pfn:#x} twice on queue {}", request.queue));
            }
        }
        self.low = self.low.min(self.has.len());
        self.use_again(request.queue, request.head);
    }

    /// Puts `id` on the used ring, whether that is right or wrong.
    pub fn use_again(&mut self, queue: u16, id: u16) {
        let at = &mut self.queues[queue as usize];
        let slot = usize::from(at.used) % QUEUE_SIZE;
        // SAFETY: inside the used ring that the driver set up; the index is written last.
        unsafe {
            let entry = (at.device + 4 + slot as u64 * 8) as *mut u32;
            entry.write_volatile(u32::from(id));
            entry.add(1).write_volatile(0);
            at.used = at.used.wrapping_add(1);
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            ((at.device + 2) as *mut u16).write_volatile(at.used);
        }
        self.isr |= ISR_QUEUE;
    }

    fn reset(&mut self) {
        self.status = 0;
        self.resets += 1;
        // A device that was reset knows of no frame.
        self.forgotten += self.has.len() as u64;
        self.has.clear();
        self.queues = Default::default();
        self.waiting.clear();
        self.stats_out.clear();
        // The line stays as it is: some other part of the machine may be slow to take it down.
    }

    /// Returns the statistics buffer: the host asks for a report.
    pub fn ask_stats(&mut self) {
        let head = self
            .stats_out
            .pop()
            .expect("the driver primed the statistics queue");
        self.use_again(2, head);
    }
}

/// The test's side of the host.
#[derive(Clone)]
pub struct Host(pub Arc<Mutex<Inner>>);

impl Host {
    /// A host that offers nothing but version 1 and answers at once.
    pub fn new() -> Self {
        Self::offering(VERSION_1)
    }

    pub fn offering(offered: u64) -> Self {
        let inner = Inner {
            offered,
            sizes: [128; 5],
            low: usize::MAX,
            most: 256,
            actual: u32::MAX,
            ..Inner::default()
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub fn transport(&self) -> FakeTransport {
        FakeTransport(self.0.clone())
    }

    pub fn set_target(&self, target: u32) {
        let mut inner = self.inner();
        inner.target = target;
        inner.isr |= ISR_CONFIG;
    }

    /// The host looks at both queues without a notification.
    pub fn look(&self) {
        let mut inner = self.inner();
        inner.fetch(INFLATE);
        inner.fetch(DEFLATE);
    }

    /// The device reports that it cannot go on, as QEMU does for invalid rings.
    pub fn need_reset(&self) {
        let mut inner = self.inner();
        inner.status |= DeviceStatus::DEVICE_NEEDS_RESET.bits();
        inner.isr |= ISR_CONFIG;
        inner.manner = Manner::Never;
    }

    pub fn line_is_up(&self) -> bool {
        self.inner().isr != 0
    }

    /// How often the driver has read the target and written the size.
    pub fn config_accesses(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.target_reads, inner.actual_writes)
    }

    pub fn set_manner(&self, manner: Manner) {
        self.inner().manner = manner;
    }

    /// How many frames the host has.
    pub fn size(&self) -> u64 {
        self.inner().has.len() as u64
    }

    /// What the driver wrote last.
    pub fn actual(&self) -> u64 {
        u64::from(self.inner().actual)
    }

    /// Requests on the inflate and deflate queues so far.
    pub fn messages(&self) -> u64 {
        let inner = self.inner();
        inner.seen.get(&INFLATE).unwrap_or(&0) + inner.seen.get(&DEFLATE).unwrap_or(&0)
    }

    /// Answers the oldest waiting request; `false` when there is none.
    pub fn answer_one(&self) -> bool {
        let mut inner = self.inner();
        let some = !inner.waiting.is_empty();
        if some {
            inner.answer(0);
        }
        some
    }

    pub fn check(&self) {
        let inner = self.inner();
        assert!(inner.errors.is_empty(), "{:?}", inner.errors);
    }
}

/// The driver's side.
pub struct FakeTransport(Arc<Mutex<Inner>>);

/// As a transport over PCI does: it resets the device and waits for that, here with a panic in place of for ever.
impl Drop for FakeTransport {
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
        let mut inner = self.0.lock().unwrap();
        inner.dropped = true;
        assert_eq!(inner.status, 0, "this wait would not end");
    }
}

impl FakeTransport {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn config_hook(&self) {
        let action = self.inner().on_config.take();
        if let Some(mut action) = action {
            action();
            self.inner().on_config.get_or_insert(action);
        }
    }
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        self.inner().kind.unwrap_or(DeviceType::MemoryBalloon)
    }
    fn read_device_features(&mut self) -> u64 {
        self.inner().offered
    }
    fn write_driver_features(&mut self, driver_features: u64) {
        self.inner().negotiated = driver_features;
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner().sizes[queue as usize]
    }
    fn notify(&mut self, queue: u16) {
        let mut inner = self.inner();
        if let Some(mut action) = inner.on_notify.take() {
            action(&mut inner);
            inner.on_notify.get_or_insert(action);
        }
        inner.fetch(queue);
    }
    fn get_status(&self) -> DeviceStatus {
        let mut inner = self.inner();
        inner.status_reads += 1;
        if inner.resetting > 0 {
            inner.resetting -= 1;
            if inner.resetting == 0 {
                inner.reset();
            }
        }
        let mut status = DeviceStatus::from_bits_retain(inner.status);
        if inner.refuses_features {
            status.remove(DeviceStatus::FEATURES_OK);
        }
        status
    }
    fn set_status(&mut self, status: DeviceStatus) {
        let mut inner = self.inner();
        if status.is_empty() && inner.never_resets {
            return;
        }
        if status.is_empty() && inner.reset_takes > 0 {
            inner.resetting = inner.reset_takes;
            return;
        }
        let needs_reset = inner.status & DeviceStatus::DEVICE_NEEDS_RESET.bits();
        inner.status = status.bits();
        if !status.is_empty() {
            // Only a reset takes this one back.
            inner.status |= needs_reset;
        }
        if status.is_empty() {
            inner.reset();
        }
    }
    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, descriptors: u64, driver: u64, device: u64) {
        assert_eq!(size as usize, QUEUE_SIZE);
        self.inner().queues[queue as usize] = QueueAt {
            descriptors,
            driver,
            device,
            seen: 0,
            used: 0,
        };
    }
    fn queue_unset(&mut self, queue: u16) {
        self.inner().queues[queue as usize] = QueueAt::default();
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner().queues[queue as usize].driver != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(std::mem::take(&mut self.inner().isr))
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        self.config_hook();
        let mut inner = self.inner();
        inner.target_reads += 1;
        if inner.unreadable {
            return Err(virtio_drivers::Error::IoError);
        }
        let mut config = [0; 8];
        config[..4].copy_from_slice(&inner.target.to_le_bytes());
        config[4..].copy_from_slice(&inner.actual.to_le_bytes());
        let end = offset + size_of::<T>();
        // The least that any device has: 8 bytes. More is read only with features that we do not negotiate.
        let bytes = config
            .get(offset..end)
            .ok_or(virtio_drivers::Error::ConfigSpaceTooSmall)?;
        T::read_from_bytes(bytes).map_err(|_| virtio_drivers::Error::IoError)
    }
    fn write_config_space<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        self.config_hook();
        let mut inner = self.inner();
        let bytes = value
            .as_bytes()
            .try_into()
            .map_err(|_| virtio_drivers::Error::IoError)?;
        if offset != 4 {
            inner
                .errors
                .push(format!("wrote the configuration space at {offset}"));
        }
        inner.actual = u32::from_le_bytes(bytes);
        inner.actual_writes += 1;
        Ok(())
    }
}
