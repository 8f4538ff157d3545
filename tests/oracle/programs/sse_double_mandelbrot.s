# A 16 x 16 Mandelbrot set in scalar double precision.
    mov rdi, DATA
    mov eax, 4
    cvtsi2sd xmm8, eax
    mov eax, 8
    cvtsi2sd xmm9, eax
    mov r8d, 16
row:
    mov r9d, 16
column:
    mov eax, r9d
    sub eax, 12
    cvtsi2sd xmm0, eax
    divsd xmm0, xmm9
    mov eax, r8d
    sub eax, 8
    cvtsi2sd xmm1, eax
    divsd xmm1, xmm9
    xorpd xmm2, xmm2
    xorpd xmm3, xmm3
    mov ecx, 50
iterate:
    movapd xmm4, xmm2
    mulsd xmm4, xmm4
    movapd xmm5, xmm3
    mulsd xmm5, xmm5
    movapd xmm6, xmm4
    addsd xmm6, xmm5
    ucomisd xmm6, xmm8
    ja escaped
    subsd xmm4, xmm5
    mulsd xmm3, xmm2
    addsd xmm3, xmm3
    addsd xmm3, xmm1
    movapd xmm2, xmm4
    addsd xmm2, xmm0
    dec ecx
    jnz iterate
escaped:
    mov [rdi], cl
    inc rdi
    dec r9d
    jnz column
    dec r8d
    jnz row
    int3
