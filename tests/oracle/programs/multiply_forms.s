# MUL, IMUL with one, two and three operands, all widths.
    mov rsi, DATA
    mov ecx, 60
    xor r8d, r8d
next:
    mov al, [rsi]
    mul byte ptr [rsi + 1]
    add r8, rax
    imul byte ptr [rsi + 2]
    setc bl
    add r8w, ax
    mov ax, [rsi]
    mul word ptr [rsi + 2]
    add r8w, dx
    imul word ptr [rsi + 3]
    add r8w, dx
    mul dword ptr [rsi + 4]
    xor r8, rdx
    mov rax, [rsi]
    mul qword ptr [rsi + 8]
    add r8, rdx
    mov rax, [rsi]
    imul qword ptr [rsi + 8]
    seto bl
    sub r8, rdx
    imul rdx, [rsi], 12345
    add r8, rdx
    imul dx, [rsi], -7
    imul edx, [rsi + 5]
    seto bl
    add r8b, bl
    add r8, rdx
    add rsi, 7
    dec ecx
    jnz next
    xor eax, eax
    cmp eax, 0
    int3
