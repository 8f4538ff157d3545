# UD2 in the middle of a block, after flags were computed lazily.
    mov eax, 0x7fffffff
    add eax, 1
    mov ebx, 5
    ud2
    mov ebx, 6
    int3
