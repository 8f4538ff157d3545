# FXSAVE and FXRSTOR around code that spoils the registers.
    fninit
    fld1
    fldpi
    movdqu xmm0, [DATA]
    movdqu xmm15, [DATA + 16]
    mov rdi, DATA + 0x400
    fxsave64 [rdi]
    fninit
    fldz
    pxor xmm0, xmm0
    pxor xmm15, xmm15
    fxrstor64 [rdi]
    fadd st, st(1)
    paddd xmm0, xmm15
    mov ecx, 64
    xor eax, eax
    rep stosq
    int3
