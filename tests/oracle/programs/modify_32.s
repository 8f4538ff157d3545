# mode: 32
# Self-modifying 32-bit code through an absolute address.
    mov ecx, 15
    xor eax, eax
    .att_syntax
    movl $(patch - here + ORIGIN), %ebx
    .intel_syntax noprefix
next:
    mov [ebx + 1], ecx
patch:
    add eax, 0x12345678
    xor byte ptr [ebx + 9], 0x08
    .byte 0x40
    dec ecx
    jnz next
    int3
