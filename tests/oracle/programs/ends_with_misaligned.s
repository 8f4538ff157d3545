# MOVAPS walks until the address is not aligned.
    mov rsi, DATA
next:
    movaps xmm0, [rsi]
    addps xmm1, xmm0
    pxor xmm2, xmm0
    add rsi, 16
    cmp rsi, DATA + 0x200
    jne next
    inc rsi
    jmp next
