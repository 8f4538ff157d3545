# CALL through registers, memory and a table that changes while it is used.
    lea rax, [rip + double]
    mov rbx, DATA
    mov [rbx], rax
    lea rax, [rip + increment]
    mov [rbx + 8], rax
    lea rax, [rip + square]
    mov [rbx + 16], rax
    mov r12d, 60
    mov edi, 3
next:
    mov eax, r12d
    xor edx, edx
    mov ecx, 3
    div ecx
    call [rbx + rdx*8]
    mov rax, [rbx + rdx*8]
    call rax
    mov rax, [rbx]
    xchg rax, [rbx + 16]
    mov [rbx], rax
    dec r12d
    jnz next
    int3
double:
    add rdi, rdi
    ret
increment:
    inc rdi
    ret
square:
    imul rdi, rdi
    mov r8, rsp
    ret 0
