# Sums, differences and xors of 256 quadwords.
    mov ecx, 256
    mov rsi, DATA
    xor eax, eax
    xor ebx, ebx
    xor edx, edx
next:
    add rax, [rsi]
    sub rbx, [rsi]
    xor rdx, [rsi]
    add rsi, 8
    dec ecx
    jnz next
    int3
