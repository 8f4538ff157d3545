# ENTER (also nested), LEAVE, RET n, frame-relative variables.
    mov edi, 10
    mov rbp, DATA + 0x3000
    push 77
    call outer
    pop rbx
    int3
outer:
    enter 32, 0
    mov [rbp - 8], rdi
    mov [rbp - 16], rsp
    push 1
    push 2
    call two_arguments
    add rax, [rbp - 8]
    call nested
    leave
    ret
two_arguments:
    mov rax, [rsp + 8]
    add rax, [rsp + 16]
    ret 16
nested:
    enter 16, 1
    mov [rbp - 16], rax
    enter 16, 2
    add rax, [rbp - 8]
    enter 8, 3
    mov rcx, rbp
    sub rcx, rsp
    leave
    leave
    leave
    ret
