//! virtio over PCI: virtio-drivers' transport, with two differences. The kernel's interrupt handler reads the interrupt
//! status. A notification takes one access to the device instead of three, as each access is an exit to the hypervisor.
#![allow(unsafe_code)]

use core::ops::Range;

use virtio_drivers::{
    PhysAddr, Result,
    transport::{
        DeviceStatus, DeviceType, InterruptStatus, Transport,
        pci::{
            PciTransport, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_ISR_CFG,
            VIRTIO_PCI_CAP_NOTIFY_CFG, VirtioPciError,
            bus::{BarInfo, ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot},
            virtio_device_type,
        },
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    arch::{
        line::Line,
        pci::{self, Configuration},
        physical::Register,
    },
    hal::GuestHal,
};

/// Queues whose notification register is cached.
const QUEUES: usize = 8;
/// Smallest length of a virtio capability in bytes. virtio-drivers skips shorter ones, too.
const LEAST_LENGTH: u8 = 16;
/// Offsets in the common configuration structure.
const QUEUE_SELECT: u64 = 22;
const QUEUE_NOTIFY_OFF: u64 = 30;

/// A virtio device on a PCI line.
pub struct LineTransport {
    inner: PciTransport,
    line: Option<&'static Line>,
    common: Option<u64>,
    /// Addresses of the notification registers, and the distance between two of them.
    doorbells: Option<(Range<u64>, u32)>,
    doorbell: [Option<Register>; QUEUES],
}

/// All virtio devices of type `kind` on the first bus.
pub fn find(
    kind: DeviceType,
) -> impl Iterator<Item = core::result::Result<LineTransport, VirtioPciError>> {
    let root = Configuration::find().map(PciRoot::new);
    root.into_iter().flat_map(move |mut root| {
        let devices: arrayvec::ArrayVec<DeviceFunction, 32> = root
            .enumerate_bus(0)
            .filter(|(_, info)| {
                virtio_device_type(info).is_some_and(|found| same_kind(found, kind))
            })
            .map(|(device, _)| device)
            .take(32)
            .collect();
        let transports: arrayvec::ArrayVec<_, 32> = devices
            .into_iter()
            .map(|device| {
                pci::enable(&mut root, device);
                LineTransport::new(&mut root, device)
            })
            .collect();
        transports
    })
}

/// Compares device types: virtio-drivers has two names for the balloon.
fn same_kind(one: DeviceType, other: DeviceType) -> bool {
    let balloon = |kind| {
        matches!(
            kind,
            DeviceType::MemoryBalloon | DeviceType::MemoryBallooning
        )
    };
    one == other || balloon(one) && balloon(other)
}

impl LineTransport {
    fn new(
        root: &mut PciRoot<Configuration>,
        device: DeviceFunction,
    ) -> core::result::Result<Self, VirtioPciError> {
        let inner = PciTransport::new::<GuestHal, _>(root, device)?;
        // SAFETY: the capability says that this is the device's ISR register.
        let line = structure(root, device, VIRTIO_PCI_CAP_ISR_CFG)
            .and_then(|(place, _)| unsafe { Line::register(place.start) });
        let doorbells = structure(root, device, VIRTIO_PCI_CAP_NOTIFY_CFG);
        Ok(Self {
            inner,
            line,
            common: structure(root, device, VIRTIO_PCI_CAP_COMMON_CFG)
                .map(|(place, _)| place.start)
                .filter(|_| doorbells.is_some()),
            doorbells,
            doorbell: [None; QUEUES],
        })
    }

    /// The register that notifies the device about `queue`.
    fn find_doorbell(&self, queue: u16) -> Option<Register> {
        let (common, (doorbells, distance)) = (self.common?, self.doorbells.clone()?);
        // SAFETY: two registers of the device's common configuration; our caller's `&mut self` keeps others away.
        let offset = unsafe {
            Register::new(common + QUEUE_SELECT).write_half(queue);
            Register::new(common + QUEUE_NOTIFY_OFF).read_half()
        };
        let place = doorbells.start + u64::from(offset) * u64::from(distance);
        // SAFETY: the device says that this is the queue's notification register, and it lies inside the device's
        // registers.
        (place + 2 <= doorbells.end).then(|| unsafe { Register::new(place) })
    }

    /// The device's interrupt line; `None` if the device must be polled.
    pub fn line(&self) -> Option<&'static Line> {
        self.line
    }
}

/// Physical addresses of the structure of type `kind` of a device, and the word behind its capability (for
/// notifications, the distance between the queues' registers). `None` if the structure is absent, does not lie inside
/// the device's registers, or is not mapped in the kernel's window.
fn structure(
    root: &mut PciRoot<Configuration>,
    device: DeviceFunction,
    kind: u8,
) -> Option<(Range<u64>, u32)> {
    let access = Configuration::find()?;
    let mut capabilities = root.capabilities(device);
    let offset = capabilities.find_map(|capability| {
        let found = capability.id == PCI_CAP_ID_VNDR
            && capability.private_header as u8 >= LEAST_LENGTH
            && (capability.private_header >> 8) as u8 == kind;
        found.then_some(capability.offset)
    })?;
    let word = |at| access.read_word(device, offset + at);
    let (bar, place, length, more) = (word(4) as u8, word(8), word(12), word(16));
    let (address, size) = root
        .bar_info(device, bar)
        .ok()
        .flatten()
        .as_ref()
        .and_then(BarInfo::memory_address_size)?;
    let (place, length) = (u64::from(place), u64::from(length));
    let inside = length > 0 && place + length <= size && address + size <= pci::REACH;
    inside.then(|| (address + place..address + place + length, more))
}

impl Drop for LineTransport {
    fn drop(&mut self) {
        // The device is reset first, so that it keeps its line down. A raised line that nobody reads interrupts for
        // ever.
        self.inner.set_status(DeviceStatus::empty());
        if let Some(line) = self.line {
            line.unregister();
        }
    }
}

impl Transport for LineTransport {
    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.inner.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        match self.doorbell.get(usize::from(queue)) {
            Some(Some(register)) => register.write_half(queue),
            _ => self.inner.notify(queue),
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.inner.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.inner
            .queue_set(queue, size, descriptors, driver_area, device_area);
        let register = self.find_doorbell(queue);
        if let Some(place) = self.doorbell.get_mut(usize::from(queue)) {
            *place = register;
        }
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    /// Fetches what the interrupt handler has read; the handler has taken the line down already.
    fn ack_interrupt(&mut self) -> InterruptStatus {
        match self.line {
            Some(line) => InterruptStatus::from_bits_retain(line.take()),
            None => self.inner.ack_interrupt(),
        }
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        self.inner.write_config_space(offset, value)
    }
}
