# Towers of Hanoi, 9 discs: deep recursion, moves recorded as bytes.
    mov r8, DATA
    mov edi, 9
    mov esi, 1
    mov edx, 3
    mov ecx, 2
    call move
    mov rax, r8
    int3
move:
    test edi, edi
    jz nothing
    push rdi
    push rsi
    push rdx
    push rcx
    dec edi
    xchg edx, ecx
    call move
    mov rcx, [rsp]
    mov rdx, [rsp + 8]
    mov rsi, [rsp + 16]
    mov eax, esi
    shl eax, 4
    or eax, edx
    mov [r8], al
    inc r8
    mov rdi, [rsp + 24]
    dec edi
    xchg esi, ecx
    call move
    pop rcx
    pop rdx
    pop rsi
    pop rdi
nothing:
    ret
