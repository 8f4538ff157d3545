# POPF sets AC; aligned accesses go on, the first misaligned one does not.
    mov rsi, DATA
    pushfq
    or qword ptr [rsp], 0x40000
    popfq
    mov eax, [rsi + 4]
    movdqu xmm0, [rsi + 8]
    mov al, [rsi + 3]
    push rax
    mov ecx, 3
next:
    add rax, [rsi]
    inc rsi
    dec ecx
    jnz next
    int3
