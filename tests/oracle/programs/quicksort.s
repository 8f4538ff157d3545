# 512 signed quadwords, recursive.
    mov rdi, DATA
    lea rsi, [rdi + 511*8]
    call sort
    int3
sort:
    cmp rdi, rsi
    jae leave_sort
    push rbx
    push rbp
    push r12
    mov rax, rdi
    add rax, rsi
    shr rax, 1
    and rax, -8
    mov rbx, [rax]
    mov rbp, rdi
    mov r12, rsi
left:
    cmp [rbp], rbx
    jge right
    add rbp, 8
    jmp left
right:
    cmp [r12], rbx
    jle check
    sub r12, 8
    jmp right
check:
    cmp rbp, r12
    jg split
    mov rax, [rbp]
    xchg rax, [r12]
    mov [rbp], rax
    add rbp, 8
    sub r12, 8
    cmp rbp, r12
    jle left
split:
    push rsi
    mov rsi, r12
    call sort
    pop rsi
    mov rdi, rbp
    call sort
    pop r12
    pop rbp
    pop rbx
leave_sort:
    ret
