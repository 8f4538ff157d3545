# The first 93 Fibonacci numbers into memory; the last one overflows into CF.
    xor eax, eax
    mov edx, 1
    mov rdi, DATA
    mov ecx, 94
next:
    mov [rdi], rax
    lea r8, [rax + rdx]
    xchg rax, rdx
    mov rdx, r8
    add rdi, 8
    loop next
    add rax, rdx
    int3
