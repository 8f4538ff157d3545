# REP MOVS with DF set, overlapping both ways.
    std
    mov rsi, DATA + 0x7ff
    mov rdi, DATA + 0x1802
    mov ecx, 0x700
    rep movsb
    mov rsi, DATA + 0x1000
    mov rdi, DATA + 0x1004
    mov ecx, 100
    rep movsq
    mov rdi, DATA + 0x0ffa
    mov rsi, DATA + 0x1000
    mov ecx, 50
    rep movsd
    cld
    int3
