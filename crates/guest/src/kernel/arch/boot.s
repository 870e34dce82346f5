# From the hypervisor's entry to the first line of Rust, for the first CPU and for the others.

    .section .note.Xen, "a", @note
    .align 4
    .long 4                         # length of the name
    .long 8                         # length of the descriptor
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

# The boot tables: the first 4 GiB one to one and in the window, and the first GiB at the kernel's addresses. With pages
# of 2 MiB, which every x86-64 has.
    .section .boot.data, "aw"
    .align 4096
    .global boot_pml4
boot_pml4:
    .quad boot_pdpt + 3
    .fill 255, 8, 0
    .quad boot_pdpt + 3             # 0xffff800000000000
    .fill 254, 8, 0
    .quad boot_kernel_pdpt + 3      # 0xffffff8000000000
boot_pdpt:
    .quad boot_pd + 3, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
    .fill 508, 8, 0
boot_kernel_pdpt:
    .fill 510, 8, 0
    .quad boot_pd + 3               # 0xffffffff80000000
    .quad 0
boot_pd:
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0x83
    .set page, page + 1
    .endr
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        # 64-bit code
    .quad 0x00cf92000000ffff        # data
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

    .section .boot.text, "ax"
    .code32
    .global pvh_start
pvh_start:                          # paging off, %ebx: hvm_start_info
    cli
    cld
    movl %ebx, %edi
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x6a0, %eax                # PAE, PGE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x900, %eax                # LME, NXE
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax          # caches on
    andl $~0xc, %eax                # EM, TS off
    orl $0x80010023, %eax           # PG, WP, NE, MP, PE
    movl %eax, %cr0
    lgdtl boot_gdt_pointer
    ljmpl $8, $boot_long
    .code64
boot_long:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movabsq $boot_high, %rax
    jmpq *%rax

    .section .text.boot, "ax"
    .code64
boot_high:
    movabsq $boot_stack_end, %rsp
    movl %edi, %edi
    xorl %ebp, %ebp
    pushq $0                        # ends the chain of frames
    pushq $0
    callq kernel_main
    ud2

# The entry of a CPU that was started by INIT and SIPI. Copied to TRAMPOLINE, below 1 MiB.
    .set TRAMPOLINE, 0x8000
    .section .rodata.trampoline, "a"
    .global trampoline_start
    .global trampoline_end
trampoline_start:
    .code16
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl TRAMPOLINE + (trampoline_gdt_pointer - trampoline_start)
    movl $0x6a0, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl $0x80010033, %eax          # PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmpl $8, $(TRAMPOLINE + (trampoline_long - trampoline_start))
    .code64
trampoline_long:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movabsq $secondary_high, %rax
    jmpq *%rax
    .align 4
trampoline_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
trampoline_end:

    .section .text.boot, "ax"
    .code64
secondary_high:
    movl $1, %edi                   # the next number, atomically: CPUs start together
    lock xaddl %edi, secondary_next(%rip)
    movq secondary_stacks(%rip), %rax
    movl %edi, %ecx
    movq (%rax,%rcx,8), %rsp        # its stack; 0: there are too many CPUs
    testq %rsp, %rsp
    jz 1f
    xorl %ebp, %ebp
    pushq $0
    pushq $0
    callq secondary_main
1:  cli
    hlt
    jmp 1b

    .section .data.boot, "aw"
    .align 8
    .global secondary_next
secondary_next:
    .long 1                         # number 0 is the first CPU
    .align 8
    .global secondary_stacks
secondary_stacks:
    .quad 0                         # address of the table of stack ends

    .section .bss.boot_stack, "aw", @nobits
    .align 4096
    .global boot_stack
boot_stack:
    .skip 4096                      # guard page
    .skip 262144
    .global boot_stack_end
boot_stack_end:
