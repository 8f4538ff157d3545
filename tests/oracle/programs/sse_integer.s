# Packed integer arithmetic, saturation, packing, shifts and comparisons.
    mov rsi, DATA
    mov ecx, 60
    pxor xmm0, xmm0
    pcmpeqd xmm15, xmm15
next:
    movdqu xmm1, [rsi]
    movdqu xmm2, [rsi + 16]
    movdqa xmm3, xmm1
    paddusb xmm3, xmm2
    pxor xmm0, xmm3
    movdqa xmm3, xmm1
    psubsw xmm3, xmm2
    paddd xmm0, xmm3
    movdqa xmm3, xmm1
    pmaddwd xmm3, xmm2
    paddq xmm0, xmm3
    movdqa xmm3, xmm1
    pmulhuw xmm3, xmm2
    pavgb xmm3, xmm1
    paddw xmm0, xmm3
    movdqa xmm3, xmm1
    packsswb xmm3, xmm2
    packuswb xmm1, xmm2
    psadbw xmm3, xmm1
    paddq xmm0, xmm3
    punpcklbw xmm1, xmm2
    punpckhdq xmm2, xmm1
    psllw xmm1, 3
    psrad xmm2, 5
    psrldq xmm1, 3
    por xmm1, xmm2
    pcmpgtb xmm2, xmm1
    pmovmskb eax, xmm2
    add r8, rax
    pandn xmm2, xmm15
    pminub xmm2, xmm1
    pmaxsw xmm2, xmm0
    pshufd xmm0, xmm0, 0x39
    pshuflw xmm2, xmm2, 0x1b
    paddb xmm0, xmm2
    movd xmm4, ecx
    psllq xmm0, xmm4
    movq rax, xmm2
    xor r9, rax
    pinsrw xmm0, eax, 5
    pextrw edx, xmm0, 2
    add r8, rdx
    add rsi, 13
    dec ecx
    jnz next
    movdqu [rsi], xmm0
    int3
