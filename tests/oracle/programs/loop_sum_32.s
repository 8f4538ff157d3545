# mode: 32
# Sums over doublewords with INC and DEC, which keep CF.
    mov ecx, 300
    mov esi, DATA
    xor eax, eax
    xor edx, edx
next:
    add eax, [esi]
    lodsd
    inc ebx
    adc edx, 0
    add eax, edx
    dec ecx
    jnz next
    int3
