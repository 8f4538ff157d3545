# 600 instructions without a branch, longer than any sensible block.
    mov rbx, DATA
    mov ecx, 3
again:
.rept 100
    add rax, [rbx]
    rol rax, 7
    xor rax, rcx
    lea rdx, [rax + rdx*2]
    mov [rbx + 8], rdx
    adc rsi, rdx
.endr
    dec ecx
    jnz again
    int3
