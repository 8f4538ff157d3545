# 100 signed words with REP MOVSW making room.
    mov r8, DATA
    mov r9d, 1
next:
    movsx eax, word ptr [r8 + r9*2]
    mov r10d, r9d
find:
    test r10d, r10d
    jz place
    cmp ax, [r8 + r10*2 - 2]
    jge place
    dec r10d
    jmp find
place:
    mov ecx, r9d
    sub ecx, r10d
    lea rdi, [r8 + r9*2]
    lea rsi, [rdi - 2]
    std
    rep movsw
    cld
    mov [r8 + r10*2], ax
    inc r9d
    cmp r9d, 100
    jb next
    int3
