# mode: 32
# SSE2 and x87 in compatibility mode.
    mov esi, DATA
    mov ecx, 20
    fninit
    fldz
    pxor xmm0, xmm0
next:
    cvtsi2sd xmm1, ecx
    addsd xmm0, xmm1
    sqrtsd xmm2, xmm0
    movsd qword ptr [esi], xmm2
    fadd qword ptr [esi]
    movdqu xmm3, [esi + 32]
    paddd xmm7, xmm3
    fist dword ptr [esi + 8]
    cvttsd2si eax, xmm2
    add edx, eax
    add esi, 16
    dec ecx
    jnz next
    fstp tbyte ptr [esi]
    movups [esi + 16], xmm7
    int3
