//! The host's side of a disk.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
};

use virtio_drivers::transport::{DeviceStatus, DeviceType};

use crate::{
    clock::{Clock, Due},
    devices::{
        disk_device::{CAPACITY, CONFIG_BYTES, DiskCounters, DiskDevice, MAX_PIECES, SEG_MAX},
        disk_faults::DiskFaultPlan,
        disk_file::DiskFile,
        disk_options::{DiskOptions, DiskOptionsError, SECTOR},
        interrupt::{Event, InterruptLine},
        registers::Registers,
        runner::{Backend, DeviceThread, Runner},
        transport::InProcessTransport,
    },
    memory::guest_ram::GuestRam,
};

/// Feature: the configuration says how many pieces a request may have.
const FEATURE_SEG_MAX: u64 = 1 << 2;
/// Feature: indirect descriptors.
const FEATURE_INDIRECT: u64 = 1 << 28;
/// Feature: the device follows version 1 of the standard.
const FEATURE_VERSION_1: u64 = 1 << 32;

/// A disk as its host sees it; clones are the same device.
#[derive(Clone)]
pub struct HostDisk {
    runner: Arc<Runner<DiskDevice>>,
    attached: Arc<AtomicBool>,
    bytes: u64,
}

impl HostDisk {
    /// A device for a machine with this memory; `threaded`: see [`start`](Self::start).
    pub(crate) fn new(
        ram: &GuestRam,
        options: DiskOptions,
        clock: Arc<Clock>,
        interrupts: Arc<Event>,
        threaded: bool,
    ) -> Result<Self, DiskOptionsError> {
        options.check()?;
        let bytes = options.bytes;
        let directory = options.directory.unwrap_or_else(std::env::temp_dir);
        let file = DiskFile::new(&directory, bytes)
            .map_err(|source| DiskOptionsError::File { directory, source })?;
        let indirect = if options.indirect {
            FEATURE_INDIRECT
        } else {
            0
        };
        let registers = Registers::new(
            DeviceType::Block,
            FEATURE_VERSION_1 | FEATURE_SEG_MAX | indirect,
            1,
            options.queue_max,
            CONFIG_BYTES,
            InterruptLine::new(interrupts),
        );
        let sectors = bytes / SECTOR;
        registers.config().set_word(CAPACITY, sectors as u32);
        let high = (sectors >> 32) as u32;
        registers.config().set_word(CAPACITY + 1, high);
        registers.config().set_word(SEG_MAX, MAX_PIECES as u32);
        let speed = (!threaded).then_some(options.speed_thousandths);
        let ram = Arc::clone(ram.shared());
        let device = DiskDevice::new(ram, file, bytes, speed, options.faults);
        Ok(Self {
            runner: Runner::new(device, registers, clock, threaded),
            attached: Arc::default(),
            bytes,
        })
    }

    /// Starts the device's thread.
    pub(crate) fn start(&self, name: &str) -> io::Result<DeviceThread> {
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

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the device has done, and what the driver did wrong.
    pub fn counters(&self) -> DiskCounters {
        self.runner.device().counters()
    }

    /// Requests that the device has and has not answered, without those that it never will.
    pub fn in_flight(&self) -> usize {
        self.runner.device().in_flight()
    }

    /// Reads what is on the disk now.
    ///
    /// # Errors
    /// Beyond the end, or when the host's file cannot be read.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.runner.device().file().read(offset, out)
    }

    /// Changes what is on the disk, behind the driver's back.
    ///
    /// # Errors
    /// Beyond the end, or when the host's file cannot be written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.runner.device().file().write(offset, bytes)
    }

    /// Bytes that the disk takes on the host: of what was never written it takes none.
    ///
    /// # Errors
    /// When the host does not say it.
    pub fn stored_bytes(&self) -> io::Result<u64> {
        self.runner.device().file().stored_bytes()
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

    /// Makes the device misbehave from now on, or (with no plan) behave again. The first plan that has a fault for a
    /// request wins; all of them count it.
    pub fn set_faults(&self, faults: Vec<DiskFaultPlan>) {
        self.runner.device().set_faults(faults);
    }

    /// Makes the device ignore resets, or take them again: it goes on with the requests that it has.
    pub fn ignore_resets(&self, ignore: bool) {
        self.runner.device().set_deaf(ignore);
    }

    /// Says another size to drivers that ask from now on: what a hostile host does. The disk stays as large as it is.
    pub fn claim_sectors(&self, sectors: u64) {
        let config = self.runner.registers().config();
        config.set_word(CAPACITY, sectors as u32);
        config.set_word(CAPACITY + 1, (sectors >> 32) as u32);
    }
}

impl core::fmt::Debug for HostDisk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HostDisk")
            .field("bytes", &self.bytes)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
