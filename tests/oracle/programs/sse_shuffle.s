# A byte matrix transposed with PUNPCK and PSHUFB, PALIGNR, PHADD, PSIGN, PABS.
    mov rsi, DATA
    mov ecx, 30
next:
    movdqu xmm0, [rsi]
    movdqu xmm1, [rsi + 16]
    movdqu xmm2, [rsi + 32]
    movdqu xmm3, [rsi + 48]
    movdqa xmm4, xmm0
    punpckldq xmm0, xmm1
    punpckhdq xmm4, xmm1
    movdqa xmm5, xmm2
    punpckldq xmm2, xmm3
    punpckhqdq xmm5, xmm3
    pshufb xmm0, xmm5
    palignr xmm4, xmm2, 7
    phaddw xmm2, xmm3
    phsubd xmm3, xmm4
    phaddsw xmm5, xmm0
    psignw xmm0, xmm5
    pabsb xmm6, xmm4
    pmulhrsw xmm3, xmm2
    pmaddubsw xmm5, xmm6
    shufps xmm0, xmm2, 0x4e
    movhlps xmm7, xmm0
    movlhps xmm7, xmm4
    movshdup xmm8, xmm7
    movddup xmm9, xmm8
    paddb xmm10, xmm9
    pxor xmm10, xmm5
    paddd xmm10, xmm3
    movdqu [rsi], xmm10
    add rsi, 32
    dec ecx
    jnz next
    int3
