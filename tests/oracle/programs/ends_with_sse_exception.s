# The divide-by-zero exception unmasked in MXCSR, met in a loop.
    mov rbx, DATA
    mov dword ptr [rbx], 0x1d80
    ldmxcsr [rbx]
    mov ecx, 5
    mov eax, 1
    cvtsi2ss xmm0, eax
next:
    dec ecx
    cvtsi2ss xmm1, ecx
    movaps xmm2, xmm0
    divss xmm2, xmm1
    addss xmm3, xmm2
    jmp next
