//! Data of each CPU. The GS base points to the calling CPU's.

use core::{
    arch::asm,
    cell::{Cell, UnsafeCell},
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use dirigible::schedule::Current;
use dirigible_frames::AccessSection;
use dirigible_frames::CpuId;
use x86_64::{VirtAddr, registers::model_specific::GsBase};

/// The most CPUs that the kernel uses.
pub const MAX_CPUS: usize = 16;

/// Serves a page fault of a program's memory; gives whether to try the access again.
pub(super) type OnFault = *mut (dyn FnMut() -> bool + 'static);

/// One CPU's data. Only that CPU accesses the cells, and only outside of interrupt handlers. Any CPU may access the
/// atomics.
#[repr(C, align(128))]
pub struct Cpu {
    /// The CPU's number, from 0. The first field, as `current_id` reads it at offset 0.
    id: Cell<u32>,
    /// The local APIC's number.
    pub apic_id: AtomicU32,
    /// Physical address of the program's root table that is loaded; 0 if the kernel's is.
    pub root: AtomicU64,
    /// The CPU is accessing a program's memory, or serving a fault of such an access.
    pub in_user: AtomicBool,
    /// Serves a fault of the current access.
    pub on_fault: UnsafeCell<Option<OnFault>>,
    /// Says whether the CPU is inside a page walk by software.
    pub section: AccessSection,
    /// Shoot-downs requested of this CPU.
    pub asked: AtomicU64,
    /// Shoot-downs that this CPU has done, in the count of `asked`.
    pub done: AtomicU64,
    /// Interrupts after which a waiter must check its condition again.
    pub interrupts: AtomicU64,
    /// Page faults served.
    pub faults: AtomicU64,
    /// The value of `interrupts` that `idle` saw last.
    pub seen: Cell<u64>,
    /// When the current wait began, and when its last step ended.
    pub waiting: Cell<(u64, u64)>,
    /// Which program of its engine it runs.
    pub program: Current,
}

// SAFETY: see the struct: cells, and `program`, belong to the CPU whose entry it is, and are not used by its interrupt
// handlers.
unsafe impl Sync for Cpu {}

impl Cpu {
    const fn new() -> Self {
        Self {
            id: Cell::new(0),
            apic_id: AtomicU32::new(0),
            root: AtomicU64::new(0),
            in_user: AtomicBool::new(false),
            on_fault: UnsafeCell::new(None),
            section: AccessSection::new(),
            asked: AtomicU64::new(0),
            done: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            seen: Cell::new(0),
            waiting: Cell::new((0, 0)),
            program: Current::new(),
        }
    }

    /// Sets the local APIC's number, to which others send interrupts.
    pub fn set_apic_id(&self, apic_id: u32) {
        // Relaxed: read after the CPU has come online.
        self.apic_id.store(apic_id, Ordering::Relaxed);
    }

    /// The CPU's number.
    pub fn id(&self) -> CpuId {
        CpuId::new(self.id.get() as u16)
    }
}

static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];
/// Number of CPUs that are online.
static ONLINE: AtomicU32 = AtomicU32::new(1);
/// Bit of `ONLINE`: no more CPUs may come online.
const CLOSED: u32 = 1 << 16;

/// Makes the calling CPU number `index`. Called once on each CPU, before anything else in this module.
pub fn become_cpu(index: u32) {
    let cpu = &CPUS[index as usize];
    cpu.id.set(index);
    GsBase::write(VirtAddr::from_ptr(cpu));
}

/// The calling CPU's number.
#[inline]
pub fn current_id() -> CpuId {
    let id: u32;
    // SAFETY: the GS base is the address of a `Cpu`, whose first field is its number (`become_cpu`, `repr(C)`).
    unsafe { asm!("mov {:e}, gs:[0]", out(reg) id, options(nostack, preserves_flags, readonly)) };
    CpuId::new(id as u16)
}

/// The calling CPU's data.
#[inline]
pub fn current() -> &'static Cpu {
    &CPUS[current_id().index()]
}

/// The data of CPU `index`.
pub fn of(index: usize) -> &'static Cpu {
    &CPUS[index]
}

/// Number of CPUs that are online.
pub fn online() -> u32 {
    // Acquire: pairs with the release in `came_online`.
    ONLINE.load(Ordering::Acquire) % CLOSED
}

/// Counts the calling CPU as online; `false` if it comes after [`close`]. Its data is set up.
pub fn came_online() -> bool {
    // Release: pairs with the acquire in `online`.
    let one_more = |count: u32| (count < CLOSED).then_some(count + 1);
    ONLINE
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
        .is_ok()
}

/// Ends the start of CPUs: no more may come online. Gives the number of those that have.
pub fn close() -> u32 {
    ONLINE.fetch_or(CLOSED, Ordering::AcqRel) % CLOSED
}
