# Every addressing mode: scale, negative displacement, RIP-relative, FS, GS, 32-bit.
    mov rbx, DATA + 0x800
    mov ecx, 16
    xor eax, eax
next:
    add rax, [rbx]
    add rax, [rbx + 8]
    add rax, [rbx - 0x400]
    add rax, [rbx + rcx]
    add rax, [rbx + rcx*2 - 4]
    add rax, [rbx + rcx*4 + 0x200]
    add rax, [rbx + rcx*8]
    add eax, [rcx*8 + DATA]
    add rax, [rip + constant]
    add rax, fs:[rcx]
    add rax, gs:[rcx*2 + 16]
    add eax, [ebx + ecx]
    lea rdx, [rbx + rcx*4 - 77]
    lea esi, [rbx + rcx*8 + 0x12345678]
    lea di, [rbx + rcx]
    lea r8d, [ebx + ecx*2]
    add rax, rdx
    xor rax, rsi
    add rax, rdi
    movabs r9, 0x7fffffff00000000
    lea r10, [r9 + r9*2]
    mov r12, rbx
    mov r13, rbx
    add rax, [r12]
    add rax, [r13]
    add rax, [r12 + r13 - DATA]
    dec rcx
    jnz next
    mov eax, [DATA + 0x10]
    movabs rax, [DATA + 0x20]
    int3
constant:
    .quad 0x1234567890
