# A switch through a table of absolute addresses: hard to predict indirect jumps.
    mov ecx, 400
    mov eax, 12345
    xor ebx, ebx
next:
    imul eax, eax, 1103515245
    add eax, 12345
    mov edx, eax
    shr edx, 16
    and edx, 7
    lea r8, [rip + table]
    jmp [r8 + rdx*8]
case0: add rbx, 1
    jmp continue
case1: sub rbx, 3
    jmp continue
case2: xor rbx, rcx
    jmp continue
case3: rol rbx, 5
    jmp continue
case4: lea rbx, [rbx + rbx*4 + 9]
    jmp continue
case5: not rbx
    jmp continue
case6: add rbx, rdx
    jmp continue
case7: bswap rbx
continue:
    dec ecx
    jnz next
    int3
    .balign 8
table:
    .irp label, case0, case1, case2, case3, case4, case5, case6, case7
    .quad \label - here + ORIGIN
    .endr
