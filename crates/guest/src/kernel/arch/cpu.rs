//! What belongs to one CPU: found through the GS base.

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

/// One CPU's own. Cells are touched by their CPU alone, outside of interrupt handlers; the atomics by others, too.
#[repr(C, align(128))]
pub struct Cpu {
    /// The number, from 0. First, for `current_id`.
    id: Cell<u32>,
    /// The local APIC's number.
    pub apic_id: AtomicU32,
    /// Physical address of the program's root table that CR3 holds; 0: the kernel's own.
    pub root: AtomicU64,
    /// The CPU is between the beginning and the end of touching a program's memory, faults included.
    pub in_user: AtomicBool,
    /// How to serve a fault of the present access.
    pub on_fault: UnsafeCell<Option<super::user::OnFault>>,
    /// Inside a software walk of page tables.
    pub section: AccessSection,
    /// Shoot-downs asked of this CPU, and done by it.
    pub asked: AtomicU64,
    /// See `asked`.
    pub done: AtomicU64,
    /// Interrupts that may have changed what a waiter waits for.
    pub interrupts: AtomicU64,
    /// Page faults served.
    pub faults: AtomicU64,
    /// The interrupts that the last idle moment knew of.
    pub seen: Cell<u64>,
    /// When this CPU began to wait, and when it last did.
    pub waiting: Cell<(u64, u64)>,
    /// Which program of its engine it runs.
    pub program: Current,
}

// SAFETY: see the struct: cells, and `program`, belong to the CPU whose entry it is, and are not used by its interrupt handlers.
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

    /// Keeps the local APIC's number, by which others send interrupts.
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
/// CPUs that run.
static ONLINE: AtomicU32 = AtomicU32::new(1);
/// Added to `ONLINE` when no more CPUs are let in.
const CLOSED: u32 = 1 << 16;

/// Makes the calling CPU number `index`. Once for each, before anything else here is called on it.
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

/// The calling CPU's own.
#[inline]
pub fn current() -> &'static Cpu {
    &CPUS[current_id().index()]
}

/// Number `index`'s own.
pub fn of(index: usize) -> &'static Cpu {
    &CPUS[index]
}

/// The CPUs that run.
pub fn online() -> u32 {
    // Acquire: pairs with the release in `came_online`.
    ONLINE.load(Ordering::Acquire) % CLOSED
}

/// One more runs, its own set up; `false` for one that comes too late.
pub fn came_online() -> bool {
    // Release: pairs with the acquire in `online`.
    let one_more = |count: u32| (count < CLOSED).then_some(count + 1);
    ONLINE
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
        .is_ok()
}

/// Lets no more CPUs in; gives how many there are.
pub fn close() -> u32 {
    ONLINE.fetch_or(CLOSED, Ordering::AcqRel) % CLOSED
}
