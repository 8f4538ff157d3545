# A load from a non-canonical address computed in a loop.
    mov rax, DATA
    mov ecx, 1
next:
    mov rbx, [rax]
    shl rcx, 1
    add rax, rcx
    and rax, -8
    test rcx, rcx
    js last
    btr rax, 28
    bts rax, 29
    btr rax, 30
    and eax, 0x20003fff
    jmp next
last:
    mov rax, rcx
    shr rax, 2
    cmp rax, rcx
    mov rbx, [rax]
    int3
