//! Segment and interrupt descriptor tables.

use alloc::boxed::Box;
use core::mem::size_of_val;

use spin::Once;
use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::tables::{lidt, load_tss},
    registers::segmentation::{CS, DS, ES, SS, Segment},
    structures::{
        DescriptorTablePointer,
        gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector},
        tss::TaskStateSegment,
    },
};

/// Vectors with an entry: the processor's exceptions and the kernel's interrupts.
pub const VECTORS: usize = 40;
/// Bytes of each of these stacks.
const STACK: usize = 16 << 10;
/// Stack for double faults, machine checks and NMIs, as the current stack may be unusable then.
const IST_FATAL: u16 = 1;
/// Stack for interrupts: the interrupted code may be using the red zone of the current stack.
const IST_INTERRUPT: u16 = 2;
const FIRST_INTERRUPT: usize = 32;

unsafe extern "C" {
    static interrupt_entries: [u64; VECTORS];
}

/// The interrupt descriptor table, the same for all CPUs.
static GATES: Once<[[u64; 2]; VECTORS]> = Once::new();

fn gate(entry: u64, selector: SegmentSelector, stack: u16) -> [u64; 2] {
    // Present, 64-bit interrupt gate.
    let kind = 0x8e00_u64 | u64::from(stack);
    let low =
        entry & 0xffff | u64::from(selector.0) << 16 | kind << 32 | (entry >> 16 & 0xffff) << 48;
    [low, entry >> 32]
}

/// Loads the calling CPU's segments, stacks for interrupts, and gates. Keeps its GS base.
pub fn set_up() {
    let stack = || {
        let stack: &'static mut [u8] = Box::leak(alloc::vec![0_u8; STACK].into_boxed_slice());
        let end = stack.as_ptr() as u64 + STACK as u64;
        VirtAddr::new(end & !15)
    };
    let tss: &'static mut TaskStateSegment = Box::leak(Box::new(TaskStateSegment::new()));
    for index in [IST_FATAL, IST_INTERRUPT] {
        tss.interrupt_stack_table[usize::from(index) - 1] = stack();
    }
    let gdt: &'static mut GlobalDescriptorTable = Box::leak(Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    debug_assert_eq!(code, SegmentSelector::new(1, PrivilegeLevel::Ring0));
    gdt.load();
    // SAFETY: the selectors name the descriptors that were just loaded: flat code and data of ring 0, and a TSS that is
    // never freed. GS is not loaded, as that would clear its base.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
    }
    let gates = GATES.call_once(|| {
        // SAFETY: a constant table in the image (interrupts.s).
        let entries = unsafe { interrupt_entries };
        core::array::from_fn(|vector| {
            let stack = match vector {
                2 | 8 | 18 => IST_FATAL,
                FIRST_INTERRUPT.. => IST_INTERRUPT,
                _ => 0,
            };
            gate(entries[vector], code, stack)
        })
    });
    let pointer = DescriptorTablePointer {
        limit: size_of_val(gates) as u16 - 1,
        base: VirtAddr::from_ptr(gates),
    };
    // SAFETY: the table is static, and the handlers that its entries name preserve all registers.
    unsafe { lidt(&pointer) };
}
