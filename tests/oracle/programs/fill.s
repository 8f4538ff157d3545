# REP STOS of every width, both directions.
    mov rdi, DATA + 5
    movabs rax, 0x1122334455667788
    mov ecx, 13
    rep stosb
    mov ecx, 13
    rep stosw
    mov ecx, 13
    rep stosd
    mov ecx, 13
    rep stosq
    mov rdi, DATA + 0x2000
    std
    mov ecx, 700
    rep stosw
    cld
    mov ecx, 5
    addr32 rep stosd
    int3
