# REP MOVSB runs out of the window: registers must show how far it came.
    mov rsi, DATA
    mov rdi, DATA + 0x3ff0
    mov ecx, 100
    rep movsb
    int3
