# REP MOVS of every width, overlapping forwards by a few bytes.
    mov rsi, DATA
    lea rdi, [rsi + 0x1001]
    mov ecx, 777
    rep movsb
    mov ecx, 99
    rep movsw
    mov ecx, 55
    rep movsd
    mov ecx, 33
    rep movsq
    lea rsi, [rip + here]
    mov rsi, DATA + 0x100
    lea rdi, [rsi + 3]
    mov ecx, 200
    rep movsb
    lea rdi, [rsi + 5]
    mov ecx, 20
    rep movsq
    xor ecx, ecx
    rep movsq
    cmp eax, ebx
    int3
