# A xorshift128+ generator: shifts, exchanges and carries.
    movabs rax, 0x123456789abcdef
    movabs rbx, 0xfedcba9876543210
    mov rdi, DATA
    mov ecx, 300
next:
    mov rdx, rax
    mov rax, rbx
    mov r8, rdx
    shl r8, 23
    xor rdx, r8
    mov r8, rdx
    shr r8, 17
    xor rdx, r8
    mov r8, rbx
    shr r8, 26
    xor rdx, r8
    xor rdx, rbx
    mov rbx, rdx
    lea r9, [rax + rbx]
    mov [rdi + rcx*8], r9
    dec rcx
    jnz next
    int3
