//! The transport: features, status, bells, configuration space.
#![forbid(unsafe_code)]

use dirigible_frames::Platform;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};

use super::error::DeviceError;
use super::wait::Wait;
use crate::Features;
use crate::features::config_space;

/// Proof that a device has confirmed its reset: it touches no memory of ours and has forgotten every frame.
pub(super) struct Quiet(());

/// A device's transport. It is dropped only while the device is quiet, and leaked otherwise: the `drop` of some
/// transports waits without a bound for the device (that of virtio-drivers over PCI does).
pub(super) struct Wire<'a, T: Transport, P: Platform> {
    /// `None` only inside `drop`.
    transport: Option<T>,
    /// Its clock bounds the wait for a reset.
    platform: &'a P,
    /// How long that wait may last.
    reset_timeout_ns: u64,
    /// Numbers of the inflate, deflate and statistics queues.
    bells: [u16; 3],
    /// The device has not been touched yet, or has confirmed its last reset.
    quiet: bool,
    /// The device is started.
    live: bool,
}

impl<'a, T: Transport, P: Platform> Wire<'a, T, P> {
    /// Of a device that nobody has touched.
    pub(super) const fn new(transport: T, platform: &'a P, reset_timeout_ns: u64) -> Self {
        Self {
            transport: Some(transport),
            platform,
            reset_timeout_ns,
            bells: [0; 3],
            quiet: true,
            live: false,
        }
    }

    pub(super) fn transport(&mut self) -> Result<&mut T, DeviceError> {
        self.transport.as_mut().ok_or(DeviceError::NoReset)
    }

    /// Negotiates features. Afterwards the queues are set up and the device [started](Self::start).
    pub(super) fn negotiate(&mut self, accepted: Features) -> Result<Features, DeviceError> {
        let transport = self.transport()?;
        let kind = transport.device_type();
        // The id 5 has two names in virtio-drivers.
        if !matches!(
            kind,
            DeviceType::MemoryBallooning | DeviceType::MemoryBalloon
        ) {
            return Err(DeviceError::NotABalloon(kind));
        }
        // An earlier driver may have left the device running.
        let idle = transport.get_status().is_empty();
        self.quiet &= idle;
        if self.reset().is_none() {
            return Err(DeviceError::NoReset);
        }
        self.quiet = false;
        let transport = self.transport()?;
        let features = transport.begin_init(accepted);
        // Legacy devices have no such bit.
        let agreed = transport.get_status().contains(DeviceStatus::FEATURES_OK);
        if !agreed && !transport.requires_legacy_layout() {
            return Err(DeviceError::FeaturesRefused(features));
        }
        self.read_target().map_err(DeviceError::Config)?;
        Ok(features)
    }

    /// The queues are there: the device may begin.
    pub(super) fn start(&mut self) {
        if let Some(transport) = &mut self.transport {
            transport.finish_init();
            self.live = true;
        }
    }

    /// The device cannot be used: sets its status to FAILED and resets it.
    pub(super) fn give_up(&mut self) -> Option<Quiet> {
        if let Some(transport) = self.transport.as_mut().filter(|_| !self.quiet) {
            transport.set_status(DeviceStatus::FAILED);
        }
        self.reset()
    }

    pub(super) const fn is_live(&self) -> bool {
        self.live
    }

    pub(super) const fn set_bells(&mut self, bells: [u16; 3]) {
        self.bells = bells;
    }

    /// Notifies the device that there is something in queue `which` of inflate, deflate, statistics.
    ///
    /// Always, even if the device asks for no notifications: there is no full fence between the store of the available
    /// index and virtio-drivers' look at what the device asks for.
    pub(super) fn ring(&mut self, which: usize) {
        if let Some(transport) = self.transport.as_mut().filter(|_| self.live) {
            transport.notify(self.bells[which]);
        }
    }

    /// Takes the line down and gives why it was up. After a reset too: a line that stays up would interrupt for ever.
    pub(super) fn acknowledge(&mut self) -> InterruptStatus {
        self.transport
            .as_mut()
            .map_or(InterruptStatus::empty(), Transport::ack_interrupt)
    }

    /// Whether the device reports that it cannot go on.
    pub(super) fn needs_reset(&self) -> bool {
        self.transport
            .as_ref()
            .filter(|_| self.live)
            .is_some_and(|transport| {
                transport
                    .get_status()
                    .contains(DeviceStatus::DEVICE_NEEDS_RESET)
            })
    }

    pub(super) fn read_target(&self) -> Result<u32, virtio_drivers::Error> {
        self.transport
            .as_ref()
            .ok_or(virtio_drivers::Error::NotReady)?
            .read_config_space(config_space::NUM_PAGES)
            .map(config_space::decode)
    }

    pub(super) fn write_actual(&mut self, actual: u32) {
        if let Some(transport) = self.transport.as_mut().filter(|_| self.live) {
            // A device that does not take it has no use for it.
            let _ =
                transport.write_config_space(config_space::ACTUAL, config_space::encode(actual));
        }
    }

    /// Makes the device forget everything and waits until it confirms that; `None` when it does not in time.
    #[inline(never)]
    pub(super) fn reset(&mut self) -> Option<Quiet> {
        self.live = false;
        let transport = self.transport.as_mut()?;
        if !self.quiet {
            // Not queue by queue: virtio-drivers waits without a bound until a queue reports that it is off.
            transport.set_status(DeviceStatus::empty());
            let mut wait = Wait::lasting(self.platform, self.reset_timeout_ns);
            self.quiet = loop {
                if transport.get_status().is_empty() {
                    break true;
                }
                if !wait.go_on() {
                    break false;
                }
            };
        }
        self.quiet.then_some(Quiet(()))
    }
}

impl<T: Transport, P: Platform> Drop for Wire<'_, T, P> {
    fn drop(&mut self) {
        let quiet = self.reset().is_some();
        if let Some(transport) = self.transport.take()
            && !quiet
        {
            core::mem::forget(transport);
        }
    }
}
