# Conversions under all four rounding modes, flush-to-zero, sticky flags kept.
    mov rbx, DATA
    mov r8d, 4
    mov r9d, 0x1f80
mode:
    mov [rbx], r9d
    ldmxcsr [rbx]
    mov ecx, 20
    mov eax, 1
next:
    cvtsi2sd xmm0, eax
    mov edx, 7
    cvtsi2sd xmm1, edx
    divsd xmm0, xmm1
    cvtsd2si r10, xmm0
    cvttsd2si r11d, xmm0
    add r12, r10
    add r13, r11
    cvtsd2ss xmm2, xmm0
    addss xmm3, xmm2
    cvtss2sd xmm4, xmm3
    addsd xmm5, xmm4
    cvtpd2dq xmm6, xmm0
    cvttps2dq xmm7, xmm3
    paddd xmm8, xmm6
    paddd xmm8, xmm7
    imul eax, eax, -3
    dec ecx
    jnz next
    stmxcsr [rbx + 4]
    mov edx, [rbx + 4]
    add r14, rdx
    add r9d, 0x2000
    dec r8d
    jnz mode
    mov dword ptr [rbx], 0x9fc0
    ldmxcsr [rbx]
    mov eax, 0x00800000
    movd xmm9, eax
    mov eax, 0x3f000000
    movd xmm10, eax
    mulss xmm9, xmm10
    mov eax, 1
    movd xmm11, eax
    addss xmm11, xmm11
    xorps xmm12, xmm12
    divss xmm12, xmm12
    int3
