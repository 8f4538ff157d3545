# Sums and products on the register stack, integers and floats from memory.
    mov rsi, DATA
    mov ecx, 50
    fninit
    fldz
    fld1
next:
    fild dword ptr [rsi]
    fild word ptr [rsi + 4]
    fmul st, st(1)
    fsubrp st(1), st
    fadd st(2), st
    fabs
    fld1
    faddp st(1), st
    fsqrt
    fdivp st(1), st
    fxch
    fst dword ptr [rsi]
    fst qword ptr [rsi + 8]
    fxch
    fchs
    add rsi, 16
    dec ecx
    jnz next
    fistp qword ptr [rsi]
    fbstp [rsi + 16]
    fnstsw ax
    and eax, 0xbaff
    cmp eax, ecx
    int3
