# PUSH and POP of registers, memory, immediates; PUSHF; RSP as operand.
    mov rbx, DATA
    push rax
    push 0x12
    push -1
    push 0x12345678
    push qword ptr [rbx + 8]
    .byte 0x66, 0x50
    .byte 0x66, 0x5b
    push rsp
    pop rcx
    push rsp
    pop qword ptr [rsp - 8 + 8]
    pop qword ptr [rbx + 0x100]
    pop rdx
    push qword ptr [rsp]
    push qword ptr [rsp + 8]
    pop rsi
    pop rdi
    mov rbp, rsp
    pop rax
    mov rsp, rbp
    pushfq
    and qword ptr [rsp], 0x8d5
    pop r8
    mov r9, rsp
    pop rsp
    mov rsp, r9
    push r15
    popfq
    int3
