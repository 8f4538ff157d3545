# 40,000 rounds with a branch pattern: hot enough for every tier of a translator.
    mov r8d, 200
    xor eax, eax
    xor ebx, ebx
    xor edx, edx
outer:
    mov ecx, 200
inner:
    add eax, ecx
    test al, 0x24
    jz other
    xor ebx, eax
    add rdx, rbx
    jmp joined
other:
    ror ebx, 3
    sub rdx, rax
joined:
    dec ecx
    jnz inner
    dec r8d
    jnz outer
    int3
