//! Brings the machine up: page tables, heap, interrupts, clock, the other CPUs.
#![allow(unsafe_code)]

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt::Display, mem::MaybeUninit, ops::Range};

use arrayvec::ArrayVec;
use dirigible::{
    boot::{BootConfig, BootPlan, Booted, Tables},
    memory_map::MapEntry,
};
use dirigible_disk::{DiskConfig, VirtioDisk};
use dirigible_frames::Pfn;
use dirigible_workload::protocol::Message;
use thiserror::Error;
use virtio_drivers::transport::DeviceType;

use super::{
    arch::{
        apic,
        clock::{self, ClockError},
        cpu, descriptors, heap, kernel_map, physical, shoot_down,
        smp::{self, Missing},
        start_info::StartInfo,
    },
    console::send,
    hal::GuestHal,
    memory::{Layout, MAX_REGIONS, TooLittle},
    platform::GuestPlatform,
    transport::{self, LineTransport},
};

/// Heap before it is known how much memory the task leaves to the kernel.
const FIRST_HEAP: u64 = 8 << 20;

/// The driver of a disk over PCI.
///
/// The kernel's interrupt handler takes its line down, and wakes the CPUs that wait in `relax`: whoever waits for a
/// request looks again. No more is to be done for an interrupt.
pub type Disk = VirtioDisk<'static, GuestHal, LineTransport, GuestPlatform>;

/// Why the machine did not come up.
#[derive(Debug, Error)]
pub enum BringUpError {
    /// There is too little memory.
    #[error(transparent)]
    Memory(#[from] TooLittle),
    /// The clock could not be calibrated.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Not all CPUs came online.
    #[error(transparent)]
    Cpus(#[from] Missing),
}

/// A machine with page tables, a heap, and one CPU.
pub struct Machine {
    first: Layout,
    root: u64,
}

/// A machine that is completely up.
pub struct Guest {
    /// The frames that the allocator manages.
    pub managed: ArrayVec<Range<Pfn>, MAX_REGIONS>,
    /// The kernel's root table. The root tables of all address spaces copy its upper half.
    pub kernel_root: Pfn,
    /// Number of CPUs that are online.
    pub cpus: u16,
}

impl Machine {
    /// Sets up the page tables and the first part of the heap.
    ///
    /// # Errors
    ///
    /// There is too little memory for them.
    pub fn begin(info: &StartInfo) -> Result<Self, TooLittle> {
        let first = Layout::new(
            &info.ram,
            kernel_map::image_end(),
            None,
            FIRST_HEAP + (4 << 20),
        )?;
        let mut tables = first.tables.clone();
        // SAFETY: the layout reserves these frames for the tables, they lie below 4 GiB, and the boot tables stay
        // loaded until `set_kernel_root`.
        let root = unsafe { kernel_map::build(&info.ram, &mut tables) };
        // SAFETY: the new tables map the kernel, its stack and the window, and are never freed.
        unsafe { shoot_down::set_kernel_root(root) };
        let heap = first.own.start..first.own.start + FIRST_HEAP;
        // SAFETY: the layout reserves this memory for the heap, and this is the only call.
        unsafe { heap::set_up(heap) };
        Ok(Self { first, root })
    }

    /// Brings up the rest: the whole heap, interrupts, the clock, the other CPUs. See [`Layout::new`] for `wanted` and
    /// `keep`.
    ///
    /// # Errors
    ///
    /// There is too little memory, the clock cannot be calibrated, or not all CPUs come online.
    pub fn bring_up(
        self,
        info: &StartInfo,
        wanted: Option<u64>,
        keep: u64,
    ) -> Result<Guest, BringUpError> {
        let layout = Layout::new(&info.ram, kernel_map::image_end(), wanted, keep)?;
        let heap_end = self.first.own.start + FIRST_HEAP;
        let more = layout.own.end.saturating_sub(heap_end);
        // SAFETY: the kernel's own memory begins where it began in the first layout, so this extends the heap into
        // memory that nothing else uses. `self` is consumed, so it happens once.
        unsafe { heap::extend(more as usize) };
        let kernel_root = Pfn::containing(self.root);
        let mut reachable: ArrayVec<Range<Pfn>, { MAX_REGIONS + 1 }> =
            layout.managed.iter().cloned().collect();
        reachable.push(kernel_root..kernel_root.plus(1));
        physical::set_reachable(&reachable);

        descriptors::set_up();
        cpu::current().set_apic_id(apic::set_up_local());
        let tsc_mhz = clock::calibrate()?;
        apic::set_up_lines();
        clock::start_tick();
        x86_64::instructions::interrupts::enable();
        // SAFETY: the trampoline's page is below 1 MiB, and the layout uses no memory there. The start info was read
        // before.
        let cpus = unsafe { smp::start() }?;
        clock::restart();
        send(&Message::Ready {
            cpus: u64::from(cpus),
            tsc_mhz,
            managed: layout
                .managed
                .iter()
                .map(|range| range.end.get() - range.start.get())
                .sum(),
        });
        Ok(Guest {
            managed: layout.managed,
            kernel_root,
            cpus: cpus as u16,
        })
    }
}

impl Guest {
    /// Boots an allocator over all managed memory; its tables lie on the kernel's heap and stay there.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings.
    pub fn boot(&self, config: BootConfig<'_>) -> Result<Booted<'static>, String> {
        let plan = self.plan(config)?;
        let memory = alloc::vec![MaybeUninit::uninit(); plan.bytes()].leak();
        plan.boot(memory, &GuestPlatform)
            .map_err(|error| error.to_string())
    }

    /// The machine's first disk, set up anew; `None` if it has none. There is one driver of it at a time: drop the
    /// former first.
    ///
    /// # Errors
    ///
    /// There is one that cannot be used.
    pub fn disk(&self, config: DiskConfig) -> Result<Option<Disk>, String> {
        let unusable = |error: &dyn Display| alloc::format!("the disk cannot be used: {error}");
        let Some(found) = transport::find(DeviceType::Block).next() else {
            return Ok(None);
        };
        let transport = found.map_err(|error| unusable(&error))?;
        let disk = Disk::new(transport, &GuestPlatform, config);
        disk.map(Some).map_err(|error| unusable(&error))
    }

    /// What follows from the managed memory, with tables apart from it.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings.
    pub fn plan<'c>(&self, config: BootConfig<'c>) -> Result<BootPlan<'c>, String> {
        let map: Vec<MapEntry> = self.managed.iter().map(MapEntry::usable).collect();
        let config = BootConfig {
            tables: Tables::Apart,
            ..config
        };
        BootPlan::new(&map, config).map_err(|error| error.to_string())
    }
}
