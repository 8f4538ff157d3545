# SCAS and CMPS with REPE and REPNE, as strlen, memchr and memcmp use them.
    mov rdi, DATA
    xor eax, eax
    mov rcx, -1
    repne scasb
    not rcx
    mov r8, rcx
    mov rdi, DATA
    mov ecx, 4096
    mov ax, 0x1234
    repne scasw
    pushfq
    pop r9
    mov r10, rcx
    mov rsi, DATA
    mov rdi, DATA + 0x1000
    mov ecx, 64
    rep movsb
    mov byte ptr [rdi - 7], 0x5a
    mov rsi, DATA
    mov rdi, DATA + 0x1000
    mov ecx, 64
    repe cmpsb
    seta r11b
    mov r12, rcx
    mov ecx, 8
    mov rsi, DATA
    mov rdi, DATA + 0x1000
    repne cmpsq
    pushfq
    pop r13
    xor ecx, ecx
    repe cmpsd
    cmp eax, ebx
    int3
