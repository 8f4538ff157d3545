# PMULLD, blends, PTEST, extensions, ROUND, INSERTPS, DPPS, MPSADBW, PHMINPOSUW.
    mov rsi, DATA
    mov ecx, 40
    xor r8d, r8d
next:
    movdqu xmm1, [rsi]
    movdqu xmm2, [rsi + 16]
    movdqa xmm0, xmm1
    pmulld xmm0, xmm2
    pmovsxbw xmm3, qword ptr [rsi]
    pmovzxwd xmm4, xmm1
    pblendvb xmm3, xmm4, xmm0
    blendps xmm3, xmm1, 5
    pblendw xmm4, xmm2, 0x5a
    pminsd xmm3, xmm4
    pmaxuw xmm4, xmm1
    packusdw xmm3, xmm4
    ptest xmm3, xmm2
    setc al
    setz ah
    movzx eax, ax
    add r8, rax
    pextrd eax, xmm3, 1
    pextrq rdx, xmm3, 1
    pextrb ebx, xmm3, 9
    pinsrd xmm5, eax, 2
    pinsrq xmm5, rdx, 0
    pinsrb xmm5, ebx, 13
    phminposuw xmm6, xmm5
    mpsadbw xmm5, xmm1, 5
    pcmpeqq xmm6, xmm5
    pmuldq xmm5, xmm2
    psrld xmm4, 12
    cvtdq2ps xmm4, xmm4
    roundps xmm7, xmm4, 1
    cvtdq2ps xmm8, xmm1
    insertps xmm8, xmm4, 0x64
    extractps eax, xmm8, 2
    add r8, rax
    dpps xmm8, xmm7, 0xf1
    cvtps2pd xmm9, xmm8
    roundsd xmm9, xmm9, 2
    paddd xmm10, xmm5
    pxor xmm10, xmm6
    movntdqa xmm11, [rsp - 0x100]
    add rsi, 9
    dec ecx
    jnz next
    int3
