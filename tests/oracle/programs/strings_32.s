# mode: 32
# String instructions with 32-bit registers, both directions.
    mov esi, DATA
    mov edi, DATA + 0x1003
    mov ecx, 500
    rep movsb
    mov ecx, 40
    mov eax, 0xa5a5a5a5
    rep stosd
    mov edi, DATA
    mov ecx, 1000
    xor eax, eax
    repne scasb
    mov ebx, ecx
    std
    mov esi, DATA + 0x800
    mov edi, DATA + 0x900
    mov ecx, 100
    rep movsd
    cld
    mov esi, DATA
    mov edi, DATA + 0x1003
    mov ecx, 600
    repe cmpsb
    int3
