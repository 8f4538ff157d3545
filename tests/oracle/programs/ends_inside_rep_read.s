# REP LODSQ runs out of the read-only page, backwards REPE SCASB first.
    mov rdi, DATA + 0x100
    mov al, [rdi]
    mov ecx, 50
    std
    repe scasb
    cld
    mov rsi, DATA + 0x4fc0
    mov ecx, 100
    rep lodsq
    int3
