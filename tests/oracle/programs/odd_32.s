# mode: 32
# BOUND, SALC, XLAT, LES-free oddities, FS and GS, absolute addresses, 16-bit operands.
    mov ebx, DATA
    mov dword ptr [ebx], 5
    mov dword ptr [ebx + 4], 50
    mov eax, 20
    bound eax, [ebx]
    stc
    .byte 0xd6
    mov edx, eax
    mov al, 9
    xlatb
    add edx, eax
    mov ecx, 10
next:
    add edx, fs:[ecx*4]
    add edx, gs:[ecx]
    add dx, [DATA + 0x20]
    mov eax, dword ptr ds:[DATA + 0x30]
    xor edx, eax
    add ax, cx
    push ax
    pop bp
    movzx edi, bp
    add edx, edi
    dec cx
    jnz next
    mov eax, 3
    bound eax, [ebx]
    int3
