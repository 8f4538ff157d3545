# FCOM with FNSTSW and SAHF, FUCOMI, FTST, FXAM, FCMOV on ordinary and odd values.
    mov rsi, DATA + 0x800
    mov rdi, DATA
    lea rbx, [rip + values]
    fninit
    xor r8d, r8d
    mov ecx, 8
outer:
    mov edx, 8
inner:
    fld qword ptr [rbx + rcx*8 - 8]
    fld qword ptr [rbx + rdx*8 - 8]
    fcom st(1)
    fnstsw ax
    sahf
    setb r9b
    sete r10b
    setp r11b
    lea r8, [r8 + r8*4]
    movzx r9d, r9b
    add r8, r9
    movzx r10d, r10b
    add r8, r10
    fucomi st, st(1)
    fcmovbe st, st(1)
    seta r11b
    movzx r11d, r11b
    add r8, r11
    ftst
    fnstsw ax
    and eax, 0x4500
    add r8, rax
    fxam
    fnstsw ax
    and eax, 0x4700
    add r8, rax
    fcompp
    fnclex
    dec edx
    jnz inner
    dec ecx
    jnz outer
    fninit
    int3
    .balign 8
values:
    .quad 0, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000
    .quad 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000, 0x0000000000000001
