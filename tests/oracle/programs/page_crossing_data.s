# Loads and stores across data pages, aligned and not, of all sizes.
    mov rbx, DATA + 0x1000
    mov ecx, 16
    xor eax, eax
next:
    neg rcx
    add ax, [rbx + rcx]
    add eax, [rbx + rcx + 1]
    add rax, [rbx + rcx + 3]
    mov [rbx + rcx + 0x1000], rax
    mov [rbx + rcx + 0x1005], eax
    mov [rbx + rcx + 0x1009], ax
    movdqu xmm0, [rbx + rcx]
    movdqu [rbx + rcx + 0x2000 - 2], xmm0
    movups xmm1, [rbx + rcx + 5]
    xorps xmm0, xmm1
    movsd xmm2, qword ptr [rbx + rcx + 2]
    movss dword ptr [rbx + rcx + 0x2000 + 14], xmm2
    neg rcx
    dec ecx
    jnz next
    fld tbyte ptr [rbx - 3]
    fstp tbyte ptr [rbx + 0x1000 - 7]
    int3
