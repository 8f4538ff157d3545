# mode: 32
# Packed and unpacked decimal: DAA, DAS, AAA, AAS, AAM, AAD.
    mov ecx, 200
    xor ebx, ebx
    xor edx, edx
next:
    mov al, bl
    add al, 0x27
    daa
    mov bl, al
    adc edx, 0
    sub al, 0x18
    das
    adc dl, al
    mov eax, ecx
    and eax, 0x0f0f
    add al, 9
    aaa
    adc edx, eax
    sub al, 7
    aas
    adc edx, eax
    mov al, cl
    aam
    add edx, eax
    aad
    xor dl, al
    .byte 0xd4, 7
    add dl, ah
    dec ecx
    jnz next
    xor eax, eax
    cmp eax, ebx
    int3
