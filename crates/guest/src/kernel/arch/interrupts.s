# The entries of exceptions and interrupts, and the routines that access a program's memory.

    .section .text.interrupts, "ax"
    .code64

# Exceptions 8, 10 to 14, 17, 21, 29 and 30 push an error code. For the others the entry pushes 0.
    .macro entry vector, pushes_error
    .align 16
entry_\vector:
    .if \pushes_error == 0
    pushq $0
    .endif
    pushq $\vector
    .if \vector == 14
    jmp enter_fault
    .else
    jmp enter_common
    .endif
    .endm

    .altmacro
    .set vector, 0
    .rept 40
    .set pushes, 0
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .set pushes, 1
    .endif
    entry %vector, %pushes
    .set vector, vector + 1
    .endr

    .macro save
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    .endm

    .macro restore
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp                  # vector and error code
    iretq
    .endm

# Saves the vector registers, too: the interrupted code may use them.
enter_common:
    save
    movq %rsp, %rbx
    subq $512, %rsp
    andq $-16, %rsp
    fxsave (%rsp)
    callq interrupt_main
    fxrstor (%rsp)
    movq %rbx, %rsp
    restore

# Only page faults in the routines below are served. Their caller has saved the vector registers.
enter_fault:
    save
    movq %rsp, %rbx
    andq $-16, %rsp
    callq fault_main
    movq %rbx, %rsp
    restore

# Access to a program's memory. If a fault between user_begin and user_end cannot be served, execution continues at
# user_failed.

    .global user_begin
    .global user_store
    .global user_load_lines
    .global user_load_word
    .global user_end
    .global user_failed
    .align 16
user_begin:
# user_store(address: rdi, value: rsi) -> 0
user_store:
    movq %rsi, (%rdi)
    xorl %eax, %eax
    retq
# user_load_lines(address: rdi, out: rsi) -> 0; the first word of each of 64 lines
user_load_lines:
    movl $64, %ecx
1:  movq (%rdi), %rax
    movq %rax, (%rsi)
    addq $64, %rdi
    addq $8, %rsi
    decl %ecx
    jnz 1b
    xorl %eax, %eax
    retq
# user_load_word(address: rdi, out: rsi) -> 0
user_load_word:
    movq (%rdi), %rax
    movq %rax, (%rsi)
    xorl %eax, %eax
    retq
user_end:
user_failed:
    movl $1, %eax
    retq

    .section .rodata.interrupts, "a"
    .align 8
    .global interrupt_entries
interrupt_entries:
    .macro address vector
    .quad entry_\vector
    .endm
    .set vector, 0
    .rept 40
    address %vector
    .set vector, vector + 1
    .endr
