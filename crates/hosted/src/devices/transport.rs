//! The transport between a driver and a device of the same process.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::devices::{registers::QueueSetup, runner::Backend};

/// A device as its driver sees it. Dropping it resets the device.
///
/// In a deterministic machine the device works inside `notify`: when that returns, requests are taken, and their
/// answers come when virtual time has reached the moment ([`AnswerTime`](crate::AnswerTime)). In a threaded machine
/// `notify` wakes the device's thread.
pub struct InProcessTransport {
    device: Arc<dyn Backend>,
    /// Set while a transport for the device exists.
    attached: Arc<AtomicBool>,
}

impl InProcessTransport {
    /// The transport of a device, unless a driver has it.
    pub(crate) fn attach(device: Arc<dyn Backend>, attached: &Arc<AtomicBool>) -> Option<Self> {
        // Acquire pairs with the release in `drop`: the former driver's reset comes before this one's start.
        if attached.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Self {
            device,
            attached: Arc::clone(attached),
        })
    }
}

impl Drop for InProcessTransport {
    fn drop(&mut self) {
        self.device.write_status(DeviceStatus::empty());
        self.attached.store(false, Ordering::Release);
    }
}

impl core::fmt::Debug for InProcessTransport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("InProcessTransport")
            .field(self.device.registers())
            .finish()
    }
}

impl Transport for InProcessTransport {
    fn device_type(&self) -> DeviceType {
        self.device.registers().device_type
    }

    fn read_device_features(&mut self) -> u64 {
        self.device.registers().offered
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.device.registers().accept(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        let registers = self.device.registers();
        registers
            .queue(queue)
            .map_or(0, |_| registers.queue_max.into())
    }

    fn notify(&mut self, queue: u16) {
        self.device.kick(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.device.registers().status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.device.write_status(status);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // Of legacy devices only.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        // The device checks the addresses when the driver says that it is ready; a size that is no queue size is 0 to
        // it.
        let size = u16::try_from(size).unwrap_or(0);
        let setup = QueueSetup {
            size,
            descriptors,
            driver_area,
            device_area,
        };
        self.device.registers().set_queue(queue, setup);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.device
            .registers()
            .set_queue(queue, QueueSetup::default());
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.device
            .registers()
            .queue(queue)
            .is_some_and(|setup| setup.size != 0)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.device.registers().interrupt.take()
    }

    fn read_config_generation(&self) -> u32 {
        self.device.registers().config().generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        if self
            .device
            .registers()
            .config()
            .read(offset, value.as_mut_bytes())
        {
            Ok(value)
        } else {
            Err(Error::ConfigSpaceTooSmall)
        }
    }

    /// Writes whole, aligned words of 32 bits, the only writes that virtio's configuration fields need.
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let bytes = value.as_bytes();
        let length = self.device.registers().config().len();
        if offset
            .checked_add(bytes.len())
            .is_none_or(|end| end > length)
        {
            return Err(Error::ConfigSpaceTooSmall);
        }
        let (words, rest) = bytes.as_chunks::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            return Err(Error::InvalidParam);
        }
        for (word, bytes) in (offset / 4..).zip(words) {
            self.device.write_config(word, u32::from_le_bytes(*bytes));
        }
        Ok(())
    }
}
