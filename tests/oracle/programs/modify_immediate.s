# Self-modifying code: each round changes the immediate of an ADD in the loop.
    mov ecx, 30
    xor eax, eax
next:
    add eax, 1
changed:
    add eax, 0x01010101
    mov edx, [rip + changed + 1]
    imul edx, edx, 3
    mov [rip + changed + 1], edx
    dec ecx
    jnz next
    int3
