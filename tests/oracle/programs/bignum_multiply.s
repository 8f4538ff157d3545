# Schoolbook 512 x 512 bits with MUL and carries.
    mov rsi, DATA
    mov rbx, DATA + 0x100
    mov rdi, DATA + 0x800
    mov ecx, 16
    xor eax, eax
    rep stosq
    mov rdi, DATA + 0x800
    xor r8d, r8d
outer:
    xor r9d, r9d
    xor r10d, r10d
inner:
    mov rax, [rsi + r8*8]
    mul qword ptr [rbx + r9*8]
    add rax, r10
    adc rdx, 0
    lea r11, [r8 + r9]
    add [rdi + r11*8], rax
    adc rdx, 0
    mov r10, rdx
    inc r9d
    cmp r9d, 8
    jb inner
    lea r11, [r8 + 8]
    mov [rdi + r11*8], r10
    inc r8d
    cmp r8d, 8
    jb outer
    int3
