# DIV and IDIV of all widths, without overflow.
    mov rsi, DATA
    mov ecx, 60
    xor r8d, r8d
next:
    movzx eax, byte ptr [rsi]
    mov bl, [rsi + 1]
    or bl, 1
    div bl
    add r8, rax
    movsx ax, byte ptr [rsi + 2]
    mov bl, [rsi + 3]
    or bl, 3
    idiv bl
    add r8, rax
    mov ax, [rsi]
    cwd
    mov bx, [rsi + 2]
    or bx, 2
    and bx, 0x7fff
    idiv bx
    add r8w, dx
    mov eax, [rsi]
    cdq
    mov ebx, [rsi + 4]
    or ebx, 4
    and ebx, 0x7fffffff
    idiv ebx
    add r8, rax
    add r8, rdx
    mov rax, [rsi]
    cqo
    mov rbx, [rsi + 8]
    btr rbx, 63
    or rbx, 1
    idiv rbx
    add r8, rax
    xor r8, rdx
    mov rdx, 12
    mov rax, [rsi]
    or rbx, 16
    div rbx
    add r8, rax
    add rsi, 7
    dec ecx
    jnz next
    xor eax, eax
    cmp eax, ebx
    int3
