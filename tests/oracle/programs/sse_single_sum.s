# Packed and scalar single precision over 128 well-behaved numbers.
    mov rsi, DATA
    mov ecx, 32
    xorps xmm0, xmm0
    xorps xmm1, xmm1
    xorps xmm7, xmm7
next:
    movdqu xmm2, [rsi]
    psrld xmm2, 12
    cvtdq2ps xmm2, xmm2
    movaps xmm3, xmm2
    addps xmm0, xmm2
    mulps xmm2, xmm2
    sqrtps xmm4, xmm2
    subps xmm4, xmm3
    addps xmm1, xmm4
    maxps xmm7, xmm3
    movaps xmm5, xmm3
    cmpltps xmm5, xmm0
    movmskps eax, xmm5
    add r8d, eax
    addss xmm6, xmm3
    divss xmm6, xmm7
    unpcklps xmm3, xmm2
    movlps [rsi], xmm3
    movhps [rsi + 8], xmm3
    add rsi, 16
    dec ecx
    jnz next
    haddps xmm0, xmm0
    haddps xmm0, xmm0
    movss [rsi], xmm0
    int3
