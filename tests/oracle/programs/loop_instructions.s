# LOOP, LOOPE, LOOPNE, JRCXZ and JECXZ with 64 and 32-bit counters.
    mov ecx, 10
    xor eax, eax
one:
    inc eax
    loop one
    mov ecx, 20
    mov edx, 7
two:
    add eax, 3
    dec edx
    loopne two
    mov r8, rcx
    mov ecx, 20
    xor ebx, ebx
three:
    add eax, 5
    cmp ebx, 0
    loope three
    movabs rcx, 0x500000003
four:
    add eax, 11
    addr32 loop four
    jecxz five
    int3
five:
    jrcxz six
    inc eax
six:
    xor ecx, ecx
    jrcxz seven
    int3
seven:
    add eax, 1000
    int3
