# Cube roots by Newton's method to full 80-bit precision, compared with FCOMI.
    fninit
    mov rdi, DATA
    mov ecx, 10
    push 3
    fild qword ptr [rsp]
next:
    push rcx
    fild qword ptr [rsp]
    add rsp, 8
    fld st(0)
    mov edx, 60
step:
    fld st(0)
    fmul st, st(0)
    fdivr st, st(2)
    fld st(1)
    fadd st, st(0)
    faddp st(1), st
    fdiv st, st(3)
    fcomi st, st(1)
    je converged
    fstp st(1)
    dec edx
    jnz step
    fld st(0)
converged:
    fstp st(1)
    fstp tbyte ptr [rdi]
    mov [rdi + 10], dl
    add rdi, 16
    fstp st(0)
    dec ecx
    jnz next
    fnstsw ax
    and eax, 0xbaff
    cmp eax, ecx
    fnclex
    int3
