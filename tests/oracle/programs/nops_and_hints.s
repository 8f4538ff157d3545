# The NOPs, prefetches, fences and hints that compilers emit; ignored prefixes.
    mov rbx, DATA
    mov ecx, 10
next:
    nop
    .byte 0x66, 0x90
    nop dword ptr [rax + rax + 0]
    nop word ptr cs:[rax + rax + 0]
    pause
    endbr64
    prefetcht0 [rbx]
    prefetchnta [rbx + 64]
    mfence
    lfence
    sfence
    clflush [rbx]
    .byte 0xf3, 0x0f, 0x1f, 0xc0
    .byte 0x2e
    add rax, [rbx]
    .byte 0x3e, 0x26, 0x64
    nop
    .byte 0x48, 0x40
    inc ecx
    dec ecx
    dec ecx
    jnz next
    int3
