//! The machine's parts, brought up in order.
#![allow(unsafe_code)]

use arrayvec::ArrayVec;
use core::ops::Range;
use dirigible_frames::Pfn;
use dirigible_workload::protocol::Message;
use thiserror::Error;

use super::{
    arch::{
        apic,
        clock::{self, NoClock},
        cpu, descriptors, heap, kernel_map, physical, shoot_down,
        smp::{self, Missing},
        start_info::StartInfo,
    },
    memory::{Layout, MAX_REGIONS, TooLittle},
    talk::say,
};

/// Heap before it is known how much memory the task leaves to the kernel.
const FIRST_HEAP: u64 = 8 << 20;

/// Why the machine does not come up.
#[derive(Debug, Error)]
pub enum BringUpError {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] TooLittle),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] NoClock),
    /// CPUs.
    #[error(transparent)]
    Cpus(#[from] Missing),
}

/// A machine with page tables and a heap, and one CPU.
pub struct Machine {
    first: Layout,
    root: u64,
}

/// A machine that is wholly up.
pub struct Guest {
    /// What the allocator is to manage.
    pub managed: ArrayVec<Range<Pfn>, MAX_REGIONS>,
    /// The kernel's root table: the pattern of the upper half of all others.
    pub kernel_root: Pfn,
    /// CPUs that run.
    pub cpus: u16,
}

impl Machine {
    /// Page tables and heap.
    ///
    /// # Errors
    ///
    /// There is too little memory even for them.
    pub fn begin(info: &StartInfo) -> Result<Self, TooLittle> {
        let first = Layout::new(
            &info.ram,
            kernel_map::image_end(),
            None,
            FIRST_HEAP + (4 << 20),
        )?;
        let mut tables = first.tables.clone();
        // SAFETY: the layout gives these frames to nobody else, they lie below 4 GiB, and the boot tables are in force until
        // the next line. The new tables map the kernel, its stack and the window.
        let root = unsafe { kernel_map::build(&info.ram, &mut tables) };
        // SAFETY: as above.
        unsafe { shoot_down::set_kernel_root(root) };
        let heap = first.own.start..first.own.start + FIRST_HEAP;
        // SAFETY: the layout gives this memory to nobody else; this is the only call.
        unsafe { heap::set_up(heap) };
        Ok(Self { first, root })
    }

    /// The rest: all the heap, interrupts, clock, the other CPUs. See [`Layout::new`] for `wanted` and `keep`.
    ///
    /// # Errors
    ///
    /// There is too little memory, no clock, or not all CPUs come.
    pub fn bring_up(
        self,
        info: &StartInfo,
        wanted: Option<u64>,
        keep: u64,
    ) -> Result<Guest, BringUpError> {
        let layout = Layout::new(&info.ram, kernel_map::image_end(), wanted, keep)?;
        let heap_end = self.first.own.start + FIRST_HEAP;
        let more = layout.own.end.saturating_sub(heap_end);
        // SAFETY: the layout begins where the first one did, so this continues the heap, in memory that is nobody else's. `self`
        // is used up: it happens once.
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
        // SAFETY: the page is below 1 MiB, where the layout gives nothing to anybody; the start info was read before.
        let cpus = unsafe { smp::start() }?;
        clock::restart();
        say(&Message::Ready {
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
    /// Memory for an allocator's metadata, `bytes` of it, zeroed.
    pub fn metadata(bytes: usize) -> &'static mut [u8] {
        alloc::vec![0; bytes].leak()
    }
}
