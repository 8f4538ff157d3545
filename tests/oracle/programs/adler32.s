# Adler-32 of 1000 bytes with DIV by the prime.
    mov rsi, DATA
    mov ecx, 1000
    mov r8d, 1
    xor r9d, r9d
    mov ebx, 65521
next:
    movzx eax, byte ptr [rsi]
    inc rsi
    add eax, r8d
    xor edx, edx
    div ebx
    mov r8d, edx
    lea eax, [r9 + r8]
    xor edx, edx
    div ebx
    mov r9d, edx
    loop next
    shl r9d, 16
    or r8d, r9d
    cmp eax, ebx
    int3
