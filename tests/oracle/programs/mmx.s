# MMX arithmetic between x87 code: EMMS, tags, aliasing.
    mov rsi, DATA
    mov ecx, 40
    fninit
    fld1
    pxor mm0, mm0
next:
    movq mm1, [rsi]
    movq mm2, [rsi + 8]
    paddb mm0, mm1
    psubusw mm1, mm2
    pmullw mm2, mm1
    pmaddwd mm1, mm0
    punpcklbw mm2, mm1
    packsswb mm1, mm2
    pxor mm0, mm1
    psrlq mm0, 3
    pslld mm1, 2
    pcmpeqb mm2, mm1
    por mm0, mm2
    pmulhuw mm1, mm0
    pshufw mm1, mm1, 0x1b
    pmovmskb eax, mm0
    add r8, rax
    movd edx, mm0
    xor r8, rdx
    add rsi, 8
    dec ecx
    jnz next
    movq rax, mm0
    movq2dq xmm0, mm1
    movdq2q mm3, xmm0
    movntq [rsi], mm3
    emms
    fld1
    fldpi
    faddp st(1), st
    fstp qword ptr [rsi + 8]
    int3
