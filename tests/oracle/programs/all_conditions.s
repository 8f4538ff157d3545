# All sixteen conditions after CMP of many pairs: JCC, SETCC and CMOVCC agree.
.macro condition cc
    cmp eax, ebx
    set\cc dl
    movzx edx, dl
    lea r8, [r8 + r8*2]
    add r8, rdx
    cmp eax, ebx
    mov edx, 5
    cmov\cc edx, ecx
    add r9, rdx
    cmp eax, ebx
    j\cc 1f
    add r10, 7
    jmp 2f
1:  rol r10, 1
2:
.endm
    mov rsi, DATA
    mov ecx, 40
next:
    mov eax, [rsi]
    mov ebx, [rsi + 4]
    test cl, 3
    cmovz ebx, eax
    condition o
    condition no
    condition b
    condition ae
    condition e
    condition ne
    condition be
    condition a
    condition s
    condition ns
    condition p
    condition np
    condition l
    condition ge
    condition le
    condition g
    add rsi, 8
    dec ecx
    jnz next
    int3
