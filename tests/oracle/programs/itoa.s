# Decimal text of 40 numbers by repeated DIV, right to left.
    mov rsi, DATA
    mov rdi, DATA + 0x1000
    mov r8d, 40
    mov ebx, 10
next:
    mov rax, [rsi]
    lea rcx, [rdi + 24]
digit:
    xor edx, edx
    div rbx
    add dl, '0'
    dec rcx
    mov [rcx], dl
    test rax, rax
    jnz digit
    add rsi, 8
    add rdi, 24
    dec r8d
    jnz next
    int3
