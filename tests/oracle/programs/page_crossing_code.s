# A loop whose instructions lie across the boundary of two code pages.
    xor eax, eax
    mov ecx, 300
    jmp over
    .org 0xff1, 0x90
over:
    add rax, rcx
    movabs rdx, 0x1122334455667788
    xor rax, rdx
    rol rax, 9
    imul rdx, rax, 0x01020304
    add rax, rdx
    dec ecx
    jnz over
    int3
