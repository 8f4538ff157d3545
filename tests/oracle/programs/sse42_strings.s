# PCMPISTRI/M and PCMPESTRI/M as strlen, strspn and memcmp use them; PCMPGTQ.
    mov rsi, DATA
    mov byte ptr [rsi + 0x105], 0
    mov rax, rsi
    pxor xmm0, xmm0
length:
    pcmpistri xmm0, [rax], 0x08
    lea rax, [rax + 16]
    jnz length
    lea r8, [rax + rcx - 16]
    sub r8, rsi
    movabs rdx, 0x7a615a4139302000
    movq xmm1, rdx
    psrldq xmm1, 1
    mov edx, 20
    xor r9d, r9d
span:
    movdqu xmm2, [rsi]
    pcmpistri xmm1, xmm2, 0x04
    adc r9, rcx
    pcmpistrm xmm1, xmm2, 0x40
    paddb xmm3, xmm0
    mov eax, edx
    pcmpestri xmm2, [rsi + 3], 0x0c
    adc r9, rcx
    pcmpestrm xmm2, [rsi + 1], 0x18
    paddb xmm3, xmm0
    pcmpestri xmm2, [rsi + 2], 0x59
    add r9, rcx
    pcmpgtq xmm2, xmm3
    pxor xmm3, xmm2
    add rsi, 5
    dec edx
    jnz span
    int3
