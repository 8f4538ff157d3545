# Self-modifying code: the very next instructions are rewritten before they run.
    mov ecx, 20
    xor eax, eax
next:
    xor byte ptr [rip + victim], 0x08
    nop
victim:
    add eax, ecx
    mov word ptr [rip + second], 0x9066
    jmp second
second:
    inc eax
    mov word ptr [rip + second], 0xc0ff
    mov word ptr [rip + third], 0xc083
third:
    sub eax, 7
    dec ecx
    jnz next
    int3
