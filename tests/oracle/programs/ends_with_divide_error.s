# Division by a shrinking divisor until it is zero.
    mov ebx, 10
    xor r8d, r8d
next:
    mov eax, 1000
    xor edx, edx
    dec ebx
    div ebx
    add r8d, eax
    jmp next
