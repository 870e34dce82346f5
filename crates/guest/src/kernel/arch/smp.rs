//! The other CPUs: started by INIT and SIPI, then given work that all CPUs do together.

use alloc::boxed::Box;
use core::{
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use dirigible_frames::CpuId;
use spin::Mutex;
use x86_64::instructions::port::Port;

use super::{
    apic, clock,
    cpu::{self, MAX_CPUS},
    descriptors, interrupts,
    physical::in_window,
    shoot_down,
};

/// Bytes of each CPU's stack.
const STACK: usize = 256 << 10;
/// Physical address to which the trampoline is copied. boot.s has the same number.
const TRAMPOLINE: u64 = 0x8000;
/// Entries in the table of stacks. A CPU takes the next one; there are at most 256, as APIC numbers are bytes.
const STACKS: usize = 256;
/// How long to wait for CPUs to come online, in nanoseconds.
const TIMEOUT: u64 = 5_000_000_000;
/// The same if the number of CPUs is unknown. Those that are online by then are all.
const TIMEOUT_IF_UNKNOWN: u64 = 200_000_000;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static mut secondary_stacks: *const u64;
}

/// Work for all CPUs.
type Work = *const (dyn Fn(CpuId) + Sync + 'static);

/// A pointer that other CPUs may dereference.
struct Shared(Work);

// SAFETY: the target is `Sync`, and `on_all` keeps it alive until every CPU is done.
unsafe impl Send for Shared {}

static WORK: Mutex<Option<Shared>> = Mutex::new(None);
/// How often work was given out.
static GIVEN: AtomicU64 = AtomicU64::new(0);
/// Number of other CPUs that are done with the current work.
static DONE: AtomicU64 = AtomicU64::new(0);

/// The number of CPUs, as the hypervisor reports it; `None` if it cannot be asked.
fn expected() -> Option<u32> {
    let (mut selector, mut data) = (Port::<u16>::new(0x510), Port::<u8>::new(0x511));
    // SAFETY: QEMU's firmware configuration device. If it is absent, the ports read as ones.
    let mut bytes = |key: u16, count: usize| unsafe {
        selector.write(key);
        let mut bytes = [0; 4];
        bytes
            .iter_mut()
            .take(count)
            .for_each(|byte| *byte = data.read());
        bytes
    };
    let is_qemu = &bytes(0, 4) == b"QEMU";
    is_qemu.then(|| u32::from_le_bytes(bytes(5, 2)))
}

/// Not all CPUs came online in time.
#[derive(Debug, thiserror::Error)]
#[error("{came} of {expected} CPUs came within {} ms: the host is too busy, or has too few for so many", TIMEOUT / 1_000_000)]
pub struct Missing {
    came: u32,
    expected: u32,
}

/// Starts the other CPUs and waits until they are online. Gives the number of CPUs that are online then.
///
/// # Errors
///
/// Not all CPUs came online in time. Those that are missing cannot come online later.
///
/// # Safety
///
/// The page at 0x8000 is RAM that nothing uses, and the boot tables are unchanged.
pub unsafe fn start() -> Result<u32, Missing> {
    let stacks: &'static mut [u64; STACKS] = Box::leak(Box::new([0; STACKS]));
    let reported = expected();
    let expected = reported.unwrap_or(MAX_CPUS as u32).min(MAX_CPUS as u32);
    let timeout = if reported.is_some() {
        TIMEOUT
    } else {
        TIMEOUT_IF_UNKNOWN
    };
    for slot in &mut stacks[1..expected as usize] {
        let stack: &'static mut [u8] = Box::leak(alloc::vec![0_u8; STACK].into_boxed_slice());
        *slot = (stack.as_ptr() as u64 + STACK as u64) & !15;
    }
    let (start, end) = (&raw const trampoline_start, &raw const trampoline_end);
    // SAFETY: the image holds the trampoline between the two symbols, and the caller says that the page is unused. The
    // table of stacks is written before any CPU is started that reads it.
    unsafe {
        let target = in_window(TRAMPOLINE).as_ptr();
        ptr::copy_nonoverlapping(start, target, end.addr() - start.addr());
        secondary_stacks = stacks.as_ptr();
    }
    if expected > 1 {
        apic::init_others();
        clock::spin_for(10_000_000);
        let page = (TRAMPOLINE >> 12) as u8;
        apic::start_others(page);
        clock::spin_for(200_000);
        apic::start_others(page);
        let begun = clock::ticks();
        while cpu::online() < expected && clock::nanoseconds(clock::ticks() - begun) < timeout {
            core::hint::spin_loop();
        }
    }
    let came = cpu::close();
    match reported {
        Some(_) if came != expected => Err(Missing { came, expected }),
        _ => Ok(came),
    }
}

/// Called by boot.s on each of the other CPUs.
// SAFETY: no other symbol of the kernel has this name.
#[unsafe(no_mangle)]
extern "C" fn secondary_main(index: u32) -> ! {
    shoot_down::load(shoot_down::kernel_root());
    cpu::become_cpu(index);
    descriptors::set_up();
    let apic_id = apic::set_up_local();
    let cpu = cpu::current();
    cpu.set_apic_id(apic_id);
    clock::start_tick();
    // Relaxed: no work is given out before this CPU is online.
    let mut seen = GIVEN.load(Ordering::Relaxed);
    if !cpu::came_online() {
        loop {
            x86_64::instructions::interrupts::disable();
            x86_64::instructions::hlt();
        }
    }
    x86_64::instructions::interrupts::enable();
    loop {
        // Acquire: pairs with the release in `on_all`.
        let given = GIVEN.load(Ordering::Acquire);
        if given == seen {
            interrupts::idle();
            continue;
        }
        seen = given;
        let work = WORK.lock().as_ref().map(|shared| shared.0);
        if let Some(work) = work {
            // SAFETY: `on_all` keeps the closure alive until all CPUs are counted in `DONE`.
            unsafe { (*work)(cpu.id()) };
        }
        shoot_down::leave_program(cpu);
        // Release: pairs with the acquire in `on_all`.
        DONE.fetch_add(1, Ordering::Release);
    }
}

/// Runs `work` on every CPU, with the CPU's number, and returns when all are done.
///
/// # Panics
///
/// If the caller is not the first CPU, or runs inside of `work` itself.
pub fn on_all(work: &(dyn Fn(CpuId) + Sync)) {
    assert_eq!(
        cpu::current_id().index(),
        0,
        "only the first CPU gives out work"
    );
    let pointer: *const (dyn Fn(CpuId) + Sync + '_) = work;
    // SAFETY: only the lifetime changes. The pointer is removed below, before the borrow of `work` ends.
    let pointer: Work = unsafe { core::mem::transmute(pointer) };
    let before = WORK.lock().replace(Shared(pointer));
    assert!(before.is_none(), "work was given out inside of work");
    DONE.store(0, Ordering::Relaxed);
    // Release: pairs with the acquire in `secondary_main`.
    GIVEN.fetch_add(1, Ordering::Release);
    let others = cpu::online() as usize - 1;
    for index in 1..=others {
        apic::send(cpu::of(index).apic_id.load(Ordering::Relaxed), apic::WAKE);
    }
    work(cpu::current_id());
    // Acquire: pairs with the release in `secondary_main`.
    while DONE.load(Ordering::Acquire) < others as u64 {
        interrupts::idle();
    }
    *WORK.lock() = None;
}
