# Greatest common divisors of many pairs by DIV.
    mov r8d, 500
    xor r9d, r9d
    mov r10d, 123456789
outer:
    imul eax, r10d, 1103515245
    add eax, 12345
    mov r10d, eax
    mov ebx, eax
    shr ebx, 7
    or ebx, 1
reduce:
    xor edx, edx
    div ebx
    mov eax, ebx
    mov ebx, edx
    test ebx, ebx
    jnz reduce
    add r9, rax
    dec r8d
    jnz outer
    int3
