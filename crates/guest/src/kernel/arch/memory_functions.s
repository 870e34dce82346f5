# The functions that the compiler calls to copy, fill and compare memory, for the target whose prebuilt crates leave
# them to the C library. They are in assembly, as the compiler could turn Rust code into calls of themselves. Eight
# words in each round are fastest under emulation.

    .section .text.memory_functions, "ax"
    .code64
    .global memcpy
    .global memmove
    .global memset
    .global memcmp
    .global bcmp
    .global strlen

memmove:
    movq %rdi, %rax
    subq %rsi, %rax
    cmpq %rdx, %rax                 # unsigned: true if the target begins inside the source
    jb backwards
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    shrq $6, %rcx
    jz 2f
1:  movq (%rsi), %r8
    movq 8(%rsi), %r9
    movq 16(%rsi), %r10
    movq 24(%rsi), %r11
    movq %r8, (%rdi)
    movq %r9, 8(%rdi)
    movq %r10, 16(%rdi)
    movq %r11, 24(%rdi)
    movq 32(%rsi), %r8
    movq 40(%rsi), %r9
    movq 48(%rsi), %r10
    movq 56(%rsi), %r11
    movq %r8, 32(%rdi)
    movq %r9, 40(%rdi)
    movq %r10, 48(%rdi)
    movq %r11, 56(%rdi)
    addq $64, %rsi
    addq $64, %rdi
    decq %rcx
    jnz 1b
2:  movq %rdx, %rcx
    andq $63, %rcx
    shrq $3, %rcx
    jz 4f
3:  movq (%rsi), %r8
    movq %r8, (%rdi)
    addq $8, %rsi
    addq $8, %rdi
    decq %rcx
    jnz 3b
4:  andq $7, %rdx
    jz 6f
5:  movb (%rsi), %r8b
    movb %r8b, (%rdi)
    incq %rsi
    incq %rdi
    decq %rdx
    jnz 5b
6:  retq
backwards:
    movq %rdi, %rax
    testq %rdx, %rdx
    jz 2f
1:  movb -1(%rsi,%rdx), %r8b
    movb %r8b, -1(%rdi,%rdx)
    decq %rdx
    jnz 1b
2:  retq

memset:
    movq %rdi, %rax
    movzbl %sil, %r8d
    movabsq $0x0101010101010101, %r9
    imulq %r9, %r8
    movq %rdx, %rcx
    shrq $6, %rcx
    jz 2f
1:  movq %r8, (%rdi)
    movq %r8, 8(%rdi)
    movq %r8, 16(%rdi)
    movq %r8, 24(%rdi)
    movq %r8, 32(%rdi)
    movq %r8, 40(%rdi)
    movq %r8, 48(%rdi)
    movq %r8, 56(%rdi)
    addq $64, %rdi
    decq %rcx
    jnz 1b
2:  andq $63, %rdx
    jz 4f
3:  movb %r8b, (%rdi)
    incq %rdi
    decq %rdx
    jnz 3b
4:  retq

memcmp:
bcmp:
    xorl %eax, %eax
    testq %rdx, %rdx
    jz 2f
1:  movzbl (%rdi), %eax
    movzbl (%rsi), %ecx
    subl %ecx, %eax
    jnz 2f
    incq %rdi
    incq %rsi
    decq %rdx
    jnz 1b
2:  retq

strlen:
    xorl %eax, %eax
1:  cmpb $0, (%rdi,%rax)
    je 2f
    incq %rax
    jmp 1b
2:  retq
