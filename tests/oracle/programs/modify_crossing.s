# An instruction across two code pages, whose bytes in the one and in the other page change.
    lea rdi, [rip + over]
    mov ecx, 64
    xor eax, eax
again:
    call over
    add byte ptr [rdi + 8], cl
    call over
    rol eax, 3
    xor byte ptr [rdi + 1], 8
    call over
    add byte ptr [rdi + 3], 1
    dec ecx
    jnz again
    int3
    .org 0xffd, 0x90
over:
    movabs rdx, 0x1122334455667788
    add rax, rdx
    ret
