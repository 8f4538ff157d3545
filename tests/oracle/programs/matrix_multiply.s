# 12 x 12 signed doublewords with 64-bit sums.
    mov rsi, DATA
    lea rdi, [rsi + 0x800]
    lea rbx, [rsi + 0x1000]
    xor r8d, r8d
row:
    xor r9d, r9d
column:
    xor r10d, r10d
    xor r11d, r11d
term:
    imul eax, r8d, 48
    lea rax, [rax + r10*4]
    movsxd rax, dword ptr [rsi + rax]
    imul edx, r10d, 48
    lea rdx, [rdx + r9*4]
    movsxd rdx, dword ptr [rdi + rdx]
    imul rax, rdx
    add r11, rax
    inc r10d
    cmp r10d, 12
    jb term
    imul eax, r8d, 96
    mov [rbx + rax + 0], r11
    lea rbx, [rbx + 8]
    inc r9d
    cmp r9d, 12
    jb column
    sub rbx, 96
    inc r8d
    cmp r8d, 12
    jb row
    int3
