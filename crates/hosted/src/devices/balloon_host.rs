//! The host's side of a balloon: what a hypervisor's monitor can ask and order.

use std::sync::{Arc, atomic::AtomicBool};

use dirigible_frames::{FRAME_SHIFT, Pfn};
use thiserror::Error;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus};

use crate::{
    clock::{Clock, Due},
    devices::{
        balloon_device::{ACTUAL, BalloonCounters, BalloonDevice, CONFIG_BYTES, NUM_PAGES},
        balloon_options::{BalloonOptions, BalloonOptionsError, features},
        balloon_stats::GuestStatistics,
        faults::FaultPlan,
        interrupt::{Event, InterruptLine},
        registers::Registers,
        runner::{Backend, DeviceThread, Runner},
        transport::InProcessTransport,
    },
    memory::guest_ram::GuestRam,
};

/// A target that the balloon cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a balloon of {frames} frames in a guest that has {managed}")]
pub struct TargetError {
    /// Frames asked for.
    pub frames: u64,
    /// Frames that the guest manages.
    pub managed: u64,
}

/// A balloon device as its host sees it; clones are the same device.
#[derive(Clone)]
pub struct HostBalloon {
    runner: Arc<Runner<BalloonDevice>>,
    attached: Arc<AtomicBool>,
    managed: u64,
}

impl HostBalloon {
    /// A device for a machine with this memory; `threaded`: see [`start`](Self::start).
    pub(crate) fn new(
        ram: &GuestRam,
        options: BalloonOptions,
        clock: Arc<Clock>,
        interrupts: Arc<Event>,
        threaded: bool,
    ) -> Result<Self, BalloonOptionsError> {
        let unknown = options.features & !features::SUPPORTED;
        if unknown != 0 {
            return Err(BalloonOptionsError::Features(unknown));
        }
        if !options.queue_max.is_power_of_two() || options.queue_max > 1 << 15 {
            return Err(BalloonOptionsError::QueueSize(options.queue_max));
        }
        let offered = options.features | features::VERSION_1;
        let queues = if offered & features::STATS_VQ != 0 {
            3
        } else {
            2
        };
        let registers = Registers::new(
            DeviceType::MemoryBalloon,
            offered,
            queues,
            options.queue_max,
            CONFIG_BYTES,
            InterruptLine::new(interrupts),
        );
        let end = ram
            .layout()
            .regions()
            .last()
            .map_or(Pfn::new(0), |region| region.end);
        let device = BalloonDevice::new(Arc::clone(ram.shared()), end, options, !threaded);
        Ok(Self {
            runner: Runner::new(device, registers, clock, threaded),
            attached: Arc::default(),
            managed: ram.layout().managed_frames(),
        })
    }

    /// Starts the device's thread.
    pub(crate) fn start(&self, name: &str) -> std::io::Result<DeviceThread> {
        self.runner.start(name)
    }

    /// The device, to be run as virtual time passes.
    pub(crate) fn due(&self) -> Arc<dyn Due> {
        Arc::clone(&self.runner) as Arc<dyn Due>
    }

    /// The driver's end; `None` while a driver has it.
    pub fn transport(&self) -> Option<InProcessTransport> {
        let device = Arc::clone(&self.runner) as Arc<dyn Backend>;
        InProcessTransport::attach(device, &self.attached)
    }

    /// Asks the guest for a balloon of `frames` frames.
    pub fn set_target(&self, frames: u64) -> Result<(), TargetError> {
        match u32::try_from(frames) {
            Ok(target) if frames <= self.managed => {
                self.set_target_unchecked(target);
                Ok(())
            }
            _ => Err(TargetError {
                frames,
                managed: self.managed,
            }),
        }
    }

    /// Writes any number as the target: what a broken or hostile host does.
    pub fn set_target_unchecked(&self, frames: u32) {
        let registers = self.runner.registers();
        registers.config().set_word(NUM_PAGES, frames);
        // A driver that is not ready reads the target when it is.
        if registers.status().contains(DeviceStatus::DRIVER_OK) {
            registers
                .interrupt
                .raise(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
        }
    }

    /// Frames that the guest was asked for.
    pub fn target(&self) -> u64 {
        self.runner.registers().config().word(NUM_PAGES).into()
    }

    /// Frames in the balloon, as the driver reports.
    pub fn actual(&self) -> u64 {
        self.runner.registers().config().word(ACTUAL).into()
    }

    /// Frames that the host holds by its own books.
    pub fn held_frames(&self) -> u64 {
        self.runner.device().held().count()
    }

    /// Bytes that the host holds by its own books.
    pub fn held_bytes(&self) -> u64 {
        self.held_frames() << FRAME_SHIFT
    }

    /// Whether the host holds the frame.
    pub fn holds(&self, frame: Pfn) -> bool {
        self.runner.device().held().holds(frame)
    }

    /// What the device has done, and what the driver did wrong.
    pub fn counters(&self) -> BalloonCounters {
        self.runner.device().counters()
    }

    /// Requests from the driver so far, statistics not counted.
    pub fn messages(&self) -> u64 {
        let counters = self.counters();
        counters.inflate_messages + counters.deflate_messages
    }

    /// Asks the guest for fresh statistics; [`statistics`](Self::statistics) has them when the guest answered.
    pub fn request_statistics(&self) {
        self.runner.device().want_statistics();
        self.runner.host_request();
    }

    /// The guest's latest statistics.
    pub fn statistics(&self) -> GuestStatistics {
        self.runner.device().statistics().clone()
    }

    /// The device's interrupt, for a driver's thread to park on.
    pub fn interrupt(&self) -> &InterruptLine {
        &self.runner.registers().interrupt
    }

    /// Whether the device gave up on the driver's rings and waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.runner
            .registers()
            .status()
            .contains(DeviceStatus::DEVICE_NEEDS_RESET)
    }

    /// Makes the device misbehave, or (`None`) behave again. What was delayed is still answered when it is due.
    pub fn set_fault(&self, plan: Option<FaultPlan>) {
        self.runner.device().set_fault(plan);
    }
}

impl core::fmt::Debug for HostBalloon {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HostBalloon")
            .field("target", &self.target())
            .field("actual", &self.actual())
            .finish_non_exhaustive()
    }
}
