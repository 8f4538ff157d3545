# FNV-1a, djb2 and a Murmur finisher over the same bytes.
    mov rsi, DATA
    mov ecx, 777
    movabs rax, 0xcbf29ce484222325
    movabs rbx, 0x100000001b3
    mov r8d, 5381
next:
    movzx edx, byte ptr [rsi]
    xor rax, rdx
    imul rax, rbx
    mov r9, r8
    shl r9, 5
    add r8, r9
    add r8, rdx
    inc rsi
    sub ecx, 1
    ja next
    movabs r10, 0xff51afd7ed558ccd
    mov rdx, rax
    shr rdx, 33
    xor rax, rdx
    imul rax, r10
    rol rax, 27
    mul r8
    cmp eax, ebx
    int3
