//! Access to programs' memory by the hardware: at virtual addresses, through the page tables in CR3, with page faults.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::interrupts as flag;

use super::{
    cpu::{self, Cpu, OnFault},
    exceptions::{self, Frame},
    shoot_down,
};

/// The lower half ends here.
const LOWER_HALF: u64 = 1 << 47;

unsafe extern "C" {
    static user_begin: u8;
    static user_end: u8;
    static user_failed: u8;
    fn user_store(address: u64, value: u64) -> u32;
    fn user_load_lines(address: u64, out: *mut u64) -> u32;
    fn user_load_word(address: u64, out: *mut u64) -> u32;
}

/// A fault of a program's memory that waits, taken off its CPU so that others can touch theirs.
pub struct Suspended {
    root: u64,
    on_fault: OnFault,
}

/// The program that runs is about to wait: if it is inside a fault, takes the access off its CPU.
pub fn suspend(cpu: &Cpu) -> Option<Suspended> {
    // SAFETY: the field is its CPU's alone, and its fault handler waits, or does not run.
    let on_fault = unsafe { (*cpu.on_fault.get()).take() }?;
    let root = cpu.root.load(Ordering::Relaxed);
    // SeqCst: only this CPU's own interrupt handler reads it. From here on a shoot-down may take the root from us.
    cpu.in_user.store(false, Ordering::SeqCst);
    Some(Suspended { root, on_fault })
}

/// The program goes on that was about to wait.
pub fn go_on(cpu: &Cpu, suspended: Option<Suspended>) {
    if let Some(Suspended { root, on_fault }) = suspended {
        enter(cpu, root);
        set_on_fault(cpu, Some(on_fault));
    }
}

/// Runs `access`, which calls one of the routines above for addresses in the lower half, with the tables at `root`
/// loaded.
fn with_root(root: u64, on_fault: &mut dyn FnMut() -> bool, access: impl FnOnce() -> u32) -> bool {
    let cpu = cpu::current();
    enter(cpu, root);
    let on_fault: *mut (dyn FnMut() -> bool + '_) = on_fault;
    // SAFETY: only the lifetime changes. The pointer is taken out again below, before `on_fault` ends, and is used by
    // this CPU's fault handler alone, while `access` runs. Where the program waits inside a fault, `suspend` keeps it
    // on the program's own stack, above this frame.
    let on_fault: OnFault = unsafe { core::mem::transmute(on_fault) };
    set_on_fault(cpu, Some(on_fault));
    let well = access() == 0;
    set_on_fault(cpu, None);
    // SeqCst: only this CPU's own interrupt handler reads it, see `enter`.
    cpu.in_user.store(false, Ordering::SeqCst);
    well
}

/// The tables at `root` are loaded, and stay so until `in_user` is cleared.
fn enter(cpu: &Cpu, root: u64) {
    if cpu.root.load(Ordering::Relaxed) != root {
        // Another program's root goes first, as long as a shoot-down may take it from us: that program may be at its
        // end, and while `in_user` is set a shoot-down leaves CR3 as it is.
        shoot_down::leave_program(cpu);
    }
    // Before the look at `root`: from here on a shoot-down leaves us the root.
    // SeqCst: the interrupt handler runs on this CPU, so order as in the program is all that is needed.
    let nested = cpu.in_user.swap(true, Ordering::SeqCst);
    assert!(
        !nested,
        "a fault of a program's memory touched a program's memory"
    );
    if cpu.root.load(Ordering::Relaxed) != root {
        // SeqCst, and before the load: see `shoot_down::everywhere`.
        cpu.root.store(root, Ordering::SeqCst);
        shoot_down::load(root);
    }
}

fn set_on_fault(cpu: &Cpu, on_fault: Option<OnFault>) {
    // SAFETY: only this CPU accesses the field, and its fault handler does not run now.
    unsafe { *cpu.on_fault.get() = on_fault };
}

fn is_program(address: u64, bytes: u64) -> bool {
    address.is_multiple_of(8) && address <= LOWER_HALF - bytes
}

/// Writes `value` at `address` of the program whose root table is at `root`. `false` if `address` is not a program's,
/// or a fault was not served.
pub fn store(root: u64, address: u64, value: u64, on_fault: &mut dyn FnMut() -> bool) -> bool {
    // SAFETY: the address is a program's: no Rust object is mapped there. A fault is served, or ends the routine.
    is_program(address, 8) && with_root(root, on_fault, || unsafe { user_store(address, value) })
}

/// Reads the first word of each cache line of the page at `address`. Otherwise as [`store`].
pub fn load_lines(
    root: u64,
    address: u64,
    out: &mut [u64; 64],
    on_fault: &mut dyn FnMut() -> bool,
) -> bool {
    // SAFETY: as in `store`. The routine writes 64 words to `out`.
    is_program(address, 4096)
        && with_root(root, on_fault, || unsafe {
            user_load_lines(address, out.as_mut_ptr())
        })
}

/// Reads the word at `address`. `None` where [`store`] gives `false`.
pub fn load_word(root: u64, address: u64, on_fault: &mut dyn FnMut() -> bool) -> Option<u64> {
    let mut word = 0;
    // SAFETY: as in `store`. The routine writes one word.
    let succeeded = is_program(address, 8)
        && with_root(root, on_fault, || unsafe {
            user_load_word(address, &raw mut word)
        });
    succeeded.then_some(word)
}

/// Reads kernel address `address`, for the test of a fault that nothing serves.
pub fn touch_kernel(address: u64) {
    // SAFETY: reads one word. If nothing is mapped there, the fault ends the machine, as the test wants.
    let _ = unsafe { (address as usize as *const u64).read_volatile() };
}

/// Page faults served so far, on all CPUs.
pub fn faults() -> u64 {
    (0..cpu::online() as usize)
        .map(|index| cpu::of(index).faults.load(Ordering::Relaxed))
        .sum()
}

/// Called by interrupts.s for page faults.
// SAFETY: no other symbol of the kernel has this name.
#[unsafe(no_mangle)]
extern "C" fn fault_main(frame: &mut Frame) {
    let address = x86_64::registers::control::Cr2::read_raw();
    let routines = (&raw const user_begin).addr() as u64..(&raw const user_end).addr() as u64;
    let cpu = cpu::current();
    // SAFETY: only this CPU accesses the field.
    let on_fault = unsafe { *cpu.on_fault.get() };
    let in_routine = routines.contains(&frame.rip) && address < LOWER_HALF;
    // Present or not, read or write. Any other bit (such as a reserved bit) means a broken table: the fault would
    // repeat for ever.
    let ordinary = frame.error & !0b11 == 0;
    let (true, true, Some(on_fault)) = (in_routine, ordinary, on_fault) else {
        exceptions::fatal(frame, Some(address));
    };
    count(&cpu.faults);
    // Interrupts are on, as serving the fault may wait for other CPUs and for the host.
    flag::enable();
    // SAFETY: `with_root` keeps the closure alive while the routine that has faulted runs, and calls nothing else
    // meanwhile. The program may wait in it; its CPU is the same afterwards.
    let again = unsafe { (*on_fault)() };
    flag::disable();
    if !again {
        frame.rip = (&raw const user_failed).addr() as u64;
    }
}

/// Counts one more, in a counter that only this CPU writes.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
