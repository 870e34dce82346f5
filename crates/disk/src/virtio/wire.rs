//! The transport: features, status, bell, configuration space.
#![forbid(unsafe_code)]

use dirigible_frames::{FRAME_SIZE, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};

use super::error::SetUpError;
use super::ring::{BLOCK_SECTORS, Ring, Shape};
use crate::{DiskConfig, MAX_REQUEST_FRAMES};

/// Feature bits.
mod feature {
    /// The configuration says how many bytes a piece may have.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// The configuration says how many pieces a request may have.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk cannot be written. It must be accepted, and changes nothing: the device refuses writes.
    pub const RO: u64 = 1 << 5;
    /// Indirect descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Version 1 of the standard.
    pub const VERSION_1: u64 = 1 << 32;
    /// Without a way to flush, the device has no write cache that a request could stay in.
    pub const WANTED: u64 = SIZE_MAX | SEG_MAX | RO | INDIRECT | VERSION_1;
}

/// The only queue.
const QUEUE: u16 = 0;
/// Where the configuration has the number of sectors (64 bits), the bytes of a piece, the pieces of a request.
const CAPACITY: usize = 0;
const SIZE_MAX: usize = 8;
const SEG_MAX: usize = 12;
/// How often a configuration that changes under our hands is read again.
const READS: u32 = 8;
/// How often a wait may find the clock where it was: a virtual clock may stand still while nothing is done.
const STANDSTILL: u32 = 4096;

/// Proof that a device has confirmed its reset: it touches no memory of ours.
pub(super) struct Quiet(());

/// What a device is, as it says itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Device {
    pub(super) blocks: u64,
    pub(super) shape: Shape,
}

/// A device's transport. It is dropped only while the device is quiet, and leaked otherwise: the `drop` of some
/// transports waits without a bound for the device (that of virtio-drivers over PCI does).
pub(super) struct Wire<T: Transport> {
    /// `None` only inside `drop`.
    transport: Option<T>,
    /// The device has confirmed its last reset.
    quiet: bool,
    /// The device is started.
    live: bool,
}

impl<T: Transport> Wire<T> {
    pub(super) const fn new(transport: T) -> Self {
        Self {
            transport: Some(transport),
            quiet: false,
            live: false,
        }
    }

    /// Orders the device to forget everything.
    pub(super) fn order_reset(&mut self) {
        self.live = false;
        if let Some(transport) = self.transport.as_mut().filter(|_| !self.quiet) {
            transport.set_status(DeviceStatus::empty());
        }
    }

    /// Whether the device has confirmed the reset that was ordered.
    pub(super) fn confirmed(&mut self) -> Option<Quiet> {
        if self.live {
            return None;
        }
        let status = self.transport.as_ref().map(Transport::get_status);
        self.quiet |= status.is_some_and(|status| status.is_empty());
        self.quiet.then_some(Quiet(()))
    }

    /// Resets the device and waits for it, `timeout_ns` at most.
    pub(super) fn reset(&mut self, platform: &impl Platform, timeout_ns: u64) -> Option<Quiet> {
        self.order_reset();
        let deadline = platform.now().saturating_add(timeout_ns);
        let (mut seen, mut standstill) = (platform.now(), 0);
        loop {
            let quiet = self.confirmed();
            let now = platform.now();
            standstill = if now == seen { standstill + 1 } else { 0 };
            seen = now;
            if quiet.is_some() || now >= deadline || standstill > STANDSTILL {
                return quiet;
            }
            platform.relax();
        }
    }

    /// Negotiates with a device that is quiet, and looks at what it is.
    pub(super) fn negotiate(&mut self, config: &DiskConfig) -> Result<Device, SetUpError> {
        let transport = self.transport.as_mut().filter(|_| self.quiet);
        let transport = transport.ok_or(SetUpError::NoReset)?;
        let kind = transport.device_type();
        if kind != DeviceType::Block {
            return Err(SetUpError::NotADisk(kind));
        }
        self.quiet = false;
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(known);
        let features = transport.read_device_features() & feature::WANTED;
        if features & feature::VERSION_1 == 0 || transport.requires_legacy_layout() {
            return Err(SetUpError::Legacy);
        }
        transport.write_driver_features(features);
        transport.set_status(known | DeviceStatus::FEATURES_OK);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(SetUpError::FeaturesRefused(features));
        }

        let sectors = read_capacity(transport)?;
        let word = |feature, offset| {
            if features & feature == 0 {
                return Ok(u32::MAX);
            }
            let word = transport.read_config_space::<u32>(offset);
            word.map(u32::from_le).map_err(SetUpError::Config)
        };
        let bytes = word(feature::SIZE_MAX, SIZE_MAX)?;
        let segments = word(feature::SEG_MAX, SEG_MAX)?;
        if bytes < FRAME_SIZE as u32 || segments < MAX_REQUEST_FRAMES as u32 {
            return Err(SetUpError::SmallRequests { segments, bytes });
        }
        let blocks = sectors / BLOCK_SECTORS;
        if blocks == 0 {
            return Err(SetUpError::Empty { sectors });
        }
        let entries = transport.max_queue_size(QUEUE);
        let indirect = features & feature::INDIRECT != 0;
        let shape = Shape::new(entries, config.depth, indirect, bytes);
        let shape = shape.ok_or(SetUpError::SmallQueue { entries })?;
        Ok(Device { blocks, shape })
    }

    /// Shows the queue to a device with which was negotiated, and starts it.
    pub(super) fn start<H: Hal>(&mut self, ring: &Ring<H>) {
        if let Some(transport) = self.transport.as_mut() {
            let [descriptors, available, used] = ring.addresses();
            let entries = ring.shape.entries().into();
            transport.queue_set(QUEUE, entries, descriptors, available, used);
            transport.finish_init();
            self.live = true;
        }
    }

    /// Tells the device that there is something in the queue.
    pub(super) fn notify(&mut self) {
        if let Some(transport) = self.transport.as_mut().filter(|_| self.live) {
            transport.notify(QUEUE);
        }
    }

    /// Takes the interrupt line down. After a reset too: a line that stays up would interrupt for ever.
    pub(super) fn acknowledge(&mut self) -> InterruptStatus {
        self.transport
            .as_mut()
            .map_or(InterruptStatus::empty(), Transport::ack_interrupt)
    }

    /// Whether a device that was started says that it cannot go on, or has stopped by itself.
    pub(super) fn has_failed(&self) -> bool {
        let transport = self.transport.as_ref().filter(|_| self.live);
        transport.is_some_and(|transport| {
            let status = transport.get_status();
            status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
                || !status.contains(DeviceStatus::DRIVER_OK)
        })
    }
}

/// The number of sectors: two words, read while the configuration does not change.
fn read_capacity(transport: &impl Transport) -> Result<u64, SetUpError> {
    let word = |offset| {
        let word = transport.read_config_space::<u32>(offset);
        word.map(|word| u64::from(u32::from_le(word)))
            .map_err(SetUpError::Config)
    };
    for _ in 0..READS {
        let before = transport.read_config_generation();
        let sectors = word(CAPACITY)? | word(CAPACITY + 4)? << 32;
        if transport.read_config_generation() == before {
            return Ok(sectors);
        }
    }
    Err(SetUpError::Config(virtio_drivers::Error::NotReady))
}

impl<T: Transport> Drop for Wire<T> {
    fn drop(&mut self) {
        // The disk has tried to make the device quiet, if it could be made at all.
        if let Some(transport) = self.transport.take().filter(|_| !self.quiet) {
            core::mem::forget(transport);
        }
    }
}
