//! A machine: builds memory, CPUs, clock and devices, and tears them down.

use core::ops::Range;
use std::{io, sync::Arc};

use dirigible_frames::{FRAME_SHIFT, FRAME_SIZE, Pfn};
use thiserror::Error;

use crate::{
    clock::Clock,
    devices::{
        balloon_host::HostBalloon,
        balloon_options::{BalloonOptions, BalloonOptionsError},
        disk_host::HostDisk,
        disk_options::{DiskOptions, DiskOptionsError},
        interrupt::Event,
        runner::DeviceThread,
    },
    host_facts::available_bytes,
    memory::{
        guest_ram::{Backing, GuestRam, RamError},
        layout::{LayoutError, RamLayout},
    },
    platform::{HostedPlatform, Mode},
};

/// Most CPUs a machine can have.
pub const MAX_CPUS: u16 = 256;

/// A machine that cannot be built.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The memory's size or regions.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// More memory than the host has to spare.
    #[error(
        "guest memory of {} MiB is more than the {} MiB that this host can spare",
        .bytes >> 20, .available >> 20
    )]
    HostTooSmall {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that the host can spare.
        available: u64,
    },
    /// The number of CPUs.
    #[error("a machine with {cpus} CPUs; it must have 1 to {MAX_CPUS}")]
    Cpus {
        /// CPUs asked for.
        cpus: u16,
    },
    /// A host whose pages are not the guest's frames.
    #[error("the host's pages have {bytes} bytes; the hosted machine needs {FRAME_SIZE}")]
    PageSize {
        /// Bytes of the host's page.
        bytes: usize,
    },
    /// The memory could not be had.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A balloon device.
    #[error(transparent)]
    Balloon(#[from] BalloonOptionsError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskOptionsError),
    /// A device's thread could not be started.
    #[error("the thread of a device does not start: {0}")]
    Thread(#[source] io::Error),
}

/// What a machine is to be.
#[derive(Clone, Debug)]
pub struct MachineBuilder {
    memory: Memory,
    cpus: u16,
    mode: Mode,
    backing: Backing,
    balloons: Vec<BalloonOptions>,
    disks: Vec<DiskOptions>,
}

/// How guest memory lies.
#[derive(Clone, Debug)]
enum Memory {
    Contiguous(u64),
    Regions(Vec<Range<Pfn>>),
}

impl MachineBuilder {
    /// A deterministic machine with one CPU, `bytes` of memory from address 0, and no devices.
    pub fn new(bytes: u64) -> Self {
        Self {
            memory: Memory::Contiguous(bytes),
            cpus: 1,
            mode: Mode::Deterministic,
            backing: Backing::BasePages,
            balloons: Vec::new(),
            disks: Vec::new(),
        }
    }

    /// Memory in these regions instead: ascending, with holes between them.
    pub fn regions(mut self, regions: &[Range<Pfn>]) -> Self {
        self.memory = Memory::Regions(regions.to_vec());
        self
    }

    /// How many CPUs: threads that work with the memory manager at a time.
    pub fn cpus(mut self, cpus: u16) -> Self {
        self.cpus = cpus;
        self
    }

    /// Virtual time and one thread, or real time and many.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// What size of host page may back guest memory.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// Adds a balloon device.
    pub fn balloon(mut self, options: BalloonOptions) -> Self {
        self.balloons.push(options);
        self
    }

    /// Adds a disk.
    pub fn disk(mut self, options: DiskOptions) -> Self {
        self.disks.push(options);
        self
    }

    /// Builds the machine.
    pub fn build(self) -> Result<HostedMachine, MachineError> {
        let page = rustix::param::page_size();
        if page != FRAME_SIZE {
            return Err(MachineError::PageSize { bytes: page });
        }
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(MachineError::Cpus { cpus: self.cpus });
        }
        let layout = match self.memory {
            Memory::Contiguous(bytes) => RamLayout::contiguous(bytes)?,
            Memory::Regions(regions) => RamLayout::with_regions(&regions)?,
        };
        let bytes = layout.total_frames() << FRAME_SHIFT;
        let available = available_bytes();
        if bytes > available {
            return Err(MachineError::HostTooSmall { bytes, available });
        }

        let ram = GuestRam::new(layout, self.backing)?;
        let threaded = self.mode == Mode::Threads;
        let clock = Arc::new(if threaded {
            Clock::real_time()
        } else {
            Clock::virtual_time()
        });
        let interrupts = Arc::<Event>::default();
        let balloons = self
            .balloons
            .into_iter()
            .map(|options| {
                let (clock, interrupts) = (Arc::clone(&clock), Arc::clone(&interrupts));
                HostBalloon::new(&ram, options, clock, interrupts, threaded)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let disks = self
            .disks
            .into_iter()
            .map(|options| {
                let (clock, interrupts) = (Arc::clone(&clock), Arc::clone(&interrupts));
                HostDisk::new(&ram, options, clock, interrupts, threaded)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut threads = Vec::new();
        if threaded {
            for (index, balloon) in balloons.iter().enumerate() {
                let thread = balloon.start(&format!("balloon{index}"));
                threads.push(thread.map_err(MachineError::Thread)?);
            }
            for (index, disk) in disks.iter().enumerate() {
                let thread = disk.start(&format!("disk{index}"));
                threads.push(thread.map_err(MachineError::Thread)?);
            }
        }
        let platform = HostedPlatform::new(ram, self.cpus, self.mode, clock, interrupts);
        let dues = balloons.iter().map(HostBalloon::due);
        platform.set_dues(dues.chain(disks.iter().map(HostDisk::due)).collect());
        Ok(HostedMachine {
            _threads: threads,
            balloons,
            disks,
            platform,
        })
    }
}

/// A machine in this process. Dropping it stops its devices and waits for their threads; memory that a driver still
/// holds lives on until the driver gives it back.
#[derive(Debug)]
pub struct HostedMachine {
    /// First, so that they end first.
    _threads: Vec<DeviceThread>,
    balloons: Vec<HostBalloon>,
    disks: Vec<HostDisk>,
    platform: HostedPlatform,
}

impl HostedMachine {
    /// Its platform.
    pub fn platform(&self) -> &HostedPlatform {
        &self.platform
    }

    /// Its memory.
    pub fn ram(&self) -> &GuestRam {
        self.platform.ram()
    }

    /// Its balloon devices, in the order in which they were added.
    pub fn balloons(&self) -> &[HostBalloon] {
        &self.balloons
    }

    /// Its disks, in the order in which they were added.
    pub fn disks(&self) -> &[HostDisk] {
        &self.disks
    }
}
