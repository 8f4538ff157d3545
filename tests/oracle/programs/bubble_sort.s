# 64 unsigned doublewords in place.
    mov rsi, DATA
    mov ecx, 63
outer:
    xor ebx, ebx
    xor edx, edx
inner:
    mov eax, [rsi + rbx*4]
    cmp eax, [rsi + rbx*4 + 4]
    jbe ordered
    xchg eax, [rsi + rbx*4 + 4]
    mov [rsi + rbx*4], eax
    inc edx
ordered:
    inc ebx
    cmp ebx, ecx
    jb inner
    test edx, edx
    jz sorted
    dec ecx
    jnz outer
sorted:
    cmp edx, ecx
    int3
