//! TLB shoot-down: drops translations on all CPUs.
//!
//! A CPU that has a program's root table loaded may have its translations in the TLB; one without has none, because
//! loading the kernel's root dropped them all. So only those that have one loaded are interrupted. They drop
//! everything, and unless they are accessing a program's memory at that moment, they load the kernel's root: the next
//! shoot-down skips them.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;
use x86_64::{
    PhysAddr,
    registers::control::{Cr3, Cr3Flags},
    structures::paging::PhysFrame,
};

use super::{
    apic,
    cpu::{self, Cpu, MAX_CPUS},
};

/// Physical address of the kernel's root table.
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);
/// Interrupts sent to other CPUs for shoot-downs.
static SENT: AtomicU64 = AtomicU64::new(0);

/// Sets the kernel's root table and loads it.
///
/// # Safety
///
/// The table at `root` maps the kernel and the window, for ever.
pub unsafe fn set_kernel_root(root: u64) {
    // Relaxed, here and below: set once, before other CPUs are woken by writes to device registers.
    KERNEL_ROOT.store(root, Ordering::Relaxed);
    load(root);
}

/// The kernel's root table.
pub fn kernel_root() -> u64 {
    KERNEL_ROOT.load(Ordering::Relaxed)
}

/// Interrupts sent to other CPUs for shoot-downs so far.
pub fn sent() -> u64 {
    SENT.load(Ordering::Relaxed)
}

/// Loads a root table, which drops all translations of the lower half.
pub(super) fn load(root: u64) {
    let frame = PhysFrame::containing_address(PhysAddr::new(root));
    // SAFETY: all roots that are ever loaded, the kernel's and programs', have the kernel's upper half; a program's is
    // kept until no CPU has it loaded.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Loads the kernel's root on the calling CPU, unless it is accessing a program's memory.
pub fn leave_program(cpu: &Cpu) {
    if cpu.root.load(Ordering::Relaxed) != 0 && !cpu.in_user.load(Ordering::Relaxed) {
        load(kernel_root());
        // SeqCst: see `everywhere`. After the load, as this CPU must be interrupted until the program's root is not
        // loaded.
        cpu.root.store(0, Ordering::SeqCst);
    }
}

/// Drops all translations of the lower half on the calling CPU.
fn drop_own(cpu: &Cpu) {
    if cpu.in_user.load(Ordering::Relaxed) {
        let (root, flags) = Cr3::read();
        // SAFETY: the root that is loaded already.
        unsafe { Cr3::write(root, flags) };
    } else {
        leave_program(cpu);
    }
}

/// Called by the interrupt handler.
pub(super) fn interrupted() {
    let cpu = cpu::current();
    // Acquire: pairs with the release in `everywhere`, so that translations replaced before the request are dropped.
    let asked = cpu.asked.load(Ordering::Acquire);
    drop_own(cpu);
    // Release: pairs with the acquire in `everywhere`.
    cpu.done.fetch_max(asked, Ordering::Release);
}

/// Returns when no CPU uses a translation any more that was replaced before the call. Called with interrupts on, as
/// another CPU may request a shoot-down of this one meanwhile.
pub fn everywhere() {
    let own = cpu::current();
    drop_own(own);
    // Dekker, with the store of `root` before the root is loaded (user.rs) and with `AccessSection::enter`: this CPU
    // has replaced an entry and now reads who walks; a walker announces itself and then reads the entry. At least one
    // of them sees the other's store.
    fence(Ordering::SeqCst);
    let mut asked: ArrayVec<(&Cpu, u64), MAX_CPUS> = ArrayVec::new();
    let mut inside: ArrayVec<(&Cpu, u64), MAX_CPUS> = ArrayVec::new();
    for index in (0..cpu::online() as usize).filter(|&index| index != own.id().index()) {
        let other = cpu::of(index);
        if other.root.load(Ordering::SeqCst) != 0 {
            // Release: pairs with the acquire in `interrupted`.
            let ticket = other.asked.fetch_add(1, Ordering::AcqRel) + 1;
            apic::send(other.apic_id.load(Ordering::Relaxed), apic::SHOOT_DOWN);
            SENT.fetch_add(1, Ordering::Relaxed);
            asked.push((other, ticket));
        }
        if let Some(epoch) = other.section.observe() {
            inside.push((other, epoch));
        }
    }
    for (other, ticket) in asked {
        // Acquire: pairs with the release in `interrupted`.
        while other.done.load(Ordering::Acquire) < ticket {
            core::hint::spin_loop();
        }
    }
    for (other, epoch) in inside {
        while !other.section.has_left(epoch) {
            core::hint::spin_loop();
        }
    }
}
