# A tiny compiler: emits one instruction per byte of data, then runs what it made.
    mov rsi, DATA
    lea rdi, [rip + here]
    add rdi, 0x1010
    mov r12, rdi
    mov r8d, 100
emit:
    lodsb
    and eax, 3
    jz emit_add
    cmp eax, 1
    je emit_rol
    cmp eax, 2
    je emit_xor
    mov eax, 0xc2ff48
    stosd
    dec rdi
    jmp emitted
emit_add:
    mov eax, 0xd00148
    stosd
    dec rdi
    jmp emitted
emit_rol:
    mov eax, 0x07c0c148
    stosd
    jmp emitted
emit_xor:
    mov eax, 0xd03148
    stosd
    dec rdi
emitted:
    dec r8d
    jnz emit
    mov byte ptr [rdi], 0xc3
    mov eax, 1
    mov edx, 2
    call r12
    call r12
    int3
