# Ackermann(2, 6): recursion of data-dependent depth.
    mov edi, 2
    mov esi, 6
    call ackermann
    cmp eax, edi
    int3
ackermann:
    test edi, edi
    jnz first
    lea eax, [rsi + 1]
    ret
first:
    test esi, esi
    jnz second
    dec edi
    mov esi, 1
    jmp ackermann
second:
    push rdi
    dec esi
    call ackermann
    pop rdi
    dec edi
    mov esi, eax
    jmp ackermann
